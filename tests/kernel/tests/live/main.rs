//! Tests of the product on the running kernel, with real faults. They are one test binary, so that tests of all files
//! run in parallel. All of them require root.

mod agents;
mod attacks;
mod blocked;
mod configuration;
mod connections;
mod faults;
mod links;
mod names;
mod ovs;
mod plugins;
mod privileges;
mod proxy;
mod resources;
mod secrets;
mod signals;
mod untrusted;
