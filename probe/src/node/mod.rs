//! The node without eBPF: its files, sockets, links, routes and processes, read and watched.

pub(crate) mod ask;
pub(crate) mod cni_config;
mod cni_parse;
mod file;
pub(crate) mod links;
pub(crate) mod namespaces;
pub(crate) mod processes;
pub(crate) mod role;
pub(crate) mod routes;
pub(crate) mod sockets;
pub(crate) mod targets;
