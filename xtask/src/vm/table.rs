//! Kernel × signal: what the tests saw, with what.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// One signal of the failure catalogue: the tests that prove it, and the hooks that it comes from by the names
/// that `probe doctor` has for their signals.
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
        &["a_control_plane_host_without_a_listener_is_down", "a_worker_s_closed_loopback_port_is_its_proxy"],
        &["tcp.connect", "tcp.reset"],
    ),
    signal(
        "A2",
        "reset by another host",
        &["a_closed_port_of_another_host_is_refused"],
        &["tcp.connect", "tcp.reset"],
    ),
    signal(
        "A3",
        "ICMP refusal without reset",
        &["a_rejected_service_has_no_endpoints", "go_nonblocking_connect_against_a_same_node_reject"],
        &["tcp.connect"],
    ),
    signal(
        "A4",
        "ICMP prohibited, its sender",
        &["a_rejection_by_another_host_is_a_firewall", "a_rejected_server_is_a_local_policy"],
        &["tcp.connect"],
    ),
    signal(
        "A5",
        "neighbour fails",
        &["an_address_that_nobody_holds_is_an_unreachable_vip"],
        &["tcp.connect"],
    ),
    signal(
        "A6",
        "no route, before a packet",
        &["a_missing_route_is_told_in_all_its_forms"],
        &["tcp.connect.early"],
    ),
    signal(
        "A7",
        "no answer",
        &[
            "silence_is_a_timeout_also_when_the_client_gives_up_first",
            "a_connect_older_than_the_probe_is_seen",
        ],
        &["tcp.connect", "tcp.retransmit"],
    ),
    signal(
        "A8",
        "ended before a byte came back",
        &["a_connection_that_is_closed_before_an_answer_is_a_reset_server"],
        &["tcp.connect"],
    ),
    signal(
        "A9",
        "silent after the client spoke",
        &["a_server_that_takes_bytes_and_stays_silent_is_told_from_one_that_does_not_answer"],
        &[],
    ),
    signal(
        "A10",
        "TLS, certificate, /readyz",
        &["asking_tells_a_server_that_is_unwell_from_one_that_is_away"],
        &[],
    ),
    signal(
        "A11",
        "denied before a packet",
        &["a_connect_that_ebpf_denies_is_told_from_a_policy"],
        &["tcp.connect.early"],
    ),
    signal(
        "A+",
        "address rewritten by eBPF",
        &["an_address_that_ebpf_rewrites_keeps_its_name"],
        &["tcp.connect", "tcp.connect.asked"],
    ),
    signal("A+", "dropped on this host, why", &["a_drop_on_this_host_is_a_local_policy"], &["packet.drop"]),
    signal(
        "A+",
        "established, unacknowledged",
        &["a_connection_that_worked_and_is_not_acknowledged_any_more_is_told"],
        &[],
    ),
    signal(
        "A+",
        "many at once, none unsaid",
        &["every_one_of_many_connects_under_way_is_seen", "what_the_kernel_leaves_out_is_told_as_lost"],
        &["tcp.connect"],
    ),
    signal(
        "C1",
        "configuration, who changed it",
        &[
            "an_empty_directory_is_a_missing_configuration",
            "a_broken_first_file_is_an_invalid_configuration",
            "who_removed_the_configuration_is_named",
            "a_replaced_directory_is_told_and_followed",
        ],
        &[],
    ),
    signal("C2", "read by the runtime", &["a_valid_file_that_the_runtime_has_not_opened_is_told"], &[]),
    signal("C3", "plugin missing", &["a_plugin_that_is_not_there_is_told_without_any_execution"], &[]),
    signal(
        "C3",
        "plugin busy, or not allowed",
        &["a_running_plugin_that_is_to_be_replaced_is_busy", "a_plugin_that_may_not_be_executed_is_told"],
        &["cni.binary.busy", "cni.exec.refused"],
    ),
    signal(
        "C4",
        "plugin run, its end",
        &[
            "a_failed_del_is_no_fault",
            "everything_recovers",
            "a_plugin_that_never_ends_is_told_while_it_runs",
            "a_plugin_older_than_the_probe_is_told_and_so_is_its_end",
            "a_plugin_that_waits_for_the_default_network_names_the_file",
        ],
        &["cni.exec", "cni.exec.environment", "process.exit"],
    ),
    signal(
        "C5",
        "plugin's own words",
        &["a_plugin_s_own_words_reach_the_verdict", "an_answer_by_writev_is_read_whole"],
        &["cni.stdout", "cni.stdout.writev"],
    ),
    signal(
        "C6",
        "delegates",
        &["exhausted_addresses_are_told_from_any_other_failure"],
        &["cni.exec", "cni.exec.environment"],
    ),
    signal(
        "C7",
        "plugin's agent socket",
        &["a_plugin_whose_agent_does_not_answer_names_the_agent_and_why"],
        &["tcp.connect.early"],
    ),
    signal(
        "N1",
        "namespace begins and ends",
        &["a_namespace_s_begin_and_end_are_seen"],
        &["netns.create", "netns.end"],
    ),
    signal(
        "N1+",
        "one sandbox, one object",
        &["everything_that_was_done_for_a_sandbox_is_one_object", "a_del_without_an_add_is_told_as_such"],
        &["netns.create", "cni.exec", "cni.exec.environment"],
    ),
    signal("N2", "links of every namespace", &["links_of_other_namespaces_are_followed"], &[]),
    signal("N3", "links moved into a namespace", &["links_of_other_namespaces_are_followed"], &[]),
    signal("N4", "names come, go, are left over", &["a_name_without_a_namespace_is_told"], &[]),
    signal(
        "N5",
        "link refused, its reason",
        &[
            "what_the_kernel_refuses_is_told_with_its_reason_and_who_asked",
            "a_plugin_that_the_kernel_refuses_a_link_is_told_from_one_that_fails_by_itself",
            "a_tunnel_that_another_cni_left_behind_is_a_conflict",
        ],
        &["link.error", "link.error.errno", "link.error.text"],
    ),
    signal(
        "N6",
        "a path that is no namespace",
        &["a_file_in_place_of_a_namespace_is_told", "a_namespace_that_an_agent_cannot_see_is_told"],
        &["cni.exec", "cni.exec.environment"],
    ),
    signal("O1", "OVS datapath and ports", &["ports_of_the_datapath_are_followed"], &[]),
    signal("O2", "OVS upcalls without an answer", &["ports_of_the_datapath_are_followed"], &[]),
    signal(
        "O3",
        "OVS database, bridges, daemons",
        &["open_vswitch_without_its_parts_is_told_by_the_part"],
        &[],
    ),
    signal(
        "P1",
        "end of a process, its sender",
        &[
            "the_end_of_a_control_plane_process_names_the_signal_and_its_sender",
            "a_crash_loop_of_the_control_plane_is_told_from_a_stopped_one",
        ],
        &["process.exit", "process.signal"],
    ),
    signal(
        "P2",
        "ended for its memory",
        &["a_process_that_the_kernel_ends_for_its_memory_is_told_as_such"],
        &["process.oom", "process.exit"],
    ),
    signal(
        "P3",
        "listeners",
        &[
            "mptcp_listener_and_connect_do_not_confuse",
            "a_runtime_that_does_not_listen_is_told_by_the_kubelet_s_own_tries",
        ],
        &["tcp.connect"],
    ),
    signal("P4", "module missing", &["a_module_that_does_not_come_is_named"], &["module.request"]),
    signal(
        "S1",
        "inotify, processes, files",
        &["a_kubelet_that_gets_no_inotify_instance_is_told"],
        &["limit.inotify", "limit.processes"],
    ),
    signal(
        "S2",
        "disk full",
        &["a_full_disk_is_told_with_its_path", "the_disk_that_etcd_writes_to_is_looked_at"],
        &[],
    ),
    signal("S3", "connection tracking full", &["a_full_connection_tracking_table_is_told"], &[]),
    signal("S4", "credential over", &["an_expired_token_of_a_plugin_is_told_with_its_file"], &[]),
    signal("S4", "clock set", &["a_clock_that_somebody_sets_is_told"], &[]),
    signal("S5", "settings of the kernel", &["the_settings_that_pod_networks_need_are_told_at_start"], &[]),
    signal(
        "S5",
        "reverse path filter drops",
        &["packets_that_the_reverse_path_filter_drops_are_told_with_their_link"],
        &["packet.drop"],
    ),
    signal(
        "S6",
        "who removes routes and rules",
        &[
            "who_takes_a_route_or_a_rule_away_is_named",
            "a_route_of_pods_that_somebody_takes_away_is_told_until_it_is_back",
        ],
        &["link.error", "link.error.errno", "link.error.text"],
    ),
    signal(
        "S7",
        "execution denied, by whom",
        &[
            "a_plugin_that_may_not_be_executed_is_told",
            "a_plugin_on_a_file_system_without_execution_is_told_as_such",
        ],
        &["cni.exec.refused"],
    ),
];

