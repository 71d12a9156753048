//! What must hold whatever comes in.

use std::net::{IpAddr, SocketAddr};

use probe_engine::{
    Actor, ApiTarget, ClientRole, CniConfig, CniEnd, CniError, CniStart, ConditionType, ConfContent,
    ConfFile, Config, Connect, ConnectEnd, Effect, Engine, ExitStatus, Gap, Host, Icmp, Link, Listener, Lost,
    Mono, Observation, Pod, Process, ProcessClass, ProcessEvent, Report, Role, Route, RouteGone, Sandbox,
    Scope, Status, Step, StepKind, TargetKind, limits,
};
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;
const ROLES: [ClientRole; 3] = [ClientRole::Kubelet, ClientRole::CniAgent, ClientRole::Probe];
const SCOPES: [Scope; 4] = [Scope::Sockets, Scope::Cni, Scope::Processes, Scope::Links];

fn addr(index: usize) -> SocketAddr {
    ["10.0.0.1:6443", "127.0.0.1:6443", "10.96.0.1:443", "[fd00::1]:6443"][index % 4]
        .parse()
        .expect("an address")
}

fn config(kind: usize) -> CniConfig {
    let network =
        ConfContent::Network { network: "pods".into(), plugins: vec!["bridge".into(), "host-local".into()] };
    let file = |name: &str, content| ConfFile { name: name.into(), size: 1, content };
    let files = match kind % 3 {
        0 => vec![file("10-pods.conflist", network)],
        1 => vec![],
        _ => vec![file("00-bad.conf", ConfContent::Invalid { why: "it is empty".into() })],
    };
    let missing_plugins = if kind >= 3 { vec!["bridge".into()] } else { vec![] };
    CniConfig { dir: "/etc/cni/net.d".into(), files, missing_plugins, ..CniConfig::default() }
}

fn add(plugin: &str, fails: bool, msg: &str) -> Observation {
    let start = CniStart { command: "ADD".into(), plugin: plugin.into(), ..CniStart::default() };
    let exit = ExitStatus { code: u8::from(fails), signal: 0 };
    let error = fails.then(|| CniError { code: 999, msg: msg.into(), details: String::new() });
    Observation::CniEnd(CniEnd {
        start,
        took_ns: 1,
        exit,
        error,
        delegates: vec![],
        refusals: vec![],
        sockets: vec![],
    })
}

fn connect(to: usize, role: ClientRole, host_netns: bool, took_ns: u64, end: ConnectEnd) -> Observation {
    Observation::Connect(Connect {
        client: Actor::default(),
        role,
        host_netns,
        to: addr(to),
        via: None,
        took_ns,
        end,
    })
}

prop_compose! {
    fn ends()(
        established in any::<bool>(), early_errno in prop::sample::select(vec![0, 0, 0, 1, 13, 99, 101, 113]),
        sk_err in prop::sample::select(vec![0, 13, 101, 110, 111, 113, 9999]), sk_err_soft in prop::sample::select(vec![0, 111]),
        rst in any::<bool>(), by_caller in any::<bool>(), retransmits in 0..4_u32, neighbour_failed in any::<bool>(),
        icmp in prop::option::of((0..5_u8, 0..16_u8, any::<bool>())),
        dropped in prop::sample::select(vec![None, Some("NETFILTER_DROP"), Some("NEIGH_FAILED"), Some("unknown")]),
    ) -> ConnectEnd {
        let icmp = icmp.map(|(icmp_type, code, v6)| Icmp { v6, icmp_type, code, from: Some(IpAddr::from([10, 0, 0, 9])) });
        let dropped = dropped.map(String::from);
        ConnectEnd { established, early_errno, sk_err, sk_err_soft, rst, by_caller, retransmits, icmp, dropped, neighbour_failed }
    }
}

fn observations() -> impl Strategy<Value = Observation> {
    let roles = [Role::Unknown, Role::Worker, Role::ControlPlane];
    prop_oneof![
        prop::sample::select(roles.to_vec()).prop_map(|role| Observation::Host(Host {
            role,
            addresses: vec![IpAddr::from([10, 0, 0, 9])],
            ..Host::default()
        })),
        (0..4_usize, any::<bool>()).prop_map(|(index, service)| Observation::ApiTarget(ApiTarget {
            addr: addr(index),
            kind: if service { TargetKind::Service } else { TargetKind::Direct },
            source: String::new(),
            name: None,
        })),
        (0..4_usize, 0..3_usize, any::<bool>(), 0..5 * SECOND, ends())
            .prop_map(|(to, role, host, took, end)| connect(to, ROLES[role], host, took, end)),
        (0..4_usize, any::<bool>()).prop_map(|(index, up)| Observation::Listener(Listener {
            local: addr(index),
            up,
            process: Actor::default(),
            host_netns: true
        })),
        (0..4_usize, prop::sample::select(vec![0, 101]))
            .prop_map(|(index, errno)| Observation::Route(Route { to: addr(index).ip(), errno })),
        (0..6_usize).prop_map(|kind| Observation::CniConfig(config(kind))),
        (any::<bool>(), "\\PC{0,40}").prop_map(|(fails, msg)| add("bridge", fails, &msg)),
        (0..4_usize, 1..1000_u64).prop_map(|(scope, count)| Observation::Lost(Lost {
            hook: "h".into(),
            scope: SCOPES[scope],
            count,
            left_out: count % 2 == 0
        })),
        (0..4_usize).prop_map(|scope| Observation::Reread { scope: SCOPES[scope] }),
        any::<bool>().prop_map(|blind| Observation::Gap(Gap {
            signal: "cni.exec".into(),
            why: "w".into(),
            blind
        })),
        Just(Observation::SnapshotDone),
    ]
}

