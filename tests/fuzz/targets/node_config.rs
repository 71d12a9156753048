//! Configuration files of kubelets, runtimes and resolvers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| probe::fuzz::node_config(bytes));
