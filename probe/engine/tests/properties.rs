//! Properties that hold for every input.

use std::net::{IpAddr, SocketAddr};

use probe_engine::{
    Actor, Answer, ApiTarget, BootTime, ClientRole, CniConfig, CniEnd, CniError, CniStart, Condition,
    ConditionType, ConfContent, ConfFile, Config, Connect, ConnectEnd, Connection, CredentialAnswer, Cri,
    CriAnswer, CriStatus, Effect, Engine, ExitStatus, Gap, Host, Icmp, Limit, Link, Listener, Lost,
    NameFailure, NameLookup, Observation, PluginFile, Pod, Process, ProcessClass, ProcessEvent, Reason,
    Remembered, Report, Role, Route, RouteGone, Sandbox, Scope, Side, Status, Step, StepKind, Stuck,
    StuckHow, TargetKind, Untrusted, UnusablePlugin, limits,
};
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;
const SOCKET: &str = "/run/containerd/containerd.sock";
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
    let (plugin, path, why) = ("host-local".into(), "/opt/cni/bin/host-local".into(), "is empty".into());
    let unusable_plugins = if kind >= 6 { vec![UnusablePlugin { plugin, path, why }] } else { vec![] };
    let dir = "/etc/cni/net.d".into();
    CniConfig { dir, files, missing_plugins, unusable_plugins, ..CniConfig::default() }
}

/// An attempt to start a pod: the plugins that were run for it, and whether each succeeded. The sandbox is removed at
/// once.
fn attempt(container: u32, uid: u32, adds: &[(&str, bool)]) -> Observation {
    let step = |step, what: &str, ok| Step { after_ns: 1, step, what: what.into(), ok, took_ns: 1 };
    let adds = adds.iter().map(|(plugin, ok)| step(StepKind::Add, plugin, *ok));
    Observation::Sandbox(Sandbox {
        container_id: format!("c{container}"),
        pod: Some(Pod { namespace: "shop".into(), name: "web-1".into(), uid: format!("u{uid}") }),
        added: true,
        ok: true,
        took_ns: SECOND,
        steps: adds.chain([step(StepKind::Del, "bridge", true)]).collect(),
        netns: 1,
    })
}

