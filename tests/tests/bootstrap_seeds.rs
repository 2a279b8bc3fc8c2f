//! The seeds of the fuzz target `bootstrap`, and small damage done to each, on stable Rust.

use std::path::Path;

#[allow(unreachable_pub)] // the fuzz target calls it from another crate
#[path = "../fuzz/src/bootstrap.rs"]
mod bootstrap;

/// What means something to YAML or JSON.
const MARKS: &[u8] = b"{}[]:,-#&*!|>'\"%@`\n\t ";
/// Damaged copies of each seed.
const COPIES: usize = 60;

#[test]
fn seeds_and_damaged_seeds_do_no_harm() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/bootstrap");
    let mut seeds: Vec<_> =
        std::fs::read_dir(folder).expect("seeds").map(|seed| seed.expect("a seed").path()).collect();
    seeds.sort();
    assert!(seeds.len() >= 8, "{seeds:?}");
    for (number, path) in seeds.iter().enumerate() {
        let seed = std::fs::read(path).expect("a readable seed");
        bootstrap::bootstrap(&seed);
        let mut random = 0x9e37_79b9_7f4a_7c15_u64 ^ number as u64;
        for _ in 0..COPIES {
            let damaged = damage(&seed, &mut random);
            bootstrap::bootstrap(&damaged);
        }
    }
}

/// A copy with a few bytes changed, left out or doubled. xorshift64 repeats itself run after run.
fn damage(seed: &[u8], random: &mut u64) -> Vec<u8> {
    let mut next = |below: usize| {
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        (*random % below.max(1) as u64) as usize
    };
    let mut bytes = seed.to_vec();
    for _ in 0..=next(3) {
        if bytes.is_empty() {
            break;
        }
        let place = next(bytes.len());
        match next(5) {
            0 => bytes[place] = next(256) as u8,
            1 => bytes[place] = MARKS[next(MARKS.len())],
            2 => drop(bytes.remove(place)),
            3 => bytes.truncate(place),
            _ => {
                let end = (place + next(64)).min(bytes.len());
                let piece = bytes[place..end].to_vec();
                bytes.splice(place..place, piece);
            }
        }
    }
    bytes
}
