//! Tasks that serve connections, each with the memory of one exchange, reused from connection to connection.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::Worker;
use crate::downstream::http2::Http2Request;
use crate::exchange::Exchange;
use crate::slab::SlabKey;

/// Runners that wait for work beyond this many end, and give their memory back.
const WAITING_COUNT_MAX: usize = 1_024;

/// The runners without work, most recently busy last.
#[derive(Default)]
pub(super) struct Runners {
    waiting: Vec<Rc<Inbox>>,
}

/// What a runner serves.
pub(super) enum Job {
    /// The client's connection at this key, until it is idle.
    Connection(SlabKey),
    /// One request of an HTTP/2 connection.
    Stream(Box<Http2Request>),
}

/// Where a waiting runner finds its next job.
struct Inbox {
    job: Cell<Option<Job>>,
    waker: Cell<Option<Waker>>,
}

/// Lets a runner do `job`.
pub(super) fn run(worker: &Rc<Worker>, job: Job) {
    let waiting = worker.runners.borrow_mut().waiting.pop();
    match waiting {
        Some(inbox) => {
            inbox.job.set(Some(job));
            if let Some(waker) = inbox.waker.take() {
                waker.wake();
            }
        }
        None => worker.core.ring.spawn(serve(Rc::clone(worker), job)),
    }
}

async fn serve(worker: Rc<Worker>, first: Job) {
    let mut exchange = Exchange::new(&worker.core);
    let inbox = Rc::new(Inbox { job: Cell::new(Some(first)), waker: Cell::new(None) });
    loop {
        let job = poll_fn(|cx| match inbox.job.take() {
            Some(job) => Poll::Ready(job),
            None => {
                inbox.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await;
        match job {
            Job::Connection(key) => {
                let mut taken = worker.take(key);
                if let Some(unchosen) = taken.take_if(|connection| connection.info.chain.is_none()) {
                    taken = worker.establish(key, unchosen).await;
                }
                if let Some(mut connection) = taken {
                    let rest = connection.serve(&worker.core, &mut exchange).await;
                    worker.put_back(key, connection, rest);
                }
            }
            Job::Stream(request) => request.serve(&worker.core, &mut exchange).await,
        }
        let mut runners = worker.runners.borrow_mut();
        if runners.waiting.len() >= WAITING_COUNT_MAX {
            return;
        }
        runners.waiting.push(Rc::clone(&inbox));
    }
}
