//! The table of kernels and signals: which signals the tests observed, and by which hooks.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use serde_json::Value;

/// One signal of the failure catalogue: the tests that prove it, and the hooks that it depends on, by the names of signals in the
/// output of `probe doctor`.
struct Signal {
    code: &'static str,
    what: &'static str,
    tests: &'static [&'static str],
    hooks: &'static [&'static str],
}

const fn signal(
    code: &'static str,
    what: &'static str,
    tests: &'static [&'static str],
    hooks: &'static [&'static str],
) -> Signal {
    Signal { code, what, tests, hooks }
}

const SIGNALS: &[Signal] = &[
    signal(
        "A1",
        "reset by this host",
        &[
            "control_plane_host_without_listener_means_api_server_down",
            "closed_loopback_port_on_worker_means_local_proxy_down",
        ],
        &["tcp.connect", "tcp.reset"],
    ),
    signal(
        "A2",
        "reset by another host",
        &["closed_port_on_other_host_means_api_server_refused"],
        &["tcp.connect", "tcp.reset"],
    ),
    signal(
        "A3",
        "ICMP refusal without reset",
        &[
            "icmp_reject_of_service_means_no_endpoints",
            "nonblocking_connect_reports_icmp_reject_on_same_node",
        ],
        &["tcp.connect"],
    ),
    signal(
        "A4",
        "ICMP prohibited, its sender",
        &["icmp_reject_by_other_host_means_firewalled", "icmp_reject_on_this_host_means_policy_denied"],
        &["tcp.connect"],
    ),
    signal("A5", "neighbour fails", &["unassigned_address_means_vip_unreachable"], &["tcp.connect"]),
    signal(
        "A6",
        "no route, before a packet",
        &["reports_missing_route_in_all_forms"],
        &["tcp.connect.early"],
    ),
    signal(
        "A7",
        "no reply",
        &["unanswered_syns_mean_timeout_even_if_client_gives_up", "reports_connect_started_before_probe"],
        &["tcp.connect", "tcp.retransmit"],
    ),
    signal(
        "A8",
        "closed before a byte came back",
        &["connection_closed_before_response_means_api_server_reset"],
        &["tcp.connect"],
    ),
    signal("A9", "no response to a request", &["acknowledged_bytes_without_response_mean_tls_stalled"], &[]),
    signal("A10", "TLS, certificate, /readyz", &["active_checks_distinguish_failures_of_api_server"], &[]),
    signal(
        "A11",
        "denied before a packet",
        &["connect_denied_by_ebpf_means_bpf_denied"],
        &["tcp.connect.early"],
    ),
    signal(
        "A+",
        "address rewritten by eBPF",
        &["address_rewritten_by_ebpf_keeps_its_name"],
        &["tcp.connect", "tcp.connect.asked"],
    ),
    signal("A+", "dropped on this host, why", &["drop_on_this_host_means_policy_denied"], &["packet.drop"]),
    signal(
        "A+",
        "established, unacknowledged",
        &["reports_established_connection_without_acknowledgements"],
        &[],
    ),
    signal(
        "A+",
        "many at once, losses reported",
        &["reports_every_one_of_many_concurrent_connects", "reports_runs_skipped_by_kernel"],
        &["tcp.connect"],
    ),
    signal(
        "C1",
        "configuration, who changed it",
        &[
            "empty_directory_means_config_missing",
            "broken_first_file_means_config_invalid",
            "names_process_that_removed_configuration",
            "reports_and_follows_replaced_config_directory",
        ],
        &[],
    ),
    signal("C2", "read by the runtime", &["reports_valid_config_file_not_opened_by_runtime"], &[]),
    signal("C3", "plugin missing", &["reports_missing_plugin_before_any_exec"], &[]),
    signal(
        "C3",
        "plugin busy, or not allowed",
        &["replacing_running_plugin_means_binary_busy", "reports_plugin_without_execute_permission"],
        &["cni.binary.busy", "cni.exec.refused"],
    ),
    signal(
        "C4",
        "plugin run, its exit",
        &[
            "failed_del_is_not_a_fault",
            "verdict_recovers_after_each_repair",
            "reports_stalled_plugin_while_it_runs",
            "reports_plugin_started_before_probe_and_its_exit",
            "names_file_that_plugin_waits_for",
        ],
        &["cni.exec", "cni.exec.environment", "process.exit"],
    ),
    signal(
        "C5",
        "plugin's error output",
        &["verdict_quotes_error_of_plugin", "captures_complete_plugin_output_from_writev"],
        &["cni.stdout", "cni.stdout.writev"],
    ),
    signal(
        "C6",
        "delegates",
        &["distinguishes_exhausted_addresses_from_other_failures"],
        &["cni.exec", "cni.exec.environment"],
    ),
    signal(
        "C7",
        "plugin's agent socket",
        &["names_unreachable_agent_of_plugin_and_errno"],
        &["tcp.connect.early"],
    ),
    signal(
        "N1",
        "namespace created, destroyed",
        &["reports_creation_and_destruction_of_netns"],
        &["netns.create", "netns.end"],
    ),
    signal(
        "N1+",
        "one sandbox, one object",
        &["groups_all_steps_of_sandbox_into_one_object", "reports_del_without_add"],
        &["netns.create", "cni.exec", "cni.exec.environment"],
    ),
    signal("N2", "links of every namespace", &["tracks_links_of_other_namespaces"], &[]),
    signal("N3", "links moved into a namespace", &["tracks_links_of_other_namespaces"], &[]),
    signal("N4", "namespace names, leftover ones", &["reports_stale_netns_name"], &[]),
    signal(
        "N5",
        "link refused, its reason",
        &[
            "reports_refused_netlink_request_with_reason_and_process",
            "distinguishes_refused_link_from_plugin_failure",
            "leftover_tunnel_of_other_cni_means_link_conflict",
        ],
        &["link.error", "link.error.errno", "link.error.text"],
    ),
    signal(
        "N6",
        "path is not a namespace",
        &["reports_plain_file_in_place_of_netns", "reports_netns_hidden_from_cni_agent"],
        &["cni.exec", "cni.exec.environment"],
    ),
    signal("O1", "OVS datapath and ports", &["tracks_ports_of_ovs_datapath"], &[]),
    signal("O2", "OVS upcalls without a reply", &["tracks_ports_of_ovs_datapath"], &[]),
    signal("O3", "OVS database, bridges, daemons", &["names_missing_component_of_open_vswitch"], &[]),
    signal(
        "P1",
        "process killed, by whom",
        &[
            "names_signal_and_sender_when_control_plane_process_is_killed",
            "distinguishes_control_plane_crash_loop_from_stopped_process",
        ],
        &["process.exit", "process.signal"],
    ),
    signal(
        "P2",
        "killed for lack of memory",
        &["reports_oom_killed_process"],
        &["process.oom", "process.exit"],
    ),
    signal(
        "P3",
        "listeners",
        &["does_not_mistake_mptcp_sockets_for_tcp", "detects_stopped_runtime_from_kubelet_connects"],
        &["tcp.connect"],
    ),
    signal("P4", "module missing", &["names_missing_kernel_module"], &["module.request"]),
    signal(
        "S1",
        "inotify, processes, files",
        &["reports_kubelet_without_inotify_instance"],
        &["limit.inotify", "limit.processes"],
    ),
    signal("S2", "disk full", &["reports_full_disk_with_path", "reports_full_disk_of_open_etcd_files"], &[]),
    signal("S3", "connection tracking full", &["reports_full_conntrack_table"], &[]),
    signal("S4", "credential expired", &["reports_expired_plugin_token_with_path"], &[]),
    signal("S4", "clock changed", &["reports_clock_step"], &[]),
    signal("S5", "kernel settings", &["reports_sysctls_for_pod_networks_at_start"], &[]),
    signal(
        "S5",
        "reverse path filter drops",
        &["reports_reverse_path_filter_drops_with_link"],
        &["packet.drop"],
    ),
    signal(
        "S6",
        "who removes routes and rules",
        &["names_process_that_removes_route_or_rule", "reports_removed_pod_route_until_restored"],
        &["link.error", "link.error.errno", "link.error.text"],
    ),
    signal(
        "S7",
        "execution denied, by whom",
        &["reports_plugin_without_execute_permission", "reports_plugin_on_noexec_mount"],
        &["cni.exec.refused"],
    ),
];

