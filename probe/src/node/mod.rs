//! Sources that work without eBPF: the node's files, sockets, links, routes and processes.

mod accepted;
pub(crate) mod ask;
mod certificate;
pub(crate) mod cni_config;
pub(crate) mod cni_dirs;
mod cni_parse;
pub(crate) mod conf_access;
pub(crate) mod connections;
mod credentials;
pub(crate) mod cri;
mod data_dirs;
pub(crate) mod discovery;
mod endpoint;
mod errqueue;
pub(crate) mod file;
#[cfg(fuzzing)]
pub(crate) mod fuzz;
mod kubeconfig;
mod leases;
pub(crate) mod limits;
pub(crate) mod links;
pub(crate) mod names;
pub(crate) mod namespaces;
mod netlink;
pub(crate) mod ovs;
mod plugin_file;
pub(crate) mod processes;
pub(crate) mod provenance;
pub(crate) mod pulse;
pub(crate) mod role;
pub(crate) mod routes;
pub(crate) mod sockets;
mod sysctls;
pub(crate) mod targets;
mod tls;
mod trust;
