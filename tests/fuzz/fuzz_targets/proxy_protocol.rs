//! A PROXY header: no panic, one verdict wherever it is cut, the same again once written. cargo +nightly fuzz run proxy_protocol seeds/proxy_protocol
#![no_main]

#[path = "../src/proxy_protocol.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::check(data));
