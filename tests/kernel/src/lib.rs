//! A laboratory: a node and another host in network namespaces of their own, with real faults.
//!
//! Everything that is made here has a name that starts with `nrlab-`, is removed when it is dropped, and is
//! swept away by the next run when its maker was killed. All of it needs root, and says so.

mod agent;
mod cgroup;
mod cni;
mod netns;
mod node;
mod ovs;
mod probe;
pub mod tls;

pub use agent::{Agent, PAGES, connect};
pub use cgroup::Cgroup;
pub use cni::Sandbox;
pub use netns::{Namespace, run, spawn};
pub use node::{API, Client, Dial, ELSEWHERE, Node, PLUGINS, Server, install_plugins};
pub use ovs::OpenVSwitch;
pub use probe::{Check, Trace, Verdict, now_ns, patience, poll, poll_for, probe_binary, probe_command};
