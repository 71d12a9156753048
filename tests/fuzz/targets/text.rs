//! A text that is redacted and escaped.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| probe::fuzz::text(bytes));
