//! The seeds of the fuzz target `proxy_protocol`, and each with every byte damaged, on stable Rust.

use std::path::Path;

#[allow(unreachable_pub)] // the fuzz target calls it from another crate
#[path = "../fuzz/src/proxy_protocol.rs"]
mod proxy_protocol;

#[test]
fn seeds_and_damaged_seeds_have_one_verdict() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/proxy_protocol");
    let mut seeds: Vec<_> =
        std::fs::read_dir(folder).expect("seeds").map(|seed| seed.expect("a seed").path()).collect();
    seeds.sort();
    assert!(seeds.len() >= 6, "{seeds:?}");
    for path in &seeds {
        let seed = std::fs::read(path).expect("a readable seed");
        proxy_protocol::check(&seed);
        for place in 0..seed.len() {
            let mut damaged = seed.clone();
            damaged[place] = damaged[place].wrapping_add(1 + (place % 7) as u8);
            proxy_protocol::check(&damaged);
        }
    }
}
