//! The filter maps of the kernel programs: which addresses, names and processes they watch.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError};
use probe_common::{
    COMM_LEN, MAX_NAMES, MAX_PROCESSES, MAX_TARGETS, NAME_OF_PLUGIN, NAME_OF_PROCESS, PORT_WORDS,
    ProcessState, TargetKey,
};

type Name = [u8; COMM_LEN];

/// include/uapi/linux/bpf.h: create a new element only.
const BPF_NOEXIST: u64 = 1;
/// include/uapi/linux/bpf.h: update an existing element only.
const BPF_EXIST: u64 = 2;

/// Handles of the filter maps.
pub(crate) struct Watch {
    ports: Array<MapData, u64>,
    targets: HashMap<MapData, [u8; size_of::<TargetKey>()], u8>,
    names: HashMap<MapData, Name, u8>,
    processes: HashMap<MapData, u32, [u8; size_of::<ProcessState>()]>,
    running: Array<MapData, u64>,
    limited: Array<MapData, u64>,
    current: BTreeSet<TargetKey>,
}

impl Watch {
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self> {
        let mut map =
            |name: &'static str| programs.take_map(name).with_context(|| format!("find the map {name}"));
        Ok(Self {
            ports: map("PORTS")?.try_into()?,
            targets: map("TARGETS")?.try_into()?,
            names: map("NAMES")?.try_into()?,
            processes: map("PROCESSES")?.try_into()?,
            running: map("CNI_RUNNING")?.try_into()?,
            limited: map("LIMITED")?.try_into()?,
            current: BTreeSet::new(),
        })
    }

    /// Has connects reported to exactly these addresses, and to these ports at any address; [`MAX_TARGETS`] in all at the most.
    /// Addresses are set first, because the set of ports is only a fast path to them.
    pub(crate) fn set_targets(&mut self, addresses: &[SocketAddr], ports: &[u16]) -> Result<()> {
        let any = ports.iter().map(|port| TargetKey { addr: [0; 16], port: *port, family: 0 });
        let wanted: BTreeSet<_> = addresses.iter().map(key).chain(any).take(MAX_TARGETS as usize).collect();
        if wanted == self.current {
            return Ok(());
        }
        for removed in self.current.difference(&wanted) {
            // It is not an error if the entry no longer exists.
            let _ = self.targets.remove(&removed.to_bytes());
        }
        for added in wanted.difference(&self.current) {
            self.targets.insert(added.to_bytes(), 1, 0).context("watch an API address")?;
        }
        let mut words = vec![0_u64; PORT_WORDS as usize];
        for target in &wanted {
            words[usize::from(target.port) / 64] |= 1 << (target.port % 64);
        }
        let changed = self.current.iter().chain(&wanted).map(|target| u32::from(target.port) / 64);
        for index in changed.collect::<BTreeSet<_>>() {
            self.ports.set(index, words[index as usize], 0).context("watch the port of an API address")?;
        }
        self.current = wanted;
        Ok(())
    }

    /// Watches processes of these names from their exec on, and plugins of these names where their environment cannot be read.
    pub(crate) fn set_names(&mut self, processes: &[Name], plugins: &[Name]) -> Result<()> {
        let mut names: BTreeMap<&Name, u8> = processes.iter().map(|name| (name, NAME_OF_PROCESS)).collect();
        for name in plugins {
            if names.len() < MAX_NAMES as usize || names.contains_key(name) {
                *names.entry(name).or_default() |= NAME_OF_PLUGIN;
            }
        }
        for (name, kind) in names {
            self.names.insert(name, kind, 0).context("watch a process name")?;
        }
        Ok(())
    }

    /// Watches a running process. Returns false if it no longer runs: an exit before it was watched is not reported.
    pub(crate) fn add_process(&mut self, pid: u32, runs: impl FnOnce() -> bool) -> Result<bool> {
        let state = ProcessState { trusted: 1, ..ProcessState::default() };
        match self.processes.insert(pid, state.to_bytes(), BPF_NOEXIST) {
            Ok(()) => {}
            // Watched since its exec: keep what the kernel programs have recorded of it, such as a pending signal.
            Err(MapError::SyscallError(error)) if error.io_error.kind() == ErrorKind::AlreadyExists => {
                return Ok(true);
            }
            Err(error) => return Err(error).context("watch a process"),
        }
        // If its entry no longer exists, its exit was reported.
        Ok(runs() || self.processes.remove(&pid).is_err())
    }

