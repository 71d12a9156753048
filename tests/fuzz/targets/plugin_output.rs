//! What a plugin writes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| probe::fuzz::plugin_output(bytes));
