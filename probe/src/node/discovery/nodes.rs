//! Checks the settings discovered on each node of `tests/nodes`, and that the verdict is `NetworkReady` there.
//! `NETREADY_BLESS=1` rewrites the expectations.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use probe_engine::{
    Actor, Answer, BootTime, ClientRole, Config, Connect, ConnectEnd, Engine, Listener, Observation, Process,
    ProcessClass, ProcessEvent, Reason,
};
use serde::Deserialize;

use super::{Discovery, Program};
use crate::node::processes::{self, Found};
use crate::node::targets::Servers;
use crate::node::trust::tests::Authority;
use crate::node::{cni_config, role, targets};
use crate::settings::tests::settings;
use crate::settings::{Known, Settings};

/// Content of `node.json`.
#[derive(Deserialize)]
struct Node {
    processes: Vec<Running>,
    /// Names that the node's resolver resolves.
    #[serde(default)]
    names: BTreeMap<String, IpAddr>,
    /// Files of the kubelet's client certificates.
    #[serde(default)]
    certificates: Vec<PathBuf>,
    /// Names of the plugins in each directory.
    plugins: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Running {
    pid: u32,
    executable: PathBuf,
    words: Vec<String>,
    #[serde(default)]
    container: bool,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    variables: BTreeMap<String, String>,
}

impl Running {
    fn name(&self) -> String {
        let of = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let name = of(&self.executable).unwrap_or_default();
        let called = || of(Path::new(self.words.first()?));
        let called = || called().filter(|called| processes::classify(called).is_some());
        if processes::is_multi_call(&name) { called().unwrap_or(name) } else { name }
    }

    fn found(&self) -> Option<Found> {
        let class = processes::classify(&self.name())?;
        Some(Found { actor: Actor { pid: self.pid, name: self.name() }, class })
    }

    /// See [`Program::all`].
    fn program(&self) -> Option<Program> {
        let Found { actor, class } = self.found()?;
        let is_host_root_process = !self.container && self.uid == 0;
        let matters = matches!(class, ProcessClass::Kubelet | ProcessClass::Runtime);
        let (words, variables) = (self.words.clone(), self.variables.clone());
        (is_host_root_process && matters).then_some(Program {
            name: actor.name,
            class,
            words,
            variables,
            proxy: None,
        })
    }
}

/// Copies a directory tree, including symbolic links.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("a directory").map(|entry| entry.expect("readable")) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().expect("known");
        if kind.is_symlink() {
            symlink(fs::read_link(&from).expect("a link"), &to).expect("linked");
        } else if kind.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(&from, &to).expect("copied");
        }
    }
}

fn add_plugins(settings: &Settings, node: &Node) {
    for (dir, names) in &node.plugins {
        let dir = settings.on_host(Path::new(dir));
        fs::create_dir_all(&dir).expect("made");
        for name in names {
            // The file is never executed.
            fs::write(dir.join(name), "#!plugin\n").expect("written");
            fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o755)).expect("set");
        }
    }
}

/// Creates the client certificates, valid for two thousand years.
fn add_certificates(settings: &Settings, node: &Node) {
    for path in &node.certificates {
        let path = settings.on_host(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        let identity = Authority::new("kubernetes").issue("system:node:node", None);
        fs::write(path, identity.certificate + &identity.key).expect("written");
    }
}

/// Returns the discovered settings, one per line.
fn table(settings: &Settings, discovery: &Discovery, found: &[Found], targets: &Servers) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str, source: &str| {
        writeln!(text, "{name:<24}{value}  [{source}]").expect("written");
    };
    for (name, known) in discovery.rows(settings) {
        line(name, &known.value, &known.source);
    }
    let host = role::find(settings, found, discovery, known(targets));
    line("role", &format!("{:?}", host.role), "");
    line("runtime", &format!("{:?}", host.runtime), "");
    for target in &targets.targets {
        let name = target.name.as_deref().unwrap_or_default();
        line("API server", &format!("{} {name} {:?}", target.addr, target.kind), &target.source);
    }
    for gap in &targets.gaps {
        line("gap", &gap.why, &gap.signal);
    }
    for note in &discovery.notes {
        line("note", note, "");
    }
    text
}

fn known(targets: &Servers) -> role::Known {
    role::Known { targets: !targets.targets.is_empty(), hides_processes: false }
}

