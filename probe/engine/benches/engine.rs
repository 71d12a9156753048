//! Throughput and memory of the engine with the observations of a busy node. It prints results and checks nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use probe_engine::{
    Actor, ApiTarget, BootTime, ClientRole, CniConfig, CniEnd, CniStart, ConfContent, ConfFile, Config,
    Connect, ConnectEnd, Engine, Host, Line, Link, Observation, Pod, Role, TargetKind,
};

const SECOND: u64 = 1_000_000_000;
/// Observations of a run: three minutes at 10,000 per second, the rate of the memory budget.
const EVENTS: u64 = 2_000_000;
/// Recorded lines per second of a busy node. The real node of the end-to-end tests has 16, most of them caused by the test.
const LINES_A_SECOND: u64 = 100;

/// Counts the bytes that are allocated, and their maximum.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    let to: SocketAddr = "10.0.0.1:6443".parse().expect("an address");
    for (name, failing) in [("a healthy node", false), ("with a fault that stays", true)] {
        speed(name, failing, to);
        memory(name, failing, to);
    }
    hour(to);
}

/// Prints the memory that is in use after 10,000 observations per second, and its maximum.
fn memory(name: &str, failing: bool, to: SocketAddr) {
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let mut engine = engine(to, failing);
    for n in 0..EVENTS / 4 {
        engine.observe(BootTime(3600 * SECOND + n * 100_000), observation(u32::try_from(n).unwrap_or(0), to));
        while engine.poll_effect().is_some() {}
    }
    let [kept, most] = [&NOW, &MOST].map(|bytes| bytes.load(Ordering::Relaxed).saturating_sub(before) / 1024);
    println!("{name}: {kept} KiB kept, {most} KiB at the most");
}

/// Prints how long an hour of recorded lines takes, parsed as by `probe replay`.
fn hour(to: SocketAddr) {
    let line = |n: u64| {
        let at = BootTime(3600 * SECOND + n * SECOND / LINES_A_SECOND);
        let observation = observation(u32::try_from(n).unwrap_or(0), to);
        serde_json::to_string(&Line { at, observation }).expect("a line")
    };
    let lines: Vec<_> = (0..3600 * LINES_A_SECOND).map(line).collect();
    let started = Instant::now();
    let mut engine = engine(to, false);
    for line in &lines {
        let line: Line = serde_json::from_str(line).expect("a line");
        engine.observe(line.at, line.observation);
        while engine.poll_effect().is_some() {}
    }
    println!("an hour of {} lines: {:.2} s", lines.len(), started.elapsed().as_secs_f32());
}

fn speed(name: &str, failing: bool, to: SocketAddr) {
    let mut engine = engine(to, failing);
    let observations: Vec<_> = (0..1000).map(|n| observation(n, to)).collect();
    let started = Instant::now();
    let mut effects = 0;
    for n in 0..EVENTS {
        let index = usize::try_from(n % 1000).unwrap_or(0);
        engine.observe(BootTime(3600 * SECOND + n * 100_000), observations[index].clone());
        while engine.poll_effect().is_some() {
            effects += 1;
        }
    }
    let rate = u128::from(EVENTS) * 1_000_000_000 / started.elapsed().as_nanos().max(1);
    println!("{name}: {rate} observations/s, {effects} effects");
}

fn engine(to: SocketAddr, failing: bool) -> Engine {
    let start = BootTime(3599 * SECOND);
    let mut engine = Engine::new(Config::default(), start);
    let network = ConfContent::Network { network: "pods".into(), plugins: vec!["calico".into()] };
    let file = ConfFile { name: "10-calico.conflist".into(), size: 1, content: network };
    let config = CniConfig {
        dir: "/etc/cni/net.d".into(),
        files: if failing { vec![] } else { vec![file] },
        ..CniConfig::default()
    };
    let addresses = vec![IpAddr::from([10, 0, 0, 9])];
    for observation in [
        Observation::Host(Host { role: Role::Worker, addresses, ..Host::default() }),
        Observation::ApiTarget(ApiTarget {
            addr: to,
            kind: TargetKind::Direct,
            source: String::new(),
            name: None,
            proxy: None,
        }),
        Observation::CniConfig(config),
        Observation::SnapshotDone,
    ] {
        engine.observe(start, observation);
    }
    engine
}

/// Of ten events six are connects, two are links and two a plugin's run.
fn observation(n: u32, to: SocketAddr) -> Observation {
    let start = CniStart {
        pid: n,
        command: "ADD".into(),
        plugin: "calico".into(),
        container_id: format!("c{n}"),
        pod: Some(Pod { namespace: "shop".into(), name: format!("web-{}", n % 110), uid: String::new() }),
        ..CniStart::default()
    };
    match n % 10 {
        0..6 => Observation::Connect(Connect {
            client: Actor { pid: 812, name: "kubelet".into() },
            role: ClientRole::Kubelet,
            host_netns: true,
            to,
            via: None,
            took_ns: 1_000_000,
            end: ConnectEnd { established: true, ..ConnectEnd::default() },
        }),
        6..8 => Observation::Link(Link {
            index: n,
            name: format!("cali{n}"),
            link_kind: "veth".into(),
            present: true,
            up: true,
            netns: None,
            peer_netns: None,
            moved_to: None,
        }),
        8 => Observation::CniStart(CniStart { pid: n + 1, ..start }),
        _ => Observation::CniEnd(CniEnd { start, took_ns: 30_000_000, ..CniEnd::default() }),
    }
}
