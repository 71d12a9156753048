//! A response of a runtime to CRI's `Status`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| probe::fuzz::cri(bytes));
