//! How fast the engine is, and how much memory it takes, beside what it is told on a busy node.
//!
//! Not a test: it prints, and nothing depends on the machine.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use probe_engine::{
    Actor, ApiTarget, ClientRole, CniConfig, CniEnd, CniStart, ConfContent, ConfFile, Config, Connect,
    ConnectEnd, Engine, Host, Link, Mono, Observation, Pod, Role, TargetKind,
};

const SECOND: u64 = 1_000_000_000;
/// An hour of a busy node: 10,000 events a second is what the budget names for memory.
const EVENTS: u64 = 2_000_000;

fn main() {
    let to: SocketAddr = "10.0.0.1:6443".parse().expect("an address");
    for (name, failing) in [("a healthy node", false), ("with a fault that stays", true)] {
        let mut engine = engine(to, failing);
        let told: Vec<_> = (0..1000).map(|n| observation(n, to)).collect();
        let started = Instant::now();
        let mut effects = 0;
        for n in 0..EVENTS {
            let index = usize::try_from(n % 1000).unwrap_or(0);
            engine.observe(Mono(3600 * SECOND + n * 100_000), told[index].clone());
            while engine.poll_effect().is_some() {
                effects += 1;
            }
        }
        let took = started.elapsed();
        let rate = u128::from(EVENTS) * 1_000_000_000 / took.as_nanos().max(1);
        println!("{name}: {rate} observations/s, {effects} effects");
    }
}

fn engine(to: SocketAddr, failing: bool) -> Engine {
    let start = Mono(3599 * SECOND);
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
        pod: Some(Pod { namespace: "shop".into(), name: format!("web-{}", n % 110) }),
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
