//! Determines which of several container runtimes serves the kubelet: the one that listens on its endpoint.

use std::collections::BTreeSet;
use std::fs;

use probe_engine::{Actor, is_same_path};

use super::processes;

/// A runtime that serves CRI through dockerd, which in turn uses its own containerd: all three are in use.
const CRI_DOCKERD: &str = "cri-dockerd";
/// `__SO_ACCEPTCON`, include/linux/net.h: the socket listens.
const LISTENS: u32 = 1 << 16;

/// Returns the PIDs of the runtimes that the kubelet does not use; none if its runtime is unknown.
pub(super) fn unused(endpoint: Option<&str>, runtimes: &[Actor]) -> BTreeSet<u32> {
    let Some(endpoint) = endpoint.filter(|_| runtimes.len() > 1) else { return BTreeSet::new() };
    // The agent runs in the host's network namespace.
    let table = fs::read_to_string("/proc/self/net/unix").unwrap_or_default();
    let inodes: BTreeSet<_> = table.lines().filter_map(|line| listener(line, endpoint)).collect();
    let serves = |runtime: &&Actor| processes::sockets_of(runtime.pid).any(|inode| inodes.contains(&inode));
    let (serving, others): (Vec<_>, Vec<_>) = runtimes.iter().partition(serves);
    if serving.is_empty() || serving.iter().any(|runtime| runtime.name == CRI_DOCKERD) {
        return BTreeSet::new();
    }
    others.into_iter().map(|runtime| runtime.pid).collect()
}

/// Returns the inode number of a socket that listens at `path`, from a line of `/proc/net/unix`:
/// `Num RefCount Protocol Flags Type St Inode Path`.
fn listener(line: &str, path: &str) -> Option<u32> {
    let mut fields = line.split_ascii_whitespace();
    let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
    let inode = fields.nth(2)?.parse().ok()?;
    (flags & LISTENS != 0 && is_same_path(fields.next()?, path)).then_some(inode)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn runtime(pid: u32, name: &str) -> Actor {
        Actor { pid, name: name.to_owned() }
    }

    #[test]
    fn only_a_socket_that_listens_at_the_path_is_a_listener() {
        let line =
            "0000000000000000: 00000002 00000000 00010000 0001 01 18412 /run/containerd/containerd.sock";
        assert_eq!(listener(line, "/var/run/containerd/containerd.sock"), Some(18_412));
        assert_eq!(listener(line, "/run/crio/crio.sock"), None);
        assert_eq!(listener(&line.replace("00010000", "00000000"), "/run/containerd/containerd.sock"), None);
        for other in ["Num       RefCount Protocol Flags    Type St Inode Path", "", &line[..60]] {
            assert_eq!(listener(other, "/run/containerd/containerd.sock"), None, "{other}");
        }
    }

    #[test]
    fn runtime_that_does_not_listen_on_the_endpoint_is_unused() {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("runtime.sock");
        let path = socket.to_str().expect("UTF-8");
        let own = std::process::id();
        let (serves, other) =
            (runtime(own, "containerd"), runtime(std::os::unix::process::parent_id(), "dockerd"));
        let both = [serves.clone(), other.clone()];
        // Without a listener, the kubelet may use any of them.
        assert!(unused(Some(path), &both).is_empty());
        let _listener = UnixListener::bind(&socket).expect("bound");
        assert_eq!(unused(Some(path), &both), BTreeSet::from([other.pid]));
        assert!(unused(None, &both).is_empty() && unused(Some(path), &[serves]).is_empty());
        assert!(unused(Some(path), &[runtime(own, CRI_DOCKERD), other]).is_empty());
    }
}
