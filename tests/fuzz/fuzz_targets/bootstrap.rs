//! cargo +nightly fuzz run bootstrap seeds/bootstrap
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../src/bootstrap.rs"]
mod bootstrap;

fuzz_target!(|data: &[u8]| bootstrap::bootstrap(data));