/// The same, and what no cure in these tests takes back.
fn anything() -> impl Strategy<Value = Observation> {
    let classes = [ProcessClass::Kubelet, ProcessClass::Etcd, ProcessClass::CniAgent, ProcessClass::Runtime];
    let names = ["kubelet", "etcd", "calico-node", "containerd"];
    let event = prop_oneof![
        Just(ProcessEvent::Started),
        Just(ProcessEvent::Found),
        (0..3_u8, prop::sample::select(vec![0, 9, 15]), any::<bool>()).prop_map(|(code, signal, oom)| {
            ProcessEvent::Exited { exit: ExitStatus { code, signal }, sender: None, sent: 0, oom }
        }),
    ];
    let pods = || Some(Pod { namespace: "shop".into(), name: "web-1".into(), uid: String::new() });
    prop_oneof![
        4 => observations(),
        1 => (0..4_usize, 1..4_u32, event).prop_map(move |(index, pid, event)| Observation::Process(Process {
            process: Actor { pid, name: names[index].into() },
            class: classes[index],
            event,
        })),
        1 => (1..4_u32, prop::sample::select(vec!["bridge", "calico"])).prop_map(|(pid, plugin)| {
            Observation::CniStart(CniStart { pid, command: "ADD".into(), plugin: plugin.into(), ..CniStart::default() })
        }),
        1 => (any::<bool>(), prop::sample::select(vec!["cni0", "eth0"])).prop_map(|(back, device)| {
            let process = Actor { pid: 9, name: "ip".into() };
            let (object, device) = ("10.244.0.0/16".into(), device.into());
            Observation::RouteGone(RouteGone { process, rule: false, object, device, back })
        }),
        1 => (0..9_u32, any::<bool>(), 1..100 * SECOND).prop_map(move |(id, del, took_ns)| {
            let step = |step| Step { after_ns: 1, step, what: String::new(), ok: true, took_ns: 1 };
            let del = del.then(|| step(StepKind::Del));
            let steps = [step(StepKind::Add)].into_iter().chain(del).collect();
            let container_id = format!("c{id}");
            Observation::Sandbox(Sandbox { container_id, pod: pods(), added: true, ok: true, took_ns, steps, netns: 1 })
        }),
        1 => any::<bool>().prop_map(|present| Observation::Link(Link {
            index: 7, name: "cali0".into(), link_kind: "veth".into(), present, up: true, netns: None,
            peer_netns: None, moved_to: None,
        })),
    ]
}

fn sequences() -> impl Strategy<Value = Vec<(u64, Observation)>> {
    // Times are deltas, some of them backwards by up to the width of the reorder window.
    prop::collection::vec((0..8 * SECOND, observations()), 0..60)
}

/// Feeds a sequence as the agent does; answers with every condition that was announced, and the end.
fn feed(
    engine: &mut Engine,
    start: u64,
    sequence: &[(u64, Observation)],
    mut each: impl FnMut(Mono, &Effect),
) -> Mono {
    let mut at = Mono(start);
    for (delta, observation) in sequence {
        let next = at.plus(*delta);
        pass(engine, next, &mut each);
        at = next;
        engine.observe(at, observation.clone());
        while let Some(effect) = engine.poll_effect() {
            each(at, &effect);
        }
    }
    at
}

fn pass(engine: &mut Engine, until: Mono, mut each: impl FnMut(Mono, &Effect)) {
    let mut turns = 0;
    while let Some(deadline) = engine.next_deadline().filter(|deadline| *deadline < until) {
        engine.tick(deadline);
        while let Some(effect) = engine.poll_effect() {
            each(deadline, &effect);
        }
        turns += 1;
        assert!(turns < 10_000, "the engine asks to be woken again and again");
    }
}

fn small(report: &Report) {
    assert!(report.evidence.len() <= limits::EVIDENCE && report.gaps.len() <= limits::GAPS);
    let findings = [&report.because, &report.consequences, &report.also];
    for finding in findings.into_iter().flatten().chain([&report.verdict]) {
        assert!(finding.message.len() <= limits::MESSAGE, "{}", finding.message);
        assert!(!finding.message.contains('\n') && finding.subject.len() <= limits::SUBJECT);
    }
    for condition in &report.conditions {
        assert!(condition.message.len() <= limits::MESSAGE);
    }
}

