//! First bytes of a connection: no panic, one verdict wherever they are cut. cargo +nightly fuzz run client_hello seeds/client_hello
#![no_main]

#[path = "../src/client_hello.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::check(data));
