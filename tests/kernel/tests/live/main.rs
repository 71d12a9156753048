//! The product on a real kernel, with real faults. One program, so that no test waits for those of another file.
//! All of it needs root.

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