/// One kernel: what its tests said, and what `probe doctor` said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Column {
    pub(crate) kernel: String,
    /// Name of a test and whether it passed.
    pub(crate) tests: BTreeMap<String, bool>,
    /// Tests that were not run on this machine, and why.
    pub(crate) elsewhere: BTreeMap<String, String>,
    pub(crate) doctor: Value,
}

impl Column {
    /// From the lines of the test runner.
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

    /// Names of the tests that failed.
    pub(crate) fn failed(&self) -> Vec<String> {
        self.tests.iter().filter(|(_, passed)| !**passed).map(|(test, _)| test.clone()).collect()
    }

    /// What one signal comes to here; the notes say the rest.
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
            // What is missing is worse than what stands in.
            if state == "missing" {
                cell = "gap";
            } else if cell == "✔" {
                cell = "≈";
            }
        }
        cell
    }

    /// What is not as it should be with one hook.
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
                Some(("missing", format!("{}; not seen: {}", text(&hook["why"]), text(&hook["cost"]))))
            }
            Some("stand-in") => Some(("stand-in", format!("by {}", text(&hook["source"])))),
            _ => None,
        }
    }
}

/// `missing` of `faults::missing`.
fn function(test: &str) -> &str {
    test.rsplit("::").next().unwrap_or(test)
}

/// Prints everything.
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
        "\n✔ by the best hook   ≈ by the next best, or with less   gap: verdicts say that it is not seen   elsewhere: see below"
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
    fn a_cell_tells_the_worst() {
        let doctor = json!({
            "hooks": [{"signal": "tcp.connect", "state": "attached"},
                      {"signal": "tcp.reset", "state": "missing", "why": "w", "cost": "c"}],
            "less": [{"signal": "tcp.connect.asked", "why": "x"}]
        });
        let lines = [
            "test faults::a_closed_port_of_another_host_is_refused ... ok",
            "test an_address_that_ebpf_rewrites_keeps_its_name ... ok",
            "test a_connect_older_than_the_probe_is_seen ... FAILED",
            "test a_clock_that_somebody_sets_is_told ... ignored, sets the clock",
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
        assert!(column.elsewhere.contains_key("a_clock_that_somebody_sets_is_told"));
        assert!(notes.contains_key("tcp.reset: w; not seen: c"));
    }
}
