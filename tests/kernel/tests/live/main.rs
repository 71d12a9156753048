//! The product on a real kernel, with real faults. One program, so that no test waits for those of another file.
//! All of it needs root.

mod configuration;
mod connections;
mod faults;
mod links;
mod names;
mod ovs;
mod plugins;
mod resources;
mod signals;
