//! The tasks of one ring, and the wakers that name them.
//!
//! A waker is one integer: ring, task and generation. Cloning and dropping it costs nothing, and waking looks the task
//! up: on the ring's own thread by pushing to the ready queue, elsewhere by handing the integer to the ring's mailbox.
//! A waker that outlives its task names a generation that is gone, and is ignored.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::panic::{self, AssertUnwindSafe};
use std::pin::Pin;
use std::ptr;
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use crate::remote;

/// The future of `block_on`: always task zero.
pub(crate) const ROOT: u32 = 0;
const INDEX_BITS: u32 = 24;
const GENERATION_BITS: u32 = 24;
/// Tasks that one ring can hold.
const TASKS_MAX: usize = 1 << INDEX_BITS;

/// A task named for waking: `ring` in the top 16 bits, then the generation, then the index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TaskName(u64);

impl TaskName {
    fn new(ring: u16, generation: u32, index: u32) -> TaskName {
        let generation = u64::from(generation) & ((1 << GENERATION_BITS) - 1);
        TaskName(u64::from(ring) << (INDEX_BITS + GENERATION_BITS) | generation << INDEX_BITS | u64::from(index))
    }

    pub(crate) fn ring(self) -> u16 {
        (self.0 >> (INDEX_BITS + GENERATION_BITS)) as u16
    }

    fn generation(self) -> u32 {
        (self.0 >> INDEX_BITS) as u32 & ((1 << GENERATION_BITS) - 1)
    }

    fn index(self) -> u32 {
        self.0 as u32 & ((1 << INDEX_BITS) - 1)
    }
}

type TaskFuture = Pin<Box<dyn Future<Output = ()>>>;

#[derive(Default)]
struct TaskSlot {
    generation: u32,
    /// Whether the task stands in the ready queue.
    ready: bool,
    /// Whether the slot is in use; the future itself is out while it is polled.
    live: bool,
    future: Option<TaskFuture>,
}

/// The tasks of one ring.
pub(crate) struct Executor {
    ring: u16,
    tasks: RefCell<Vec<TaskSlot>>,
    vacant: RefCell<Vec<u32>>,
    ready: RefCell<VecDeque<u32>>,
    live: Cell<usize>,
    panics: Cell<u64>,
}

thread_local! {
    /// The executor that runs on this thread; null outside `block_on`.
    static CURRENT: Cell<*const Executor> = const { Cell::new(ptr::null()) };
}

/// Marks an executor as the one that runs on this thread until it is dropped.
pub(crate) struct Entered<'a> {
    before: *const Executor,
    executor: PhantomData<&'a Executor>,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        CURRENT.set(self.before);
    }
}

impl Executor {
    pub(crate) fn new(ring: u16) -> Executor {
        let root = TaskSlot::default();
        Executor {
            ring,
            tasks: RefCell::new(vec![root]),
            vacant: RefCell::default(),
            ready: RefCell::default(),
            live: Cell::new(0),
            panics: Cell::new(0),
        }
    }

