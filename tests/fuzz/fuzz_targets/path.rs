//! Paths: no panic, and what is canonical stays so.
#![no_main]

#[path = "../src/codec.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::path(data));
