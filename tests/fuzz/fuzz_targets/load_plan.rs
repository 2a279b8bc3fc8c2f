//! Plan files of the load generator: no panic, errors have a place, arrivals are in order.
#![no_main]

#[path = "../src/load.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::plan(data));