    pub(crate) fn enter(&self) -> Entered<'_> {
        Entered { before: CURRENT.replace(self), executor: PhantomData }
    }

    /// Adds a task and makes it ready.
    pub(crate) fn spawn(&self, future: TaskFuture) {
        let index = self.vacant.borrow_mut().pop();
        let mut tasks = self.tasks.borrow_mut();
        let index = index.unwrap_or_else(|| {
            assert!(tasks.len() < TASKS_MAX, "a ring holds at most {TASKS_MAX} tasks");
            tasks.push(TaskSlot::default());
            tasks.len() as u32 - 1
        });
        let slot = &mut tasks[index as usize];
        slot.future = Some(future);
        slot.live = true;
        slot.ready = true;
        self.ready.borrow_mut().push_back(index);
        self.live.set(self.live.get() + 1);
    }

    /// Begins a root future: wakers of the one before go stale.
    pub(crate) fn begin_root(&self) {
        let mut tasks = self.tasks.borrow_mut();
        let root = &mut tasks[ROOT as usize];
        root.generation = root.generation.wrapping_add(1);
        root.live = true;
        if !root.ready {
            root.ready = true;
            self.ready.borrow_mut().push_back(ROOT);
        }
    }

    /// Ends the root future: its wakers go stale.
    pub(crate) fn end_root(&self) {
        let mut tasks = self.tasks.borrow_mut();
        let root = &mut tasks[ROOT as usize];
        root.generation = root.generation.wrapping_add(1);
        root.live = false;
    }

    /// Makes a task ready; a stale name is ignored.
    pub(crate) fn wake(&self, name: TaskName) {
        let mut tasks = self.tasks.borrow_mut();
        if let Some(slot) = tasks.get_mut(name.index() as usize)
            && slot.live
            && !slot.ready
            && slot.generation & ((1 << GENERATION_BITS) - 1) == name.generation()
        {
            slot.ready = true;
            self.ready.borrow_mut().push_back(name.index());
        }
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.borrow().is_empty()
    }

    pub(crate) fn task_count(&self) -> usize {
        self.live.get()
    }

    pub(crate) fn panic_count(&self) -> u64 {
        self.panics.get()
    }

    /// Takes the next ready task from the queue.
    pub(crate) fn next_ready(&self) -> Option<u32> {
        let index = self.ready.borrow_mut().pop_front()?;
        if let Some(slot) = self.tasks.borrow_mut().get_mut(index as usize) {
            slot.ready = false;
        }
        Some(index)
    }

    fn name(&self, index: u32) -> TaskName {
        let generation = self.tasks.borrow().get(index as usize).map_or(0, |slot| slot.generation);
        TaskName::new(self.ring, generation, index)
    }

    /// Polls the root future.
    pub(crate) fn poll_root<F: Future>(&self, future: Pin<&mut F>) -> Poll<F::Output> {
        let waker = waker_of(self.name(ROOT));
        future.poll(&mut Context::from_waker(&waker))
    }

    /// Polls a spawned task. A task that panics is dropped and counted; the others go on.
    pub(crate) fn poll_task(&self, index: u32) {
        let (mut future, name) = {
            let mut tasks = self.tasks.borrow_mut();
            let Some(slot) = tasks.get_mut(index as usize) else { return };
            let Some(future) = slot.future.take() else { return };
            (future, TaskName::new(self.ring, slot.generation, index))
        };
        let waker = waker_of(name);
        let polled = panic::catch_unwind(AssertUnwindSafe(|| {
            future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending()
        }));
        match polled {
            Ok(true) => {
                if let Some(slot) = self.tasks.borrow_mut().get_mut(index as usize) {
                    slot.future = Some(future);
                }
            }
            Ok(false) => self.retire(index, future),
            Err(cause) => {
                self.panics.set(self.panics.get() + 1);
                self.retire(index, future);
                drop_quietly(cause);
            }
        }
    }

    fn retire(&self, index: u32, future: TaskFuture) {
        if let Some(slot) = self.tasks.borrow_mut().get_mut(index as usize) {
            slot.generation = slot.generation.wrapping_add(1);
            slot.live = false;
        }
        drop_quietly(future);
        self.vacant.borrow_mut().push(index);
        self.live.set(self.live.get() - 1);
    }

    /// Drops every spawned task.
    pub(crate) fn clear(&self) {
        // A task's drop may spawn or wake; a few rounds see the end of it, and what is left is left.
        for _ in 0..8 {
            let futures: Vec<(u32, TaskFuture)> = self
                .tasks
                .borrow_mut()
                .iter_mut()
                .enumerate()
                .filter_map(|(index, slot)| slot.future.take().map(|future| (index as u32, future)))
                .collect();
            if futures.is_empty() {
                return;
            }
            futures.into_iter().for_each(|(index, future)| self.retire(index, future));
        }
    }
}

/// Drops a value whose drop may panic: one broken task must not take the worker along.
fn drop_quietly<T>(value: T) {
    if let Err(cause) = panic::catch_unwind(AssertUnwindSafe(|| drop(value))) {
        // A cause whose own drop panics is leaked rather than dropped.
        let _: ManuallyDrop<Box<dyn Any + Send>> = ManuallyDrop::new(cause);
    }
}

static VTABLE: RawWakerVTable = RawWakerVTable::new(clone_name, wake_name, wake_name, forget_name);

/// The name travels as the waker's data pointer, which is never followed.
fn raw_waker(name: TaskName) -> RawWaker {
    RawWaker::new(ptr::without_provenance(name.0 as usize), &VTABLE)
}

const _: () = assert!(usize::BITS == 64, "a task's name fills a pointer");

fn waker_of(name: TaskName) -> Waker {
    // SAFETY: the four functions of the table follow no pointer, may run on any thread and keep no count.
    unsafe { Waker::from_raw(raw_waker(name)) }
}

fn clone_name(data: *const ()) -> RawWaker {
    RawWaker::new(data, &VTABLE)
}

fn forget_name(_: *const ()) {}

fn wake_name(data: *const ()) {
    let name = TaskName(data.addr() as u64);
    let current = CURRENT.get();
    // SAFETY: CURRENT is null or an executor that is borrowed until `Entered` is dropped, on this very thread.
    match unsafe { current.as_ref() } {
        Some(executor) if executor.ring == name.ring() => executor.wake(name),
        _ => remote::wake_task(name),
    }
}