/// Everything that was wrong is right again.
fn cure(engine: &mut Engine, from: Mono) -> Mono {
    let mut cure =
        vec![Observation::SnapshotDone, Observation::CniConfig(config(0)), add("bridge", false, "")];
    cure.push(Observation::ApiTarget(ApiTarget {
        addr: addr(0),
        kind: TargetKind::Direct,
        source: String::new(),
        name: None,
    }));
    cure.extend(SCOPES.map(|scope| Observation::Reread { scope }));
    for index in 0..4 {
        let (local, to) = (addr(index), addr(index).ip());
        cure.push(Observation::Listener(Listener {
            local,
            up: true,
            process: Actor::default(),
            host_netns: true,
        }));
        cure.push(Observation::Route(Route { to, errno: 0 }));
        for role in ROLES {
            cure.push(connect(
                index,
                role,
                true,
                1,
                ConnectEnd { established: true, ..ConnectEnd::default() },
            ));
        }
    }
    let cure: Vec<_> = cure.into_iter().map(|observation| (1, observation)).collect();
    let end = feed(engine, from.0, &cure, |_, _| {});
    let later = end.plus(60 * SECOND);
    pass(engine, later, |_, _| {});
    later
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn nothing_panics_and_reports_stay_small(sequence in sequences()) {
        let mut engine = Engine::new(Config::default(), Mono(SECOND));
        feed(&mut engine, SECOND, &sequence, |_, effect| if let Effect::Verdict(report) = effect { small(report) });
        small(&engine.report());
    }

    /// Most of what is told changes nothing and is not judged: that must never be seen.
    #[test]
    fn what_is_not_judged_changes_nothing(sequence in prop::collection::vec((0..8 * SECOND, anything()), 0..60)) {
        let mut engine = Engine::new(Config::default(), Mono(SECOND));
        let mut at = Mono(SECOND);
        for (delta, observation) in sequence {
            let next = at.plus(delta);
            pass(&mut engine, next, |_, _| {});
            at = next;
            engine.observe(at, observation.clone());
            while engine.poll_effect().is_some() {}
            small(&engine.report());
            let mut judged = engine.clone();
            judged.tick(at);
            let (said, judged) = (engine.report(), judged.report());
            let key = |report: &Report| (report.status, report.because.clone(), report.consequences.clone(), report.also.clone());
            prop_assert_eq!(key(&said), key(&judged), "after {:?}", observation);
            prop_assert_eq!(said.verdict.reason, judged.verdict.reason);
            prop_assert_eq!(said.verdict.message, judged.verdict.message);
        }
    }

    #[test]
    fn the_same_input_gives_the_same_output(sequence in sequences()) {
        let run = || {
            let mut engine = Engine::new(Config::default(), Mono(SECOND));
            let mut said = Vec::new();
            feed(&mut engine, SECOND, &sequence, |at, effect| said.push((at, effect.clone())));
            said
        };
        prop_assert_eq!(run(), run());
    }

    #[test]
    fn a_condition_changes_at_most_once_in_ten_seconds_and_time_never_runs_back(sequence in sequences()) {
        let mut engine = Engine::new(Config::default(), Mono(SECOND));
        let mut last: [Option<(Status, Mono)>; 2] = [None, None];
        feed(&mut engine, SECOND, &sequence, |at, effect| {
            if let Effect::Condition(condition) = effect {
                let slot = &mut last[usize::from(condition.condition == ConditionType::APIServerReachable)];
                assert!(condition.since <= at);
                if let Some((status, since)) = *slot && status != condition.status {
                    assert!(condition.since.since(since) >= 10 * SECOND || since == Mono(SECOND), "{condition:?} after {since:?}");
                    assert!(condition.since >= since);
                }
                *slot = Some((condition.status, condition.since));
            }
        });
    }

    #[test]
    fn everything_heals(sequence in sequences()) {
        let mut engine = Engine::new(Config::default(), Mono(SECOND));
        let end = feed(&mut engine, SECOND, &sequence, |_, _| {});
        let healed = cure(&mut engine, end);
        let report = engine.report();
        prop_assert_eq!(report.status, Status::True, "{:#?}", report);
        prop_assert!(report.conditions.iter().all(|condition| condition.status == Status::True), "{:?} {:#?}", healed, report);
    }

    /// Without the beginning of a story the engine may know less, but what it says to be false has failed in what it heard.
    #[test]
    fn a_lost_beginning_never_makes_a_fault(sequence in sequences(), cut in 0..60_usize) {
        let heard = &sequence[cut.min(sequence.len())..];
        let is_bad = |observation: &Observation| match observation {
            Observation::Connect(connect) => !connect.end.established,
            Observation::CniConfig(config) => config.files.is_empty() || !config.missing_plugins.is_empty()
                || !matches!(config.files[0].content, ConfContent::Network { .. }),
            Observation::CniEnd(end) => !end.exit.success(),
            Observation::Route(route) => route.errno != 0,
            // The absence of a listener is a fact of a complete state.
            Observation::Host(host) => host.role == Role::ControlPlane,
            _ => false,
        };
        let mut engine = Engine::new(Config::default(), Mono(SECOND));
        feed(&mut engine, SECOND, heard, |_, _| {});
        if engine.report().status == Status::False {
            prop_assert!(heard.iter().any(|(_, observation)| is_bad(observation)), "{:#?}", engine.report());
        }
    }
}
