//! A test environment: a node and another host in their own network namespaces, with real faults.
//!
//! The name of everything that is created here starts with `nrlab-`. It is removed when it is dropped; what a killed
//! process left behind is removed by the next run. All of it requires root and fails with a message otherwise.

mod agent;
mod cgroup;
mod cni;
mod netns;
mod node;
mod ovs;
mod probe;
pub mod tls;

pub use agent::{Agent, HTTP_ADDRESS, connect};
pub use cgroup::Cgroup;
pub use cni::Sandbox;
pub use netns::{Namespace, run, spawn};
pub use node::{API, Client, Dial, Node, OTHER_API, PLUGINS, Server, install_plugins};
pub use ovs::OpenVSwitch;
pub use probe::{Check, Trace, Verdict, now_ns, patience, poll, poll_for, probe_binary, probe_command};