/// Results of one kernel: of its tests, and of `probe doctor`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Column {
    pub(crate) kernel: String,
    /// Name of each test, and whether it passed.
    pub(crate) tests: BTreeMap<String, bool>,
    /// Tests that are not run on this machine, and why.
    pub(crate) elsewhere: BTreeMap<String, String>,
    pub(crate) doctor: Value,
}

impl Column {
    /// Parses the lines of the test runner.
    pub(crate) fn new<'a>(kernel: &str, lines: impl Iterator<Item = &'a str>, doctor: Value) -> Self {
        let mut column = Self { kernel: kernel.to_owned(), doctor, ..Self::default() };
        let named = lines.filter_map(|line| line.strip_prefix("test ")?.split_once(" ... "));
        for (name, result) in named {
            if let Some(why) = result.strip_prefix("ignored, ") {
                column.elsewhere.insert(function(name).to_owned(), why.to_owned());
            } else {
                column.tests.insert(function(name).to_owned(), result == "ok");
            }
        }
        column
    }

    /// Returns the names of the tests that failed.
    pub(crate) fn failed(&self) -> Vec<String> {
        self.tests.iter().filter(|(_, passed)| !**passed).map(|(test, _)| test.clone()).collect()
    }

    /// Returns the cell of one signal, and adds its explanations to `notes`.
    fn cell(&self, signal: &Signal, notes: &mut BTreeMap<String, BTreeSet<String>>) -> &'static str {
        let result = |test: &&str| self.tests.get(*test).copied();
        if signal.tests.iter().any(|test| result(test) == Some(false)) {
            return "fails";
        }
        if let Some(why) = signal.tests.iter().find_map(|test| self.elsewhere.get(*test)) {
            notes.entry(format!("{}: {why}", signal.what)).or_default().insert(self.kernel.clone());
            return "elsewhere";
        }
        if signal.tests.iter().any(|test| result(test).is_none()) {
            return "not run";
        }
        let mut cell = "✔";
        for hook in signal.hooks {
            let Some((state, note)) = self.hook(hook) else { continue };
            notes.entry(format!("{hook}: {note}")).or_default().insert(self.kernel.clone());
            // A missing hook is worse than a fallback.
            if state == "missing" {
                cell = "gap";
            } else if cell == "✔" {
                cell = "≈";
            }
        }
        cell
    }

    /// Returns the state of a hook that is not attached at its best source, and an explanation.
    fn hook(&self, signal: &str) -> Option<(&'static str, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let less = self.doctor["less"].as_array().into_iter().flatten();
        if let Some(less) = less.into_iter().find(|less| less["signal"] == signal) {
            return Some(("less", text(&less["why"])));
        }
        let hooks = self.doctor["hooks"].as_array().into_iter().flatten();
        let hook = hooks.into_iter().find(|hook| hook["signal"] == signal)?;
        match hook["state"].as_str() {
            Some("missing") => {
                Some(("missing", format!("{}; not observed: {}", text(&hook["why"]), text(&hook["cost"]))))
            }
            Some("stand-in") => Some(("stand-in", format!("fallback {}", text(&hook["source"])))),
            _ => None,
        }
    }
}

