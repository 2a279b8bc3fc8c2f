//! Response heads: no panic, one meaning.
#![no_main]

#[path = "../src/codec.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::response(data));