    /// Watches a running plugin, or a process that a plugin has started. Returns false if the kernel programs know it already, or
    /// if it no longer runs: an exit before it was watched is not reported.
    pub(crate) fn add_plugin(&mut self, pid: u32, runs: impl FnOnce() -> bool) -> Result<bool> {
        let state = ProcessState { cni: 1, trusted: 1, ..ProcessState::default() };
        match self.processes.insert(pid, state.to_bytes(), BPF_NOEXIST) {
            Ok(()) => {}
            Err(MapError::SyscallError(error)) if error.io_error.kind() == ErrorKind::AlreadyExists => {
                return Ok(false);
            }
            Err(error) => return Err(error).context("watch a plugin"),
        }
        self.count_plugins(|running| running + 1)?;
        // If its entry no longer exists, its exit was reported and counted.
        if !runs() && self.processes.remove(&pid).is_ok() {
            self.count_plugins(|running| running.saturating_sub(1))?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Records whether a process that was executed under a watched name at `executed_ns` is a component of the node. A
    /// component is no longer limited; any other process is removed from the table.
    pub(crate) fn identify(&mut self, pid: u32, executed_ns: u64, is_trusted: bool) -> Result<()> {
        let Ok(bytes) = self.processes.get(&pid, 0) else { return Ok(()) };
        let state = ProcessState::from_bytes(bytes);
        // The process ID belongs to a newer program, or the process is known already.
        if state.started_ns > executed_ns || state.trusted != 0 {
            return Ok(());
        }
        let changed = if is_trusted {
            // The sender of a signal that arrives between the two calls is lost.
            self.processes.insert(pid, ProcessState { trusted: 1, ..state }.to_bytes(), BPF_EXIST)
        } else {
            self.processes.remove(&pid)
        };
        match changed {
            Ok(()) => self.count_limited(|count| count.saturating_sub(1)),
            // The process has exited.
            Err(MapError::SyscallError(error)) if error.io_error.kind() == ErrorKind::NotFound => Ok(()),
            Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(error).context("watch a process"),
        }
    }

    /// Recounts the limited processes, because the counter of the kernel programs is not exact.
    pub(crate) fn recount_limited(&mut self) -> Result<()> {
        let states = self.processes.iter().flatten().take(MAX_PROCESSES as usize);
        let limited = states.filter(|(_, bytes)| ProcessState::from_bytes(*bytes).trusted == 0).count();
        self.count_limited(|_| limited as u64)
    }

    fn count_limited(&mut self, change: impl Fn(u64) -> u64) -> Result<()> {
        let count = self.limited.get(&0, 0).context("count a limited process")?;
        self.limited.set(0, change(count), 0).context("count a limited process")
    }

    /// Updates the counter of plugins without atomicity, as the kernel programs do: see `CNI_RUNNING` there.
    fn count_plugins(&mut self, change: fn(u64) -> u64) -> Result<()> {
        let running = self.running.get(&0, 0).context("count a plugin")?;
        self.running.set(0, change(running), 0).context("count a plugin")
    }

    /// Removes processes whose exit was not observed.
    pub(crate) fn forget_dead(&mut self) {
        // The limit is needed because the kernel restarts the iteration if the current key is removed meanwhile.
        let known = self.processes.keys().flatten().take(MAX_PROCESSES as usize);
        let dead: Vec<_> = known.filter(|pid| !Path::new(&format!("/proc/{pid}")).exists()).collect();
        for pid in dead {
            // It is not an error if the entry no longer exists.
            let _ = self.processes.remove(&pid);
        }
    }
}

fn key(addr: &SocketAddr) -> TargetKey {
    let mut bytes = [0; 16];
    let family = match addr.ip().to_canonical() {
        IpAddr::V4(v4) => {
            bytes[..4].copy_from_slice(&v4.octets());
            libc::AF_INET
        }
        IpAddr::V6(v6) => {
            bytes = v6.octets();
            libc::AF_INET6
        }
    };
    // Both constants are below 16.
    TargetKey { addr: bytes, port: addr.port(), family: u16::try_from(family).unwrap_or_default() }
}
