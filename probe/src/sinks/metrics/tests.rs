use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use probe_common::Hook;
use probe_engine::{
    CniConfig, CniEnd, ConfFile, Config, Connect, ConnectEnd, Engine, ExitStatus, Icmp, Lost, NetlinkError,
    Netns, OvsUpcalls, Process, ProcessClass, Scope, Throttled, cnis,
};

use super::labels::{CLASSES, KINDS, WRITE_OUTCOMES};
use super::*;
use crate::feed::{RING_BUFFER, RTNETLINK, WATCHER};

/// Most series of one node, as `docs/verdicts.md` promises.
const MOST_SERIES: usize = 720;

/// Ends of a connect, one for each outcome that is counted.
fn ends() -> Vec<ConnectEnd> {
    let icmp = |code| Some(Icmp { v6: false, icmp_type: 3, code, from: None });
    let early = |early_errno| ConnectEnd { early_errno, ..ConnectEnd::default() };
    let error = |sk_err| ConnectEnd { sk_err, ..ConnectEnd::default() };
    vec![
        ConnectEnd { established: true, ..ConnectEnd::default() },
        ConnectEnd { rst: true, ..ConnectEnd::default() },
        ConnectEnd { icmp: icmp(3), ..ConnectEnd::default() },
        ConnectEnd { icmp: icmp(13), ..ConnectEnd::default() },
        ConnectEnd { neighbour_failed: true, ..ConnectEnd::default() },
        ConnectEnd { retransmits: 2, ..ConnectEnd::default() },
        early(libc::EPERM.unsigned_abs()),
        early(libc::ENETUNREACH.unsigned_abs()),
        early(libc::EADDRNOTAVAIL.unsigned_abs()),
        error(libc::ETIMEDOUT.unsigned_abs()),
        ConnectEnd::default(),
    ]
}

fn connects() -> impl Iterator<Item = Observation> {
    use ClientRole as Role;
    let roles = [
        Role::Kubelet,
        Role::KubeProxy,
        Role::CniAgent,
        Role::CniPlugin,
        Role::ControlPlane,
        Role::Runtime,
        Role::Probe,
        Role::Untrusted,
        Role::Other,
    ];
    let connect = |role, to: &str, end| {
        let to = to.parse().expect("an address");
        let client = probe_engine::Actor::default();
        Observation::Connect(Connect { client, role, host_netns: true, to, via: None, took_ns: 1, end })
    };
    roles.into_iter().flat_map(move |role| {
        let addresses = ["10.0.0.1:6443", "127.0.0.1:6443"];
        addresses.into_iter().flat_map(move |to| ends().into_iter().map(move |end| connect(role, to, end)))
    })
}

fn cni_operations() -> impl Iterator<Item = Observation> {
    let plugins: Vec<_> = cnis::plugins().chain(["unknown"]).collect();
    let commands = COMMANDS.into_iter().chain(["unknown"]);
    commands.flat_map(move |command| {
        plugins.clone().into_iter().flat_map(move |plugin| {
            [0, 1].map(|code| {
                let mut end = CniEnd::default();
                (end.start.command, end.start.plugin) = (command.to_owned(), plugin.to_owned());
                end.exit = ExitStatus { code, ..ExitStatus::default() };
                Observation::CniEnd(end)
            })
        })
    })
}

fn exits() -> impl Iterator<Item = Observation> {
    use ProcessClass as Class;
    let classes = [
        Class::Kubelet,
        Class::ApiServer,
        Class::Etcd,
        Class::ControlPlane,
        Class::KubeProxy,
        Class::Runtime,
        Class::CniAgent,
        Class::Ovs,
        Class::Proxy,
    ];
    assert_eq!(classes.len(), CLASSES.len());
    classes.into_iter().flat_map(|class| {
        [(0, 0, false), (1, 0, false), (0, 9, false), (0, 9, true)].map(|(code, signal, oom)| {
            let exit = ExitStatus { code, signal };
            let event = ProcessEvent::Exited { exit, sender: None, sent: 0, oom };
            Observation::Process(Process { process: probe_engine::Actor::default(), class, event })
        })
    })
}

