use std::sync::atomic::AtomicI64;

use super::*;
use crate::worker::random::Random;

fn breakers(thresholds: Thresholds, worker_count: usize) -> Arc<Breakers> {
    Arc::new(Breakers::new(thresholds, Thresholds::default(), worker_count))
}

/// How many of `resource` `admission` gets before it is refused.
fn acquire_all(admission: &mut Admission, resource: Resource) -> u32 {
    (0..).take_while(|_| admission.try_acquire(resource, Priority::Default)).count() as u32
}

#[test]
fn a_single_core_gets_the_whole_limit() {
    let check = |limit: u32| {
        let thresholds = Thresholds { requests: limit, ..Thresholds::default() };
        let breakers = breakers(thresholds, 1);
        let mut admission = Admission::new(&breakers, Core(0));
        assert_eq!(acquire_all(&mut admission, Resource::Requests), limit);
        assert!(breakers.is_open(Priority::Default, Resource::Requests));
        assert_eq!(breakers.remaining(Priority::Default, Resource::Requests), 0);
        // Other resources and the other priority have limits of their own.
        assert!(admission.try_acquire(Resource::Connections, Priority::Default));
        assert!(admission.try_acquire(Resource::Requests, Priority::High));
        if limit > 0 {
            admission.release(Resource::Requests, Priority::Default);
            assert!(!breakers.is_open(Priority::Default, Resource::Requests));
            assert!(admission.try_acquire(Resource::Requests, Priority::Default));
            assert!(!admission.try_acquire(Resource::Requests, Priority::Default));
        }
        drop(admission);
        assert_eq!(breakers.in_flight(Priority::Default, Resource::Requests), 0);
        assert_eq!(acquire_all(&mut Admission::new(&breakers, Core(0)), Resource::Requests), limit);
    };
    check(0);
    check(1);
    check(3);
    check(1024);
}

#[test]
fn cores_share_small_limits_exactly() {
    for limit in [0, 1, 2, 7, 15] {
        let breakers = breakers(Thresholds { retries: limit, ..Thresholds::default() }, 4);
        let mut cores: Vec<Admission> = (0..4).map(|core| Admission::new(&breakers, Core(core))).collect();
        for turn in 0..100 {
            // Whoever had tickets before leaves none behind.
            let core = &mut cores[turn % 4];
            assert_eq!(acquire_all(core, Resource::Retries), limit, "{limit} at turn {turn}");
            (0..limit).for_each(|_| core.release(Resource::Retries, Priority::Default));
        }
    }
}

#[test]
fn unspent_tickets_are_few() {
    let limit = 1024;
    let breakers = breakers(Thresholds { requests: limit, ..Thresholds::default() }, 4);
    let mut idle = Admission::new(&breakers, Core(0));
    acquire_all(&mut idle, Resource::Requests);
    (0..limit).for_each(|_| idle.release(Resource::Requests, Priority::Default));
    let mut busy = Admission::new(&breakers, Core(1));
    let got = acquire_all(&mut busy, Resource::Requests);
    assert!((limit * 3 / 4..=limit).contains(&got), "{got}");
    // The pool is empty now: what the idle core releases next, it gives back at once.
    assert!(idle.try_acquire(Resource::Requests, Priority::Default));
    idle.release(Resource::Requests, Priority::Default);
    assert_eq!(got + acquire_all(&mut busy, Resource::Requests), limit);
}

#[test]
fn cores_together_never_exceed_the_limit() {
    for limit in [1_u32, 3, 50, 400] {
        let worker_count = 4;
        let thresholds = Thresholds { requests: limit, ..Thresholds::default() };
        let breakers = breakers(thresholds, worker_count);
        let in_flight = AtomicI64::new(0);
        std::thread::scope(|scope| {
            for core in 0..worker_count {
                let (breakers, in_flight) = (&breakers, &in_flight);
                scope.spawn(move || {
                    let mut admission = Admission::new(breakers, Core(core as u16));
                    let mut random = Random::seeded(core as u64);
                    let mut held = 0;
                    for _ in 0..50_000 {
                        if held > 0 && random.below(2) == 0 {
                            in_flight.fetch_sub(1, Ordering::SeqCst);
                            admission.release(Resource::Requests, Priority::Default);
                            held -= 1;
                        } else if admission.try_acquire(Resource::Requests, Priority::Default) {
                            let now = in_flight.fetch_add(1, Ordering::SeqCst) + 1;
                            assert!(now <= i64::from(limit), "{now} of {limit}");
                            held += 1;
                        }
                    }
                    in_flight.fetch_sub(held, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(breakers.in_flight(Priority::Default, Resource::Requests), 0);
        let taken = breakers.pools[cell(Priority::Default, Resource::Requests)].taken.load(Ordering::Relaxed);
        assert_eq!(taken, 0, "every ticket came back");
    }
}

#[test]
fn a_budget_follows_the_requests() {
    let check = |percent: f64, concurrency_min: u32, requests: u32, pending: u32, expect: u32| {
        let budget = RetryBudget { percent, concurrency_min };
        let thresholds = Thresholds { retry_budget: Some(budget), retries: 1000, ..Thresholds::default() };
        let breakers = breakers(thresholds, 2);
        let mut here = Admission::new(&breakers, Core(0));
        let mut there = Admission::new(&breakers, Core(1));
        (0..requests).for_each(|_| assert!(there.try_acquire(Resource::Requests, Priority::Default)));
        (0..pending).for_each(|_| assert!(here.try_acquire(Resource::Pending, Priority::Default)));
        assert_eq!(acquire_all(&mut here, Resource::Retries), expect, "{percent} % of {requests} + {pending}");
        assert!(!there.try_acquire(Resource::Retries, Priority::Default));
        if expect > 0 {
            here.release(Resource::Retries, Priority::Default);
            assert!(there.try_acquire(Resource::Retries, Priority::Default), "nothing is held back");
        }
    };
    check(20.0, 3, 100, 0, 20);
    check(20.0, 3, 80, 20, 20);
    check(20.0, 3, 10, 0, 3);
    check(100.0, 0, 7, 0, 7);
    check(0.0, 0, 100, 0, 0);
    check(33.3, 1, 10, 0, 3);
}