/// A request of the kubelet without a response for `unanswered_ns`; 0 is a response in time.
fn request(to: usize, unanswered_ns: u64) -> Observation {
    Observation::Connection(Connection {
        role: ClientRole::Kubelet,
        host_netns: true,
        to: addr(to),
        received: 9000,
        acked: 3000,
        unanswered_ns,
        unanswered_bytes: if unanswered_ns > 0 { 600 } else { 0 },
        client: Actor::default(),
        age_ns: 1,
        ended: false,
        by_peer: false,
        rst: false,
        sk_err: 0,
        unacked_ns: 0,
    })
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

fn lookup(failure: Option<NameFailure>) -> NameLookup {
    NameLookup { name: "api.example.com".into(), resolver: "10.0.0.2:53".into(), failure, proxy: None }
}

fn cri(answer: CriAnswer) -> Observation {
    Observation::Cri(Cri { socket: SOCKET.into(), answer })
}

fn serves(not_ready: Option<&str>, network_not_ready: Option<&str>, config_load: Option<&str>) -> CriAnswer {
    let text = |text: Option<&str>| text.map(String::from);
    CriAnswer::Serves(CriStatus {
        runtime: "containerd 2.1.9".into(),
        api: "v1".into(),
        not_ready: text(not_ready),
        network_not_ready: text(network_not_ready),
        config_load: text(config_load),
        sandbox_image: None,
    })
}

fn observations() -> impl Strategy<Value = Observation> {
    let roles = [Role::Unknown, Role::Worker, Role::ControlPlane];
    prop_oneof![
        prop::sample::select(roles.to_vec()).prop_map(|role| Observation::Host(Host {
            role,
            addresses: vec![IpAddr::from([10, 0, 0, 9])],
            runtime_endpoint: Some(SOCKET.into()),
            ..Host::default()
        })),
        (0..4_usize, any::<bool>()).prop_map(|(index, service)| Observation::ApiTarget(ApiTarget {
            addr: addr(index),
            kind: if service { TargetKind::Service } else { TargetKind::Direct },
            source: String::new(),
            name: None,
            proxy: (index == 3).then(|| "http://p:3128".into()),
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
        prop::option::of(prop::sample::select(vec![NameFailure::NoSuchName, NameFailure::Silent]))
            .prop_map(|failure| Observation::NameLookup(lookup(failure))),
        prop::sample::select(vec![
            serves(None, None, Some("OK")),
            serves(None, Some("NetworkPluginNotReady: x"), None),
            serves(None, Some("NetworkPluginNotReady: x"), Some("OK")),
            serves(Some("x"), None, None),
            CriAnswer::Unreachable { errno: 111 },
            CriAnswer::Unimplemented { disabled_by: None },
            CriAnswer::Silent,
            CriAnswer::Fails { why: "x".into() },
        ])
        .prop_map(cri),
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

/// All of [`observations`], and observations that [`cured`] does not revert.
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
        1 => (6..9_usize).prop_map(|kind| Observation::CniConfig(config(kind))),
        1 => (0..9_u32, 0..2_u32, prop::collection::vec((prop::sample::select(vec!["loopback", "bridge", "portmap"]), any::<bool>()), 0..4))
            .prop_map(|(container, uid, adds)| attempt(container, uid, &adds)),
        1 => (0..4_usize, prop::sample::select(vec![0, 3, 7, 20])).prop_map(|(to, seconds)| request(to, seconds * SECOND)),
        1 => (0..4_usize, prop::sample::select(vec![200, 401, 429, 500]), prop::option::of(prop::sample::select(vec![200, 500])))
            .prop_map(|(to, status, etcd)| Observation::Answer(Answer {
                to: addr(to), certificate: None, tls: None, status: Some(status), failing: vec![], etcd,
                untrusted: None, kubelet: None,
            })),
        1 => (0..4_usize, any::<bool>(), any::<bool>(), prop::option::of(prop::sample::select(vec![200, 401, 403, 429])))
            .prop_map(|(to, untrusted, served, status)| Observation::Answer(Answer {
                to: addr(to), certificate: None, tls: None, status: Some(200), failing: vec![], etcd: None,
                untrusted: untrusted.then(|| Untrusted {
                    file: "/etc/kubernetes/kubelet.conf".into(), issuer: "CN=other".into(), kubelet_served: served,
                }),
                kubelet: status.map(|status| CredentialAnswer {
                    file: "/var/lib/kubelet/pki/kubelet-client-current.pem".into(), status: Some(status), alert: None,
                    message: String::new(), own_node: served,
                }),
            })),
        1 => (1..4_u32, 0..2_usize, prop::option::of(prop::sample::select(vec![StuckHow::Stopped, StuckHow::Asleep])))
            .prop_map(move |(pid, class, how)| Observation::Stuck(Stuck {
                process: Actor { pid, name: names[class * 3].into() }, class: classes[class * 3], how, for_ns: SECOND,
            })),
        1 => (prop::sample::select(vec![2, 8, 13, 26]), any::<bool>()).prop_map(|(errno, write)| Observation::PluginFile(PluginFile {
            process: Actor { pid: 9, name: "containerd".into() }, plugin: "portmap".into(), write: write && errno == 26, errno, denied_by: None,
        })),
        1 => (0..3_u64, prop::sample::select(vec!["conntrack", "inotify", "disk"])).prop_map(|(used, what)| Observation::Limit(Limit {
            what: what.into(), class: (what == "disk").then_some(ProcessClass::Runtime), used: used * 500_000, max: 1_000_000,
            ..Limit::default()
        })),
        1 => any::<bool>().prop_map(|present| Observation::Link(Link {
            index: 7, name: "cali0".into(), link_kind: "veth".into(), present, up: true, netns: None,
            peer_netns: None, moved_to: None,
        })),
    ]
}

fn sequences() -> impl Strategy<Value = Vec<(u64, Observation)>> {
    // Times are deltas to the previous observation.
    prop::collection::vec((0..8 * SECOND, observations()), 0..60)
}

/// Feeds a sequence as the agent does, passes every effect to `each`, and returns the time of the last observation.
fn feed(
    engine: &mut Engine,
    start: u64,
    sequence: &[(u64, Observation)],
    mut each: impl FnMut(BootTime, &Effect),
) -> BootTime {
    let mut at = BootTime(start);
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

fn pass(engine: &mut Engine, until: BootTime, mut each: impl FnMut(BootTime, &Effect)) {
    let mut turns = 0;
    while let Some(deadline) = engine.next_deadline().filter(|deadline| *deadline < until) {
        engine.tick(deadline);
        while let Some(effect) = engine.poll_effect() {
            each(deadline, &effect);
        }
        turns += 1;
        assert!(turns < 10_000, "the engine repeats its deadlines without end");
    }
}

fn assert_bounded(report: &Report) {
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

/// Observations of a healthy node.
fn cured() -> Vec<(u64, Observation)> {
    let mut cure =
        vec![Observation::SnapshotDone, Observation::CniConfig(config(0)), add("bridge", false, "")];
    cure.push(Observation::ApiTarget(ApiTarget {
        addr: addr(0),
        kind: TargetKind::Direct,
        source: String::new(),
        name: None,
        proxy: None,
    }));
    cure.push(Observation::NameLookup(lookup(None)));
    cure.push(cri(serves(None, None, Some("OK"))));
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
    cure.into_iter().map(|observation| (1, observation)).collect()
}

/// Feeds the observations of a healthy node and lets 60 s pass.
fn cure(engine: &mut Engine, from: BootTime) -> BootTime {
    let end = feed(engine, from.0, &cured(), |_, _| {});
    let later = end.plus(60 * SECOND);
    pass(engine, later, |_, _| {});
    later
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn nothing_panics_and_reports_stay_small(sequence in sequences()) {
        let mut engine = Engine::new(Config::default(), BootTime(SECOND));
        feed(&mut engine, SECOND, &sequence, |_, effect| if let Effect::Verdict(report) = effect { assert_bounded(report) });
        assert_bounded(&engine.report());
    }

    /// The engine does not judge after observations that change nothing: the report must be the same as with judgement.
    #[test]
    fn skipped_judgement_does_not_change_the_report(sequence in prop::collection::vec((0..8 * SECOND, anything()), 0..60)) {
        let mut engine = Engine::new(Config::default(), BootTime(SECOND));
        let mut at = BootTime(SECOND);
        for (delta, observation) in sequence {
            let next = at.plus(delta);
            pass(&mut engine, next, |_, _| {});
            at = next;
            engine.observe(at, observation.clone());
            while engine.poll_effect().is_some() {}
            assert_bounded(&engine.report());
            let mut judged = engine.clone();
            judged.tick(at);
            let (reported, judged) = (engine.report(), judged.report());
            let key = |report: &Report| (report.status, report.because.clone(), report.consequences.clone(), report.also.clone());
            prop_assert_eq!(key(&reported), key(&judged), "after {:?}", observation);
            prop_assert_eq!(reported.verdict.reason, judged.verdict.reason);
            prop_assert_eq!(reported.verdict.message, judged.verdict.message);
        }
    }

    /// Evidence from events expires if it is not repeated. The longest interval of repetition is the kubelet's longest
    /// restart back-off.
    #[test]
    fn verdict_expires_with_its_evidence(sequence in prop::collection::vec((0..8 * SECOND, anything()), 0..60)) {
        let mut engine = Engine::new(Config::default(), BootTime(SECOND));
        let end = feed(&mut engine, SECOND, &sequence, |_, _| {});
        for (after, expired) in [
            (limits::SANDBOX_RETRY + SECOND, &[Reason::CNIPluginFailed, Reason::IPAMExhausted, Reason::SandboxImageUnavailable][..]),
            (limits::CONNECT_FAILURE + SECOND, &[
                Reason::APINameUnresolved, Reason::APITimeout, Reason::APIServerReset, Reason::APIPolicyDenied, Reason::APIServiceNotProgrammed,
                Reason::APIConnectionStalled, Reason::APITLSFailed, Reason::CredentialRefused,
            ]),
            (limits::AGENT_FAILURE + SECOND, &[Reason::RoutesRemoved, Reason::CNIBinaryBusy, Reason::ControlPlaneCrashLoop]),
        ] {
            pass(&mut engine, end.plus(after), |_, _| {});
            let report = engine.report();
            let also = report.also.iter().chain(&report.consequences);
            let mut reasons = also.map(|finding| finding.reason).chain([report.verdict.reason]);
            prop_assert!(!reasons.any(|reason| expired.contains(&reason)), "after {} s: {:#?}", after / SECOND, report);
        }
    }

    /// After any sequence, a plugin that succeeds is not a fault, and neither is an address that accepts connections.
    #[test]
    fn success_clears_failures_of_the_same_kind(sequence in prop::collection::vec((0..8 * SECOND, anything()), 0..60)) {
        let mut engine = Engine::new(Config::default(), BootTime(SECOND));
        let end = feed(&mut engine, SECOND, &sequence, |_, _| {});
        let established = || ConnectEnd { established: true, ..ConnectEnd::default() };
        let cures = (0..4).map(|to| connect(to, ClientRole::Kubelet, true, 1, established()));
        let cures: Vec<_> = cures.chain([add("bridge", false, "")]).map(|cure| (1, cure)).collect();
        let end = feed(&mut engine, end.0, &cures, |_, _| {});
        // Connects that alternate with failures are evidence of an unstable address for the length of its window.
        pass(&mut engine, end.plus(limits::UNSTABLE_WINDOW + SECOND), |_, _| {});
        let mut engine_now = engine.clone();
        feed(&mut engine_now, end.plus(limits::UNSTABLE_WINDOW + SECOND).0, &cures, |_, _| {});
        let report = engine_now.report();
        let findings: Vec<_> = report.also.iter().chain(&report.consequences).chain([&report.verdict]).collect();
        let of_plugin = findings.iter().any(|finding| finding.reason == Reason::CNIPluginFailed && finding.subject == "bridge");
        prop_assert!(!of_plugin, "{:#?}", report);
        let of_address = |reason| matches!(reason, Reason::APIServerRefused | Reason::APITimeout | Reason::APIRouteMissing);
        let unreachable = findings.iter().any(|finding| of_address(finding.reason) && !finding.message.contains("no route"));
        prop_assert!(!unreachable, "{:#?}", report);
    }

    /// An attempt in which a plugin of the network failed is not evidence against the runtime, whatever else succeeded
    /// in it.
    #[test]
    fn failed_plugin_is_never_a_runtime_fault(
        attempts in prop::collection::vec((SECOND..20 * SECOND, 0..3_u32, any::<bool>(), any::<bool>()), 1..30),
    ) {
        let mut engine = Engine::new(Config::default(), BootTime(SECOND));
        let start = [(1, Observation::SnapshotDone), (1, Observation::CniConfig(config(0)))];
        let mut at = feed(&mut engine, SECOND, &start, |_, _| {});
        for (number, (delta, uid, chained, loopback)) in (0..).zip(&attempts) {
            let failed = if *chained { vec![("bridge", true), ("portmap", false)] } else { vec![("bridge", false)] };
            let adds: Vec<_> = loopback.then_some(("loopback", true)).into_iter().chain(failed).collect();
            let ends = adds.iter().map(|(plugin, ok)| (1, add(plugin, !ok, "it is broken")));
            let observations: Vec<_> = [(*delta, Observation::SnapshotDone)].into_iter().chain(ends)
                .chain([(1, attempt(number, *uid, &adds))]).collect();
            at = feed(&mut engine, at.0, &observations, |_, effect| if let Effect::Verdict(report) = effect {
                let findings = report.consequences.iter().chain(&report.also).chain([&report.verdict]);
                for finding in findings {
                    assert_ne!(finding.reason.side(), Side::Runtime, "{report:#?}");
                }
            });
        }
    }

    #[test]
    fn same_input_gives_same_output(sequence in sequences()) {
        let run = || {
            let mut engine = Engine::new(Config::default(), BootTime(SECOND));
            let mut effects = Vec::new();
            feed(&mut engine, SECOND, &sequence, |at, effect| effects.push((at, effect.clone())));
            effects
        };
        prop_assert_eq!(run(), run());
    }

    #[test]
    fn condition_changes_at_most_once_in_ten_seconds_with_increasing_times(sequence in sequences()) {
        let mut engine = Engine::new(Config::default(), BootTime(SECOND));
        let mut last: [Option<(Status, BootTime)>; 2] = [None, None];
        feed(&mut engine, SECOND, &sequence, |at, effect| {
            if let Effect::Condition(condition) = effect {
                let slot = &mut last[usize::from(condition.condition == ConditionType::APIServerReachable)];
                assert!(condition.since <= at);
                if let Some((status, since)) = *slot && status != condition.status {
                    assert!(condition.since.since(since) >= 10 * SECOND || since == BootTime(SECOND), "{condition:?} after {since:?}");
                    assert!(condition.since >= since);
                }
                *slot = Some((condition.status, condition.since));
            }
        });
    }

    #[test]
    fn restart_does_not_shorten_hold_times(
        status in prop::sample::select(vec![Status::True, Status::False]), ago in 0..15 * SECOND, sequence in sequences(),
    ) {
        let start = BootTime(100 * SECOND);
        let since = BootTime(start.0 - ago);
        let shown = |condition| Condition { condition, status, reason: Reason::NetworkReady, message: String::new(), since };
        let mut engine = Engine::new(Config::default(), start);
        let remembered = Remembered { conditions: ConditionType::ALL.map(shown).into() };
        engine.observe(start, Observation::Remembered(remembered));
        let mut first = [None; 2];
        let everything: Vec<_> = cured().into_iter().chain(sequence).collect();
        feed(&mut engine, start.0, &everything, |at, effect| {
            if let Effect::Condition(condition) = effect && condition.status != Status::Unknown {
                let slot = &mut first[usize::from(condition.condition == ConditionType::APIServerReachable)];
                slot.get_or_insert((at, condition.status, condition.since));
            }
        });
        for (at, new, changed) in first.into_iter().flatten() {
            if new == status {
                prop_assert_eq!(changed, since);
            } else {
                let clean = if status == Status::False { start } else { since };
                prop_assert!(at == changed && at.since(since.max(clean)) >= 10 * SECOND, "{:?} at {:?}", new, at);
            }
        }
    }

    #[test]
    fn every_state_recovers(sequence in sequences()) {
        let mut engine = Engine::new(Config::default(), BootTime(SECOND));
        let end = feed(&mut engine, SECOND, &sequence, |_, _| {});
        let healed = cure(&mut engine, end);
        let report = engine.report();
        prop_assert_eq!(report.status, Status::True, "{:#?}", report);
        prop_assert!(report.conditions.iter().all(|condition| condition.status == Status::True), "{:?} {:#?}", healed, report);
    }

    /// Without the first observations the engine may know less, but a status of False always has a failure among the
    /// observations that it received.
    #[test]
    fn missing_first_observations_never_cause_a_fault(sequence in sequences(), cut in 0..60_usize) {
        let received = &sequence[cut.min(sequence.len())..];
        let is_bad = |observation: &Observation| match observation {
            Observation::Connect(connect) => !connect.end.established,
            Observation::CniConfig(config) => config.files.is_empty() || !config.missing_plugins.is_empty()
                || !matches!(config.files[0].content, ConfContent::Network { .. }),
            Observation::CniEnd(end) => !end.exit.success(),
            Observation::Route(route) => route.errno != 0,
            Observation::NameLookup(lookup) => lookup.failure.is_some(),
            Observation::Cri(cri) => !cri.answer.is_well(),
            // A missing listener follows from a complete state.
            Observation::Host(host) => host.role == Role::ControlPlane,
            _ => false,
        };
        let mut engine = Engine::new(Config::default(), BootTime(SECOND));
        feed(&mut engine, SECOND, received, |_, _| {});
        if engine.report().status == Status::False {
            prop_assert!(received.iter().any(|(_, observation)| is_bad(observation)), "{:#?}", engine.report());
        }
    }
}
