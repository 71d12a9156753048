//! Datagrams of the kernel.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| probe::fuzz::netlink(bytes));
