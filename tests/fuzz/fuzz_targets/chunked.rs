//! Chunked bodies: no panic, the same wherever the input is cut.
#![no_main]

#[path = "../src/codec.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::chunked(data));
