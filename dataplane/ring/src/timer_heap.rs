//! Deadlines in order: a four-way heap with one entry for each timer at most.
//!
//! Moving a deadline later is a store: the entry stays where it is, and when its time comes the timer is put at its new
//! place. Moving it earlier sifts the entry up. So a connection that renews its idle timeout with each request pays a
//! store, and a timer that is set a million times still has one entry.

use std::mem;
use std::task::Waker;

use crate::clock::Nanos;

/// What happens when a timer expires.
pub(crate) enum Action {
    /// Nothing waits: the expiry is found when it is polled.
    None,
    /// A task waits.
    Wake(Waker),
    /// The ring itself waits, for what the number says.
    Ring(u64),
}

struct Slot {
    deadline: Nanos,
    /// Place of the timer's entry in the heap; `ABSENT` when it has none.
    position: u32,
    action: Action,
}

#[derive(Clone, Copy)]
struct Entry {
    due: Nanos,
    timer: u32,
}

const ABSENT: u32 = u32::MAX;
/// Children of a node: four entries are one cache line.
const FAN_OUT: usize = 4;

/// All timers of one ring.
#[derive(Default)]
pub(crate) struct TimerHeap {
    slots: Vec<Slot>,
    vacant: Vec<u32>,
    heap: Vec<Entry>,
}

impl TimerHeap {
    /// Adds a timer that never expires until it is set.
    pub(crate) fn insert(&mut self, action: Action) -> u32 {
        let slot = Slot { deadline: Nanos::MAX, position: ABSENT, action };
        match self.vacant.pop() {
            Some(timer) => {
                self.slots[timer as usize] = slot;
                timer
            }
            None => {
                self.slots.push(slot);
                self.slots.len() as u32 - 1
            }
        }
    }

    pub(crate) fn remove(&mut self, timer: u32) {
        let slot = &mut self.slots[timer as usize];
        slot.deadline = Nanos::MAX;
        slot.action = Action::None;
        let position = slot.position;
        if position != ABSENT {
            self.take_out(position as usize);
        }
        self.vacant.push(timer);
    }

    pub(crate) fn deadline(&self, timer: u32) -> Nanos {
        self.slots[timer as usize].deadline
    }

    pub(crate) fn action_mut(&mut self, timer: u32) -> &mut Action {
        &mut self.slots[timer as usize].action
    }

    /// Moves a deadline; `Nanos::MAX` is never.
    pub(crate) fn set(&mut self, timer: u32, deadline: Nanos) {
        let slot = &mut self.slots[timer as usize];
        slot.deadline = deadline;
        let position = slot.position;
        if position == ABSENT {
            if deadline < Nanos::MAX {
                self.heap.push(Entry { due: deadline, timer });
                self.sift_up(self.heap.len() - 1);
            }
        } else if deadline < self.heap[position as usize].due {
            self.heap[position as usize].due = deadline;
            self.sift_up(position as usize);
        }
    }

    /// When the next look at the timers is due; it may be earlier than the next deadline, never later.
    pub(crate) fn next_due(&self) -> Option<Nanos> {
        self.heap.first().map(|entry| entry.due)
    }

    /// Takes out one timer whose deadline has come and says what to do for it; `None` when there is none.
    pub(crate) fn expire_one(&mut self, now: Nanos) -> Option<Action> {
        while let Some(&first) = self.heap.first() {
            if first.due > now {
                return None;
            }
            let deadline = self.slots[first.timer as usize].deadline;
            if deadline == Nanos::MAX {
                self.take_out(0);
            } else if deadline > now {
                self.heap[0].due = deadline;
                self.sift_down(0);
            } else {
                self.take_out(0);
                let action = &mut self.slots[first.timer as usize].action;
                return Some(match action {
                    Action::Ring(what) => Action::Ring(*what),
                    Action::Wake(_) | Action::None => mem::replace(action, Action::None),
                });
            }
        }
        None
    }

    /// Timers that exist.
    #[cfg(test)]
    fn count(&self) -> usize {
        self.slots.len() - self.vacant.len()
    }

    fn take_out(&mut self, position: usize) {
        let gone = self.heap.swap_remove(position);
        self.slots[gone.timer as usize].position = ABSENT;
        if position < self.heap.len() {
            self.sift_down(position);
            self.sift_up(position);
        }
    }

    fn sift_up(&mut self, mut position: usize) {
        let entry = self.heap[position];
        while position > 0 {
            let parent = (position - 1) / FAN_OUT;
            if self.heap[parent].due <= entry.due {
                break;
            }
            self.place(position, self.heap[parent]);
            position = parent;
        }
        self.place(position, entry);
    }

