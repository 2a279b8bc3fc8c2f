//! Client, proxy and backend on one simulated ring: over many seeds, every request ends exactly once.
//!
//! `TORUS_SEEDS` sets how many seeds run (1,000 by default), `TORUS_SEED` repeats a single one. A failure names its seed.

mod simulated;

use simulated::{Outcome, run};

#[test]
fn every_request_ends_exactly_once() {
    if let Ok(seed) = std::env::var("TORUS_SEED") {
        let seed = seed.parse().expect("TORUS_SEED is a number");
        println!("seed {seed}: {:?}", run(seed));
        return;
    }
    let seed_count = std::env::var("TORUS_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(1_000);
    let mut total = Outcome::default();
    for seed in 0..seed_count {
        total.add(&run(seed));
    }
    println!("{seed_count} seeds: {total:?}");
    assert!(total.answered > seed_count * 10, "most requests are answered: {total:?}");
    assert!(total.broken > 0 && total.refused > 0, "failures happen as well: {total:?}");
}

#[test]
fn a_seed_repeats_its_run() {
    for seed in [3, 77, 1_234] {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}
