//! A kubeconfig.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| probe::fuzz::kubeconfig(bytes));
