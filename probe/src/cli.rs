//! The command line. `settings.rs` holds what it means.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use probe_engine::{Pod, Role, TargetKind};

use crate::bpf::HookSet;
use crate::node::targets;
use crate::settings::{ApiServer, CniDirs, POD_LOGS, ServerHost, Setting, Settings};
use crate::sinks::topic::Topic;

/// Finds out why a Kubernetes node is not ready, by watching its network from inside the kernel.
#[derive(Debug, Parser)]
#[command(name = "probe", version, arg_required_else_help = true, propagate_version = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// When to use colour.
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, env = "NETREADY_COLOR")]
    pub(crate) color: Color,
    /// Print the log of the kernel programs to standard error.
    #[arg(short, long, global = true)]
    pub(crate) verbose: bool,
}

const EXAMPLES: &str = "\
Examples:
  probe check                        print the verdict, its cause and the next step
  probe trace                        watch network operations live
  probe check --apiserver 10.0.0.1   if the API server is not detected
  probe explain CNIConfigMissing     print the meaning of a reason

Exit codes of `probe check`:
  0 ready            1 CNI, datapath or runtime fault   2 usage error
  3 API-side fault   4 not ready for another reason     5 unknown
  6 not applicable   77 missing privilege or unsupported kernel";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Text for a terminal.
    Text,
    /// JSON, as documented in docs/verdicts.md.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the agent: write node conditions, serve metrics, keep a state file.
    Run(RunArgs),
    /// Print the current verdict, from the running agent or by observing the node.
    Check(CheckArgs),
    /// Print a live timeline: one line per operation, and each change of the verdict.
    Trace(TraceArgs),
    /// Replay a recording and print its timeline and verdict.
    Replay(ReplayArgs),
    /// Explain a reason: its meaning, evidence, similar reasons and remedy.
    Explain(ExplainArgs),
    /// Check what this kernel and these privileges allow, and what a missing hook costs.
    Doctor(DoctorArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Address that serves /metrics, /livez and /readyz.
    #[arg(long, default_value = "127.0.0.1:9719", env = "NETREADY_METRICS_ADDRESS")]
    pub(crate) metrics_address: SocketAddr,
    /// File with the newest report.
    #[arg(long, default_value = "/run/netready/state.json", env = "NETREADY_STATE_FILE")]
    pub(crate) state_file: PathBuf,
    /// File with the history of verdicts and conditions, kept across restarts.
    #[arg(long, default_value = "/var/lib/netready/journal.jsonl", env = "NETREADY_JOURNAL")]
    pub(crate) journal: PathBuf,
    /// Do not write the conditions to the Node object.
    #[arg(long, env = "NETREADY_NO_CONDITIONS")]
    pub(crate) no_conditions: bool,
    /// Socket on which this agent answers `probe check`.
    #[arg(long, default_value = DEFAULT_SOCKET, env = "NETREADY_SOCKET")]
    pub(crate) socket: PathBuf,
}

/// Default socket of an agent.
pub(crate) const DEFAULT_SOCKET: &str = "/run/netready/probe.sock";

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Longest time to watch before answering, when no agent runs. A host that is not a node is reported at once, and a fault
    /// that is a state (no CNI configuration, no listener, no route) about one second after the API server was asked.
    /// Failures that are retried, and a ready node, take the whole time.
    #[arg(long = "for", default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub(crate) watch: Duration,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
    /// Do not query a running agent.
    #[arg(long)]
    pub(crate) no_agent: bool,
    /// Socket of the running agent.
    #[arg(long, default_value = DEFAULT_SOCKET, env = "NETREADY_SOCKET")]
    pub(crate) socket: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// Print only these topics; the verdict is always printed.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) only: Vec<Topic>,
    /// Print only CNI operations of this pod.
    #[arg(long, value_parser = pod, value_name = "NAMESPACE/NAME")]
    pub(crate) pod: Option<Pod>,
    /// Stop after this time.
    #[arg(long = "for", value_parser = duration, value_name = "TIME")]
    pub(crate) watch: Option<Duration>,
    /// Output format; JSON is one object a line.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
    /// Record all observations to this file, for `probe replay`; the file must not exist.
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// Recording to replay; `-` reads standard input.
    pub(crate) file: PathBuf,
    /// Output format; JSON is one object a line.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Reason to explain, in upper or lower case; without it, all reasons are listed.
    pub(crate) reason: Option<String>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
    /// Print the page docs/reasons.md.
    #[arg(long, hide = true)]
    pub(crate) markdown: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
    /// How long to count the events of each hook.
    #[arg(long = "for", default_value = "1s", value_parser = duration, value_name = "TIME")]
    pub(crate) watch: Duration,
    /// Let the kernel measure the run time of its eBPF programs; this adds about 20 ns to each run.
    #[arg(long)]
    pub(crate) stats: bool,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