/// Returns the paths of the kubeconfig, the CNI directories and the endpoint, with symbolic links resolved.
fn places(settings: &Settings, found: &Discovery) -> [Vec<PathBuf>; 4] {
    fn paths<T>(known: Option<&Known<T>>, of: impl Fn(&T) -> Vec<PathBuf>) -> Vec<PathBuf> {
        known.into_iter().flat_map(|known| of(&known.value)).collect()
    }
    let (kubelet, runtime) = (&found.kubelet, &found.runtime_config);
    let one = |path: &PathBuf| vec![settings.on_host(path)];
    [
        paths(kubelet.kubeconfig.as_ref(), one),
        paths(runtime.cni.conf_dir.as_ref(), one),
        paths(runtime.cni.bin_dirs.as_ref(), |dirs| dirs.iter().map(|dir| settings.on_host(dir)).collect()),
        paths(kubelet.runtime_endpoint.as_ref().or(runtime.endpoint.as_ref()), |socket| {
            vec![PathBuf::from(socket.replace("/var/run/", "/run/"))]
        }),
    ]
}

/// Returns the verdict on such a node whose clients reach the API server.
fn verdict(settings: &Settings, discovery: &Discovery, found: &[Found], targets: &Servers) -> Reason {
    let second = |seconds: u64| BootTime((3600 + seconds) * 1_000_000_000);
    let mut engine = Engine::new(Config::default(), second(0));
    let mut host = role::find(settings, found, discovery, known(targets));
    host.addresses = vec![[127, 0, 0, 1].into()];
    let process = |found: &Found| {
        let (process, class) = (found.actor.clone(), found.class);
        Observation::Process(Process { process, class, event: ProcessEvent::Found })
    };
    let connect = |addr| {
        Observation::Connect(Connect {
            client: Actor { pid: 1, name: "kubelet".to_owned() },
            role: ClientRole::Kubelet,
            host_netns: true,
            to: addr,
            via: None,
            took_ns: 1_000_000,
            end: ConnectEnd { established: true, ..ConnectEnd::default() },
        })
    };
    let answer = |to| {
        Observation::Answer(Answer {
            to,
            tls: None,
            certificate: None,
            status: Some(200),
            failing: Vec::new(),
            etcd: None,
            untrusted: None,
            kubelet: None,
        })
    };
    let listener = |local| {
        let process = Actor { pid: 2, name: "kube-apiserver".to_owned() };
        Observation::Listener(Listener { local, up: true, process, host_netns: true })
    };
    let addresses: Vec<_> = targets.targets.iter().map(|target| target.addr).collect();
    let observations = [Observation::Host(host)]
        .into_iter()
        .chain(targets.targets.iter().cloned().map(Observation::ApiTarget))
        .chain(targets.gaps.iter().cloned().map(Observation::Gap))
        .chain(found.iter().map(process))
        .chain(addresses.iter().copied().map(listener))
        .chain([Observation::CniConfig(cni_config::read(settings)), Observation::SnapshotDone])
        .chain(addresses.iter().copied().flat_map(|addr| [connect(addr), answer(addr)]));
    for observation in observations {
        engine.observe(second(1), observation);
    }
    while let Some(deadline) = engine.next_deadline().filter(|deadline| *deadline < second(300)) {
        engine.tick(deadline);
    }
    engine.report().verdict.reason
}

#[test]
fn discovers_node_of_each_distribution_and_judges_it_healthy() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/nodes");
    let entries =
        fs::read_dir(&dir).expect("tests/nodes is there").map(|entry| entry.expect("readable").path());
    let mut nodes: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    nodes.sort();
    assert!(nodes.len() >= 14, "{nodes:?}");
    let mut wrong = Vec::new();
    for path in nodes {
        let text = fs::read_to_string(path.join("node.json")).expect("readable");
        let node: Node =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let root = tempfile::tempdir().expect("a directory");
        copy(&path.join("root"), root.path());
        let settings = settings(&["--host-root", root.path().to_str().expect("a text")]);
        add_plugins(&settings, &node);
        add_certificates(&settings, &node);
        let found: Vec<_> = node.processes.iter().filter_map(Running::found).collect();
        let programs: Vec<_> = node.processes.iter().filter_map(Running::program).collect();
        let discovery = Discovery::find(&settings, &programs);
        let runtime = &discovery.runtime_config;
        settings.cni.configure(runtime.cni.clone());
        let mut targets = targets::find(&settings, &discovery);
        for named in &targets.names {
            targets.targets.extend(node.names.get(&named.name).map(|ip| named.target(*ip)));
        }
        targets.targets.dedup_by_key(|target| target.addr);
        let actual = table(&settings, &discovery, &found, &targets);
        let without_processes = Discovery::find(&settings, &[]);
        if places(&settings, &without_processes) != places(&settings, &discovery) {
            wrong.push(format!(
                "{}: without processes {:#?}",
                path.display(),
                places(&settings, &without_processes)
            ));
        }
        let expected = path.join("expected.txt");
        if std::env::var_os("NETREADY_BLESS").is_some() {
            fs::write(&expected, &actual).expect("written");
        }
        let verdict = verdict(&settings, &discovery, &found, &targets);
        if fs::read_to_string(&expected).unwrap_or_default() != actual || verdict != Reason::NetworkReady {
            wrong.push(format!("{}: {verdict:?}\n{actual}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