    fn sift_down(&mut self, mut position: usize) {
        let entry = self.heap[position];
        loop {
            let first = position * FAN_OUT + 1;
            let last = (first + FAN_OUT).min(self.heap.len());
            let Some(least) = (first..last).min_by_key(|&child| self.heap[child].due) else { break };
            if entry.due <= self.heap[least].due {
                break;
            }
            self.place(position, self.heap[least]);
            position = least;
        }
        self.place(position, entry);
    }

    fn place(&mut self, position: usize, entry: Entry) {
        self.heap[position] = entry;
        self.slots[entry.timer as usize].position = position as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ring_timer(heap: &mut TimerHeap, what: u64, deadline: u64) -> u32 {
        let timer = heap.insert(Action::Ring(what));
        heap.set(timer, Nanos::from_nanos(deadline));
        timer
    }

    fn expired(heap: &mut TimerHeap, now: u64) -> Vec<u64> {
        let mut all = Vec::new();
        while let Some(action) = heap.expire_one(Nanos::from_nanos(now)) {
            let Action::Ring(what) = action else { panic!("only ring timers here") };
            all.push(what);
        }
        all
    }

    #[test]
    fn timers_expire_in_order_and_once() {
        let mut heap = TimerHeap::default();
        for (what, deadline) in [(1, 50), (2, 10), (3, 30), (4, 20), (5, 40), (6, 60)] {
            ring_timer(&mut heap, what, deadline);
        }
        assert_eq!(expired(&mut heap, 35), [2, 4, 3]);
        assert_eq!(expired(&mut heap, 35), []);
        assert_eq!(expired(&mut heap, 100), [5, 1, 6]);
        assert_eq!(heap.next_due(), None);
    }

    #[test]
    fn a_later_deadline_costs_no_entry() {
        let mut heap = TimerHeap::default();
        let timer = ring_timer(&mut heap, 1, 10);
        for deadline in 11..1000 {
            heap.set(timer, Nanos::from_nanos(deadline));
        }
        assert_eq!(heap.heap.len(), 1);
        assert_eq!(expired(&mut heap, 998), []);
        assert_eq!(expired(&mut heap, 999), [1]);
        heap.set(timer, Nanos::from_nanos(2000));
        assert_eq!(expired(&mut heap, 2000), [1]);
    }

    #[test]
    fn a_cleared_timer_stays_silent() {
        let mut heap = TimerHeap::default();
        let timer = ring_timer(&mut heap, 1, 10);
        heap.set(timer, Nanos::MAX);
        assert_eq!(expired(&mut heap, 1_000_000), []);
        assert_eq!(heap.next_due(), None);
        heap.set(timer, Nanos::from_nanos(5));
        heap.remove(timer);
        assert_eq!(expired(&mut heap, 1_000_000), []);
        assert_eq!(heap.count(), 0);
    }

    proptest! {
        #[test]
        fn the_heap_agrees_with_a_plain_list(steps in prop::collection::vec((0u8..8, 0usize..12, 0u64..100), 1..200)) {
            let mut heap = TimerHeap::default();
            let timers: Vec<u32> = (0..12).map(|what| heap.insert(Action::Ring(what))).collect();
            let mut model = [u64::MAX; 12];
            let mut now = 0;
            for (step, which, wait) in steps {
                match step {
                    0..4 => {
                        heap.set(timers[which], Nanos::from_nanos(now + wait));
                        model[which] = now + wait;
                    }
                    4 => {
                        heap.set(timers[which], Nanos::MAX);
                        model[which] = u64::MAX;
                    }
                    _ => {
                        now += wait;
                        let mut due: Vec<u64> =
                            (0..12).filter(|&which| model[which] <= now).map(|which| which as u64).collect();
                        due.iter().for_each(|&which| model[which as usize] = u64::MAX);
                        // A deadline stays past until it is set again.
                        let mut seen = expired(&mut heap, now);
                        seen.iter().for_each(|&which| heap.set(timers[which as usize], Nanos::MAX));
                        due.sort_unstable();
                        seen.sort_unstable();
                        prop_assert_eq!(seen, due);
                    }
                }
                let next = model.iter().copied().min().filter(|&due| due < u64::MAX);
                match (heap.next_due(), next) {
                    (None, expected) => prop_assert_eq!(expected, None),
                    (Some(due), Some(expected)) => prop_assert!(due <= Nanos::from_nanos(expected)),
                    (Some(_), None) => {}
                }
            }
        }
    }
}