/// Returns `missing` of `faults::missing`.
fn function(test: &str) -> &str {
    test.rsplit("::").next().unwrap_or(test)
}

/// Fails if the table names tests that are not in `live_tests`, because they were renamed or removed: the table would show
/// their signals as not run.
pub(crate) fn check(live_tests: &[String]) -> Result<()> {
    let unknown = unknown(live_tests);
    ensure!(
        unknown.is_empty(),
        "xtask/src/vm/table.rs names live tests that do not exist: {}",
        unknown.into_iter().collect::<Vec<_>>().join(", ")
    );
    Ok(())
}

fn unknown(live_tests: &[String]) -> BTreeSet<&'static str> {
    let known: BTreeSet<_> = live_tests.iter().map(|test| function(test)).collect();
    SIGNALS.iter().flat_map(|signal| signal.tests).copied().filter(|test| !known.contains(test)).collect()
}

/// Prints the table and its notes.
pub(crate) fn print(columns: &[Column]) {
    let mut notes = BTreeMap::new();
    print!("\n{:<4}{:<32}", "", "signal");
    for column in columns {
        print!("{:>15}", column.kernel);
    }
    println!();
    for signal in SIGNALS {
        print!("{:<4}{:<32}", signal.code, signal.what);
        for column in columns {
            print!("{:>15}", column.cell(signal, &mut notes));
        }
        println!();
    }
    println!(
        "\n✔ by the best hook   ≈ by a fallback, or with a limitation   gap: verdicts report it as not observed   elsewhere: see below"
    );
    for (note, kernels) in notes {
        let kernels: Vec<_> = kernels.into_iter().collect();
        println!("\n{}\n    {note}", kernels.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tests_that_do_not_exist_are_found() {
        let mut tests: Vec<String> =
            SIGNALS.iter().flat_map(|signal| signal.tests).map(|test| format!("module::{test}")).collect();
        assert!(check(&tests).is_ok());
        let renamed = SIGNALS[0].tests[0];
        tests.retain(|test| function(test) != renamed);
        let error = check(&tests).expect_err("one is missing").to_string();
        assert!(error.ends_with(&format!(": {renamed}")), "{error}");
    }

    #[test]
    fn cell_shows_the_worst_result_of_a_signal() {
        let doctor = json!({
            "hooks": [{"signal": "tcp.connect", "state": "attached"},
                      {"signal": "tcp.reset", "state": "missing", "why": "w", "cost": "c"}],
            "less": [{"signal": "tcp.connect.asked", "why": "x"}]
        });
        let lines = [
            "test faults::closed_port_on_other_host_means_api_server_refused ... ok",
            "test address_rewritten_by_ebpf_keeps_its_name ... ok",
            "test reports_connect_started_before_probe ... FAILED",
            "test reports_clock_step ... ignored, sets the clock",
            "noise",
        ];
        let column = Column::new("k", lines.into_iter(), doctor);
        let mut notes = BTreeMap::new();
        let cell = |code: &str, notes: &mut _| {
            column.cell(SIGNALS.iter().find(|signal| signal.code == code).expect("known"), notes)
        };
        assert_eq!(cell("A2", &mut notes), "gap");
        assert_eq!(cell("A+", &mut notes), "≈");
        assert_eq!(cell("A7", &mut notes), "fails");
        assert_eq!(cell("A8", &mut notes), "not run");
        assert!(column.elsewhere.contains_key("reports_clock_step"));
        assert!(notes.contains_key("tcp.reset: w; not observed: c"));
    }
}