/// Options that all commands share which observe the node.
#[derive(Debug, Args)]
#[command(next_help_heading = "Node options (auto-detected)")]
pub(crate) struct NodeArgs {
    /// API server, instead of the detected ones: ADDRESS, ADDRESS:PORT or a URL; `service=ADDRESS` marks the cluster's Service
    /// address. May be repeated.
    #[arg(long, value_delimiter = ',', value_name = "ADDRESS", env = "NETREADY_APISERVER")]
    apiserver: Vec<String>,
    /// Kubeconfig that names the API server; the agent writes the conditions with its account. Detected from the running
    /// kubelet, otherwise from the files of its distribution.
    #[arg(long, value_name = "FILE", env = "NETREADY_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Directory of the CNI configuration. Detected from the directory that the running runtime watches, otherwise from its
    /// configuration.
    #[arg(long, value_name = "DIR", env = "NETREADY_CNI_CONF_DIR")]
    cni_conf_dir: Option<PathBuf>,
    /// Directory of CNI plugins; may be repeated, or separated by colons. Detected from the plugins that the runtime runs,
    /// otherwise from its configuration.
    #[arg(long, value_name = "DIR", value_delimiter = ':', env = "NETREADY_CNI_BIN_DIR")]
    cni_bin_dir: Vec<PathBuf>,
    /// Directory in which the runtime binds network namespaces. Detected from its configuration.
    #[arg(long, value_name = "DIR", env = "NETREADY_NETNS_DIR")]
    netns_dir: Option<PathBuf>,
    /// Directory of the sockets of Open vSwitch. Detected: /run/openvswitch, or the directory of a CNI with an Open vSwitch
    /// of its own (Antrea).
    #[arg(long, value_name = "DIR", env = "NETREADY_OVS_RUN_DIR")]
    ovs_run_dir: Option<PathBuf>,
    /// CRI socket of the container runtime. Detected from the running kubelet.
    #[arg(long, value_name = "SOCKET", env = "NETREADY_RUNTIME_ENDPOINT")]
    runtime_endpoint: Option<PathBuf>,
    /// Role of this host.
    #[arg(long, value_enum, default_value_t = RoleArg::Auto, env = "NETREADY_ROLE")]
    role: RoleArg,
    /// Root of the host's file system; in a container, /proc/1/root.
    #[arg(long, value_name = "DIR", default_value = "/", env = "NETREADY_HOST_ROOT")]
    host_root: PathBuf,
    /// Name of the Node object, also used in reports. The default is the host name.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,
    /// Do not send requests to the API server; only observe its clients.
    #[arg(long, help_heading = "Tuning", env = "NETREADY_NO_ASK")]
    no_ask: bool,
    /// Do not use the kubelet's client certificate or token. By default the agent reads the node's own Node object with it
    /// every five minutes, to check that the API server accepts it.
    #[arg(long, help_heading = "Tuning", env = "NETREADY_NO_KUBELET_CREDENTIALS")]
    no_kubelet_credentials: bool,
    /// Timeout of one request to the API server; neighbour discovery alone takes 3 s.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "4s", help_heading = "Tuning", env = "NETREADY_ASK_TIMEOUT")]
    ask_timeout: Duration,
    /// Longest time after the start in which the verdict may be `Learning`.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "60s", help_heading = "Tuning", env = "NETREADY_START_GRACE")]
    start_grace: Duration,
    /// How long a failure that is retried must hold before a condition becomes False.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5s", help_heading = "Tuning", env = "NETREADY_FAIL_HOLD")]
    fail_hold: Duration,
    /// Longest run time of any CNI plugin, instead of the known limit of each.
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Tuning", env = "NETREADY_PLUGIN_LIMIT")]
    plugin_limit: Option<Duration>,
    /// Size of the ring buffer: a power of two between 4096 and 268435456.
    #[arg(long, value_name = "BYTES", value_parser = ring, default_value_t = probe_common::RING_BYTES, help_heading = "Tuning", env = "NETREADY_RING_BYTES")]
    ring_bytes: u32,
    /// Maximum number of watched processes, at least 64; each takes 100 bytes of kernel memory.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(64..=i64::from(probe_common::MAX_PROCESSES)), default_value_t = probe_common::MAX_PROCESSES, help_heading = "Tuning", env = "NETREADY_MAX_PROCESSES")]
    max_processes: u32,
    /// Which hooks to attach.
    #[arg(long, value_enum, default_value_t = HookSet::Full, help_heading = "Tuning", env = "NETREADY_HOOKS")]
    hooks: HookSet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RoleArg {
    Auto,
    Worker,
    ControlPlane,
    Etcd,
    None,
}

/// Intervals between two requests to an address that answers, and to one that does not.
const ASK_EVERY: Duration = Duration::from_secs(10);
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A usage error, described in one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

impl NodeArgs {
    /// Returns the settings.
    ///
    /// # Errors
    /// If an address is malformed, or a path that was named does not exist.
    pub(crate) fn settings(self) -> Result<Settings, UsageError> {
        let mut settings = Settings {
            node: self.node_name.unwrap_or_else(host_name),
            apiservers: Vec::new(),
            only_named: !self.apiserver.is_empty(),
            kubeconfig: self.kubeconfig,
            cni: CniDirs::new(self.cni_conf_dir, self.cni_bin_dir, self.netns_dir),
            cgroup_driver: Setting::new(None, "", None),
            pod_logs: Setting::new(None, "", PathBuf::from(POD_LOGS)),
            runtime_endpoint: self.runtime_endpoint,
            role: match self.role {
                RoleArg::Auto => None,
                RoleArg::Worker => Some(Role::Worker),
                RoleArg::ControlPlane => Some(Role::ControlPlane),
                RoleArg::Etcd => Some(Role::Etcd),
                RoleArg::None => Some(Role::None),
            },
            host_root: self.host_root,
            ring_bytes: self.ring_bytes,
            max_processes: self.max_processes,
            hooks: self.hooks,
            ask: !self.no_ask,
            kubelet_credentials: !self.no_kubelet_credentials,
            ask_timeout: self.ask_timeout,
            ask_every: ASK_EVERY,
            ask_again: ASK_AGAIN,
            start_grace: self.start_grace,
            ovs_run_dir: self.ovs_run_dir,
            plugin_limit: self.plugin_limit,
            fail_hold: self.fail_hold,
        };
        if !settings.host_root.is_dir() {
            return Err(UsageError(format!("--host-root {}: not a directory", settings.host_root.display())));
        }
        if let Some(path) = &settings.kubeconfig
            && !settings.on_host(path).is_file()
        {
            return Err(UsageError(format!("--kubeconfig {}: not a file", path.display())));
        }
        for text in &self.apiserver {
            settings.apiservers.push(api_server(text)?);
        }
        Ok(settings)
    }
}

fn api_server(text: &str) -> Result<ApiServer, UsageError> {
    let (kind, address) = match text.split_once('=') {
        Some(("service", address)) => (Some(TargetKind::Service), address),
        Some(("direct", address)) => (Some(TargetKind::Direct), address),
        Some((other, _)) => {
            return Err(UsageError(format!(
                "--apiserver {text:?}: unknown kind {other:?}; use service=ADDRESS or direct=ADDRESS"
            )));
        }
        None => (None, text),
    };
    let address = address.trim();
    let Some((host, port)) = targets::parse(address) else {
        return Err(UsageError(format!(
            "--apiserver {text:?}: not an address or a host name; use ADDRESS:PORT"
        )));
    };
    // The default port is 443 for a Service and 6443 for a server.
    let is_bare = address.parse::<IpAddr>().is_ok();
    let port = if kind == Some(TargetKind::Service) && is_bare { 443 } else { port };
    let is_nowhere = matches!(host, ServerHost::Address(ip) if ip.is_unspecified());
    if port == 0 || is_nowhere {
        return Err(UsageError(format!(
            "--apiserver {text:?}: a server cannot listen on this address or port"
        )));
    }
    Ok(ApiServer { host, port, kind })
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    // The kubelet derives the node name in the same way.
    crate::text::clean(name.trim().to_lowercase().as_bytes(), 253)
}

/// Parses `500ms`, `10s`, `2m` or `1h`, between 1 ms and 24 h.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 =
        number.parse().map_err(|_| "expected a number and a unit, for example 10s or 500ms".to_owned())?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("expected one of the units ms, s, m, h".to_owned()),
    };
    match number.checked_mul(unit_ms) {
        Some(ms @ 1..=86_400_000) => Ok(Duration::from_millis(ms)),
        _ => Err("must be between 1ms and 24h".to_owned()),
    }
}