fn node() -> Vec<Observation> {
    let netns = |up| Observation::Netns(Netns { inum: 1, up, process: probe_engine::Actor::default() });
    let upcalls = OvsUpcalls { datapath: String::new(), missed: 1, lost: 1 };
    let files = [
        ConfContent::Network { network: String::new(), plugins: Vec::new() },
        ConfContent::Invalid { why: String::new() },
        ConfContent::Unreadable { why: String::new() },
    ]
    .map(|content| ConfFile { name: String::new(), size: 0, content });
    let links = LINK_KINDS.into_iter().chain(["unknown"]).zip(1..).map(|(kind, index)| {
        let text =
            format!(r#"{{"kind":"link","index":{index},"name":"l","link_kind":"{kind}","present":true}}"#);
        serde_json::from_str(&text).expect("a link")
    });
    let mut all = vec![
        Observation::SnapshotDone,
        netns(true),
        netns(false),
        Observation::OvsUpcalls(upcalls),
        Observation::CniConfig(CniConfig { files: files.into(), ..CniConfig::default() }),
    ];
    all.extend(links);
    all.extend(
        (0..=200).map(|errno| Observation::NetlinkError(NetlinkError { errno, ..NetlinkError::default() })),
    );
    all
}

fn losses() -> impl Iterator<Item = Observation> {
    let hooks = Hook::ALL.iter().map(|hook| hook.name()).chain(LOSS_SOURCES);
    hooks.flat_map(|hook| {
        let lost = Lost { hook: hook.to_owned(), scope: Scope::Links, count: 1, left_out: false };
        let throttled = Throttled { hook: hook.to_owned(), count: 1 };
        [Observation::Lost(lost), Observation::Throttled(throttled)]
    })
}

/// The page with every combination of labels that the agent can produce.
fn every_series() -> String {
    let mut metrics = Metrics::new();
    let all = node().into_iter().chain(connects()).chain(cni_operations()).chain(exits()).chain(losses());
    for observation in all {
        metrics.observation(BootTime(0), &observation);
    }
    for kind in KINDS {
        metrics.events.get(KindLabels { kind }).inc();
    }
    for hook in Hook::ALL {
        metrics.attached.get_or_create(&HookLabels { hook: hook.name() }).set(1);
    }
    for reason in Reason::ALL {
        metrics.set_verdict(*reason);
    }
    for outcome in WRITE_OUTCOMES {
        metrics.writes().ended(outcome);
    }
    metrics.shared().text()
}

fn samples(page: &str) -> impl Iterator<Item = &str> {
    page.lines().filter(|line| !line.starts_with('#'))
}

#[test]
fn series_are_bounded_for_every_combination_of_labels() {
    let page = every_series();
    let mut families = BTreeMap::<_, usize>::new();
    for line in samples(&page) {
        *families.entry(line.split(['{', ' ']).next().unwrap_or_default()).or_default() += 1;
    }
    let count: usize = families.values().sum();
    assert!(count <= MOST_SERIES, "{count} series: {families:#?}");
    // The bound stays close to the truth.
    assert!(count + 50 > MOST_SERIES, "{count} series");
    let most = format!("at most {MOST_SERIES} series per node");
    assert!(contract().contains(&most), "docs/verdicts.md does not promise {most:?}");
}

#[test]
fn every_outcome_of_a_connect_is_counted() {
    let outcomes: BTreeSet<_> = connects()
        .filter_map(|connect| match connect {
            Observation::Connect(connect) => Some(Outcome::of(&connect, &[])),
            _ => None,
        })
        .collect();
    // These two are found on connections that were established, which are not counted here.
    let others = [Outcome::Reset, Outcome::Stalled];
    let want: BTreeSet<_> = Outcome::ALL.into_iter().filter(|outcome| !others.contains(outcome)).collect();
    assert_eq!(outcomes, want);
}

#[test]
fn only_the_first_plugins_of_a_node_have_series_of_their_own() {
    let mut plugins = Plugins::default();
    let first = ["loopback", "calico", "bandwidth", "portmap", "tuning", "flannel"];
    assert_eq!(first.map(|name| plugins.label(name)), first);
    assert_eq!(
        [plugins.label("cilium-cni"), plugins.label("x"), plugins.label("calico")],
        ["other", "other", "calico"]
    );
}

#[test]
fn losses_of_every_source_are_counted() {
    let mut metrics = Metrics::new();
    metrics.hooks(&[]);
    let links = Lost { hook: RTNETLINK.to_owned(), scope: Scope::Links, count: 1, left_out: false };
    for lost in Lost::of_any_event(RING_BUFFER, 2).into_iter().chain([links]) {
        metrics.observation(BootTime(0), &Observation::Lost(lost));
    }
    let count = |hook| metrics.lost.get_or_create(&HookLabels { hook }).get();
    assert_eq!([RING_BUFFER, RTNETLINK, WATCHER].map(count), [2, 1, 0]);
}

#[test]
fn agent_that_repeatedly_loses_events_is_not_ready() {
    let mut metrics = Metrics::new();
    let mut engine = Engine::new(Config::default(), BootTime(0));
    let shared = metrics.shared();
    let mut wrong = |engine: &Engine, at| {
        metrics.report(at, &engine.report());
        shared.ready.lock().expect("is not poisoned").wrong.get(Gap::EVENTS_LOST).cloned()
    };
    let second = |second: u64| BootTime(second * 1_000_000_000);
    for at in (0..=10).map(second) {
        assert_eq!(wrong(&engine, at), None);
        let hook = "sched_process_exec".to_owned();
        let lost = Lost { hook, scope: Scope::Processes, count: 1, left_out: false };
        engine.observe(at, Observation::Lost(lost));
        engine.observe(at, Observation::Reread { scope: Scope::Processes });
    }
    assert_eq!(
        wrong(&engine, second(10)),
        Some("events of processes and CNI runs keep being lost, for 10 s now".to_owned())
    );
    engine.tick(second(15));
    assert_eq!(wrong(&engine, second(15)), None);
}

/// Section 5 of `docs/verdicts.md`.
fn contract() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/verdicts.md");
    let text = fs::read_to_string(path).expect("docs/verdicts.md");
    let section = text.split("\n## ").find(|section| section.starts_with("5. Metrics"));
    section.expect("section 5 about metrics").to_owned()
}

