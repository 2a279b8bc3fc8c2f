//! Tasks that serve connections, each with the memory of one exchange, reused from connection to connection.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::Worker;
use crate::exchange::Exchange;
use crate::slab::SlabKey;

/// Runners that wait for work beyond this many end, and give their memory back.
const WAITING_COUNT_MAX: usize = 1_024;

/// The runners without work, most recently busy last.
#[derive(Default)]
pub(super) struct Runners {
    waiting: Vec<Rc<Inbox>>,
}

/// Where a waiting runner finds its next connection.
struct Inbox {
    job: Cell<Option<SlabKey>>,
    waker: Cell<Option<Waker>>,
}

/// Lets a runner serve the connection at `key`.
pub(super) fn run(worker: &Rc<Worker>, key: SlabKey) {
    let waiting = worker.runners.borrow_mut().waiting.pop();
    match waiting {
        Some(inbox) => {
            inbox.job.set(Some(key));
            if let Some(waker) = inbox.waker.take() {
                waker.wake();
            }
        }
        None => worker.core.ring.spawn(serve(Rc::clone(worker), key)),
    }
}

async fn serve(worker: Rc<Worker>, first: SlabKey) {
    let mut exchange = Exchange::new(&worker.core);
    let inbox = Rc::new(Inbox { job: Cell::new(Some(first)), waker: Cell::new(None) });
    loop {
        let key = poll_fn(|cx| match inbox.job.take() {
            Some(key) => Poll::Ready(key),
            None => {
                inbox.waker.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await;
        if let Some(mut connection) = worker.take(key) {
            let rest = connection.serve(&worker.core, &mut exchange).await;
            worker.put_back(key, connection, rest);
        }
        let mut runners = worker.runners.borrow_mut();
        if runners.waiting.len() >= WAITING_COUNT_MAX {
            return;
        }
        runners.waiting.push(Rc::clone(&inbox));
    }
}