fn pod(text: &str) -> Result<Pod, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Pod { namespace: namespace.to_owned(), name: name.to_owned(), uid: String::new() })
        }
        _ => Err("expected NAMESPACE/NAME".to_owned()),
    }
}

fn ring(text: &str) -> Result<u32, String> {
    let bytes: u32 = text.parse().map_err(|_| "not a number of bytes".to_owned())?;
    // The kernel accepts powers of two that are whole pages. More than 256 MiB has no use.
    if bytes.is_power_of_two() && (4096..=256 << 20).contains(&bytes) {
        Ok(bytes)
    } else {
        Err("must be a power of two between 4096 and 268435456".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn duration_needs_a_unit_and_is_bounded() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        for bad in ["", "10", "s", "0s", "25h", "99999999999999999999h", "-1s", "1.5s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ring_size_is_a_power_of_two() {
        assert_eq!(ring("4096"), Ok(4096));
        for bad in ["0", "1024", "5000", "4294967296", "x"] {
            assert!(ring(bad).is_err(), "{bad}");
        }
    }

    /// Flags of the kubelet and of other programs that the documentation mentions.
    const FOREIGN_FLAGS: [&str; 4] = ["--config", "--config-dir", "--hostname-override", "--raw"];

    /// Code in a text: inline spans and lines of fenced blocks. In a file that is not Markdown every line is code.
    fn code(text: &str, is_markdown: bool) -> Vec<&str> {
        let mut found = Vec::new();
        let mut is_fenced = !is_markdown;
        for part in text.split("```") {
            if is_fenced {
                found.extend(part.lines());
            }
            if !is_fenced || !is_markdown {
                found.extend(part.split('`').skip(1).step_by(2));
            }
            is_fenced = !is_fenced || !is_markdown;
        }
        found
    }

    /// Returns the long flags in some code, without their values.
    fn flags(code: &str) -> impl Iterator<Item = &str> {
        let is_part = |c: char| c.is_ascii_lowercase() || c == '-';
        let words = code.split(|c: char| c.is_whitespace() || "[](),\"'".contains(c));
        let is_flag = |word: &&str| {
            word.strip_prefix("--").is_some_and(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))
        };
        words.filter(is_flag).map(move |word| &word[..word.find(|c| !is_part(c)).unwrap_or(word.len())])
    }

    /// Returns the command of `probe COMMAND …`, or of the arguments of a container, if this code is one of these.
    fn command_of(code: &str) -> Option<&str> {
        let code = code.trim_start().trim_start_matches("ExecStart=").trim_start_matches("$ ");
        if let Some(arguments) = code.strip_prefix("args: [") {
            return arguments.split([',', ']']).next();
        }
        let mut words = code.split_whitespace();
        let program = words.next()?.rsplit('/').next()?;
        let command = words.next().filter(|_| program == "probe")?;
        command.starts_with(|c: char| c.is_ascii_lowercase()).then_some(command)
    }

    fn long_flags(command: &clap::Command) -> Vec<String> {
        let named = command.get_arguments().filter_map(|argument| argument.get_long());
        named.chain(["help", "version"]).map(|name| format!("--{name}")).collect()
    }

    #[test]
    fn documentation_and_manifests_name_only_commands_and_flags_that_exist() {
        let top = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let listed =
            |dir: &str| std::fs::read_dir(top.join(dir)).expect("a directory").filter_map(Result::ok);
        let mut files: Vec<_> = listed("docs").chain(listed("deploy")).map(|file| file.path()).collect();
        files.push(top.join("README.md"));
        let program = Cli::command();
        let every: Vec<_> = program.get_subcommands().chain([&program]).flat_map(long_flags).collect();
        let (mut commands, mut named) = (std::collections::BTreeSet::new(), 0);
        for path in files {
            let text = std::fs::read_to_string(&path).expect("a text");
            let is_markdown = path.extension().is_some_and(|extension| extension == "md");
            for code in code(&text, is_markdown) {
                // The flags of `cargo xtask` are not those of the product.
                if code.trim_start().starts_with("cargo") {
                    continue;
                }
                let mut allowed = every.clone();
                if let Some(name) = command_of(code) {
                    let command = program.find_subcommand(name);
                    let command =
                        command.unwrap_or_else(|| panic!("{}: no command {code:?}", path.display()));
                    allowed = [long_flags(command), long_flags(&program)].concat();
                    commands.insert(name.to_owned());
                }
                for flag in flags(code).filter(|flag| !FOREIGN_FLAGS.contains(flag)) {
                    assert!(
                        allowed.iter().any(|known| known == flag),
                        "{}: {flag} in {code:?}",
                        path.display()
                    );
                    named += 1;
                }
            }
        }
        let all: std::collections::BTreeSet<_> =
            program.get_subcommands().map(|command| command.get_name().to_owned()).collect();
        assert_eq!(commands, all, "commands that the documentation names");
        assert!(named >= 25, "{named} flags");
    }
}
