//! Which of several container runtimes serves the kubelet: the one that listens on its endpoint.

use std::collections::BTreeSet;
use std::fs;

use probe_engine::{Actor, is_same_path};

use super::processes;

/// It serves CRI by dockerd, and that by a containerd of its own: all three matter.
const BY_OTHERS: &str = "cri-dockerd";
/// `__SO_ACCEPTCON`, include/linux/net.h: the socket listens.
const LISTENS: u32 = 1 << 16;

/// Returns those of these runtimes that the kubelet does not use; none where its runtime is not known.
pub(super) fn unused(endpoint: Option<&str>, runtimes: &[Actor]) -> BTreeSet<u32> {
    let Some(endpoint) = endpoint.filter(|_| runtimes.len() > 1) else { return BTreeSet::new() };
    // Of this process' network namespace, which is the host's.
    let table = fs::read_to_string("/proc/self/net/unix").unwrap_or_default();
    let inodes: BTreeSet<_> = table.lines().filter_map(|line| listener(line, endpoint)).collect();
    let serves = |runtime: &&Actor| processes::sockets_of(runtime.pid).any(|inode| inodes.contains(&inode));
    let (serving, others): (Vec<_>, Vec<_>) = runtimes.iter().partition(serves);
    if serving.is_empty() || serving.iter().any(|runtime| runtime.name == BY_OTHERS) {
        return BTreeSet::new();
    }
    others.into_iter().map(|runtime| runtime.pid).collect()
}

/// The inode number of a socket that listens at `path`: `Num RefCount Protocol Flags Type St Inode Path`.
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
    fn only_sockets_that_listen_at_the_path_count() {
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
    fn a_runtime_beside_the_one_that_listens_is_unused() {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("runtime.sock");
        let path = socket.to_str().expect("a text");
        let own = std::process::id();
        let (serves, other) =
            (runtime(own, "containerd"), runtime(std::os::unix::process::parent_id(), "dockerd"));
        let both = [serves.clone(), other.clone()];
        // Nobody listens yet: any of them may be the kubelet's.
        assert!(unused(Some(path), &both).is_empty());
        let _listener = UnixListener::bind(&socket).expect("bound");
        assert_eq!(unused(Some(path), &both), BTreeSet::from([other.pid]));
        assert!(unused(None, &both).is_empty() && unused(Some(path), &[serves]).is_empty());
        assert!(unused(Some(path), &[runtime(own, BY_OTHERS), other]).is_empty());
    }
}
