//! Latency objectives: no panic, errors have a place.
#![no_main]

#[path = "../src/load.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::objective(data));