/// Names of metrics as Prometheus stores them, without the suffixes of histograms: `netready_links`.
fn registered() -> BTreeSet<String> {
    let page = every_series();
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let full = |line: &str| {
        let (name, kind) = line.split_once(' ').expect("a type");
        match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        }
    };
    types.map(full).collect()
}

/// The values of each label of each metric, for every combination that the agent can produce.
fn label_values() -> BTreeMap<(String, String), BTreeSet<String>> {
    let mut values = BTreeMap::<_, BTreeSet<_>>::new();
    for line in samples(&every_series()) {
        let Some((name, rest)) = line.split_once('{') else { continue };
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
        let labels = rest.split_once('}').expect("labels end").0;
        for (label, value) in labels.split(',').filter_map(|pair| pair.split_once('=')) {
            let key = (base.unwrap_or(name).to_owned(), label.to_owned());
            values.entry(key).or_default().insert(value.trim_matches('"').to_owned());
        }
    }
    values
}

/// Words of a text that begin with `netready_`, each with what follows it.
fn names_in(text: &str) -> Vec<(&str, &str)> {
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = text.match_indices("netready_").map(|(at, _)| {
        let rest = &text[at..];
        rest.split_at(rest.find(|c| !is_name(c)).unwrap_or(rest.len()))
    });
    // The prefix alone.
    words.filter(|(name, _)| *name != "netready_").collect()
}

/// Code spans of one cell of a table.
fn spans(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn contract_names_every_metric_with_its_labels() {
    let section = contract();
    let rows = section.lines().filter(|line| line.starts_with("| `netready_"));
    let mut documented = BTreeMap::new();
    for row in rows {
        let cells: Vec<_> = row.split('|').collect();
        let name = spans(cells[1])[0].to_owned();
        let labels: BTreeSet<_> = spans(cells[2]).into_iter().map(str::to_owned).collect();
        assert!(documented.insert(name, labels).is_none(), "twice: {row}");
    }
    assert_eq!(documented.keys().cloned().collect::<BTreeSet<_>>(), registered());
    let values = label_values();
    for (name, labels) in documented {
        let of_it = values.keys().filter(|(of, label)| *of == name && label != "le");
        let found: BTreeSet<_> = of_it.map(|(_, label)| label.clone()).collect();
        assert_eq!(labels, found, "labels of {name}");
    }
}

/// A row of the second table names a label, metrics, and the values.
#[test]
fn contract_names_every_value_of_closed_labels() {
    let section = contract();
    let values = label_values();
    let mut rows = 0;
    for row in section.lines().filter(|line| line.starts_with("| `") && !line.starts_with("| `netready_")) {
        let cells: Vec<_> = row.split('|').collect();
        let want: BTreeSet<_> = spans(cells[3]).into_iter().map(str::to_owned).collect();
        for metric in spans(cells[2]) {
            let key = (metric.to_owned(), spans(cells[1])[0].to_owned());
            assert_eq!(values.get(&key), Some(&want), "{key:?}");
            rows += 1;
        }
    }
    assert!(rows >= 15, "{rows} labels");
}

#[test]
fn documentation_and_manifests_name_only_metrics_and_values_that_exist() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let listed = |dir: &str| fs::read_dir(top.join(dir)).expect("a directory").filter_map(Result::ok);
    let mut files: Vec<_> = listed("docs").chain(listed("deploy")).map(|file| file.path()).collect();
    files.push(top.join("README.md"));
    let (names, values) = (registered(), label_values());
    let mut seen = 0;
    for path in files {
        let text = fs::read_to_string(&path).expect("a text");
        for (name, rest) in names_in(&text) {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let name = base.unwrap_or(name);
            assert!(names.contains(name), "{}: no metric {name}", path.display());
            seen += 1;
            let Some(labels) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) else { continue };
            for (label, value) in labels.0.split(',').filter_map(|pair| pair.split_once('=')) {
                let known = values.get(&(name.to_owned(), label.to_owned()));
                let value = value.trim_matches(['"', '\\']);
                let is_known = known.is_some_and(|known| known.contains(value));
                assert!(is_known, "{}: no series {name}{{{label}={value}}}", path.display());
            }
        }
    }
    assert!(seen >= 25, "{seen} names");
}
