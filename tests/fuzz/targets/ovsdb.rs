//! The answer of Open vSwitch' database.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| probe::fuzz::ovsdb(bytes));
