//! Reads the current state: at start, so that faults older than the agent are observed, and after lost events.

use std::sync::PoisonError;

use anyhow::Result;
use probe_common::Hook;
use probe_engine::{
    Actor, ClientRole, Connect, ConnectEnd, ExitStatus, Gap, Host, Lost, Netns, Observation, Process,
    ProcessEvent, Role, Runtime, Scope, Throttled,
};

use super::App;
use super::background::{NodeRead, Read, discover};
use super::sources::Due;
use crate::bpf::{HOOKS, HookState, How, Unreported};
use crate::clock;
use crate::enrich::running_plugin;
use crate::node::ask::Asked;
use crate::node::discovery::Discovery;
use crate::node::{cni_config, cri, file, links, namespaces, processes, provenance, role, sockets, targets};

impl App {
    /// Reads the state at start, ordered so that each step depends only on earlier ones: the role of the host, the addresses that
    /// are relevant, then the state that concerns them.
    pub(super) async fn snapshot(&mut self) -> Result<()> {
        self.note_gaps();
        // Before the scan, so that a process that starts meanwhile is found by either.
        if let Some(kernel) = &mut self.kernel {
            kernel.watch.set_names(&processes::watch_names(), &cni_config::plugin_names(&self.settings))?;
        }
        let mut found = Vec::new();
        for process in processes::scan(&self.settings) {
            if self.watch_process(&process)? {
                found.push(process);
            }
        }
        let (discovery, moved_logs) = discover(&self.settings, &found);
        if moved_logs {
            self.state.must_reread(Scope::Processes);
        }
        self.kubelet.send_replace(discovery.kubelet.clone());
        let targets = targets::find(&self.settings, &discovery);
        let hidden = processes::hidden();
        let known = role::Known { targets: !targets.targets.is_empty(), hides_processes: hidden.is_some() };
        self.note_hidden(hidden);
        let mut host = role::find(&self.settings, &found, &discovery, known);
        match links::addresses().await {
            Ok(addresses) => host.addresses = addresses,
            Err(error) => self.deliver_gap("link.address", &format!("{error:#}")),
        }
        self.deliver_now(Observation::Host(host));
        for target in targets.targets {
            self.deliver_now(Observation::ApiTarget(target));
        }
        for gap in targets.gaps {
            self.deliver_now(Observation::Gap(gap));
        }
        self.names.send_replace(targets.names);
        self.follow_runtime(&discovery);
        for process in found {
            let event = ProcessEvent::Found;
            self.deliver_now(Observation::Process(Process {
                process: process.actor,
                class: process.class,
                event,
            }));
        }
        match sockets::snapshot() {
            Ok(listeners) => {
                for listener in listeners {
                    self.deliver_now(Observation::Listener(listener));
                }
            }
            Err(error) => self.deliver_gap("tcp.listen", &format!("{error:#}")),
        }
        self.find_unanswered();
        for inum in namespaces::bound(&self.settings) {
            self.deliver_now(Observation::Netns(Netns { inum, up: true, process: Actor::default() }));
        }
        self.find_plugins();
        for start in self.enricher.running_plugins(clock::now()) {
            self.deliver_now(Observation::CniStart(start));
        }
        match links::snapshot().await {
            Ok(links) => {
                for link in links {
                    self.deliver_now(Observation::Link(link));
                }
            }
            Err(error) => self.deliver_gap("link", &format!("{error:#}")),
        }
        let config = self.background.cni_config(&self.settings).await;
        self.deliver_now(Observation::CniConfig(config));
        self.deliver_now(Observation::SnapshotDone);
        Ok(())
    }

    /// Finds connects that were in progress before the kernel programs were attached: those report only connects whose start they
    /// have recorded.
    fn find_unanswered(&mut self) {
        let targets: Vec<_> = self.state.targets().keys().copied().collect();
        let found = sockets::unanswered(&targets).unwrap_or_default();
        for sockets::Connecting { to, retransmits, client } in found {
            let role = provenance::role_of(&self.settings, client.pid, &client.name);
            // The first SYN is retransmitted after one second, and each further one after twice the previous time.
            let took_ns = ((1_u64 << retransmits.min(16)) - 1) * 1_000_000_000;
            let end = ConnectEnd { retransmits, ..ConnectEnd::default() };
            self.deliver_now(Observation::Connect(Connect {
                client,
                role,
                host_netns: true,
                to,
                via: None,
                took_ns,
                end,
            }));
        }
    }

    fn note_gaps(&mut self) {
        if let Some(why) = self.unsupported.clone() {
            let why = format!("no eBPF: {why}; fallback: the agent's own requests and /proc");
            self.deliver_now(Observation::Gap(Gap { signal: "ebpf".to_owned(), why, blind: false }));
        }
        let limitations = self.kernel.as_ref().map(|kernel| kernel.limitations.clone()).unwrap_or_default();
        for (signal, why) in limitations {
            self.deliver_gap(signal, why);
        }
        for (row, status) in HOOKS.iter().zip(self.hooks.clone()) {
            if let HookState::Missing { why, cost } = status.state {
                let why = format!("{}: {why}; not observed: {cost}", row.hook.name());
                let gap = Gap { signal: row.signal.to_owned(), why, blind: row.blind };
                self.deliver_now(Observation::Gap(gap));
            }
        }
    }

    /// Records whether the processes of the host can be read; `hidden` is the reason why they cannot.
    fn note_hidden(&mut self, hidden: Option<String>) {
        let signal = Gap::PROCESS_TABLE.to_owned();
        let has_changed = self.state.hides_processes != hidden.is_some();
        self.state.hides_processes = hidden.is_some();
        match hidden {
            Some(why) if has_changed => self.deliver_now(Observation::Gap(Gap { signal, why, blind: true })),
            None if has_changed => self.deliver_now(Observation::GapClosed { signal }),
            _ => {}
        }
    }

    /// Delivers an observation with the current time.
    fn deliver_now(&mut self, observation: Observation) {
        self.deliver(clock::now(), observation);
    }

    fn deliver_gap(&mut self, signal: &str, why: &str) {
        self.deliver_now(Observation::Gap(Gap {
            signal: signal.to_owned(),
            why: why.to_owned(),
            blind: false,
        }));
    }

    /// Takes the result of one of the agent's own requests. The kernel programs have already reported its connect with more
    /// detail; only what they do not know is reported here.
    pub(super) fn take_answer(&mut self, asked: Asked) {
        self.deliver(asked.at, Observation::Route(asked.route));
        if let Some(answer) = asked.answer {
            self.deliver_now(Observation::Answer(answer));
        }
        // The kernel programs do not always know the sender of an ICMP message; the requesting socket does.
        if self.kernel.is_some() && !asked.neighbour_failed && asked.icmp.is_none() {
            return;
        }
        let errno = asked.result.err();
        let end = ConnectEnd {
            established: errno.is_none(),
            // Without the kernel programs a reset cannot be distinguished from an ICMP message. The more common one is
            // assumed, and the gap states so.
            rst: errno == Some(libc::ECONNREFUSED.unsigned_abs()) && asked.icmp.is_none(),
            icmp: asked.icmp,
            sk_err: errno.unwrap_or(0),
            by_caller: errno == Some(0),
            neighbour_failed: asked.neighbour_failed,
            ..ConnectEnd::default()
        };
        let client = Actor { pid: std::process::id(), name: "probe".to_owned() };
        let connect = Connect {
            client,
            role: ClientRole::Probe,
            host_netns: true,
            to: asked.to,
            via: None,
            took_ns: asked.took_ns,
            end,
        };
        self.deliver(asked.at, Observation::Connect(connect));
    }

    /// Reads the addresses of the host again. They decide which refusals are those of this host.
    pub(super) async fn reread_addresses(&mut self) {
        let Ok(addresses) = links::addresses().await else { return };
        self.update_host(|host| host.addresses = addresses);
    }

    /// Starts to read the node again if a process has started that may have changed its role or what it uses: the agent may be
    /// started before the node is set up.
    pub(super) fn reread_node_if_due(&mut self) {
        if let Some(due) = self.state.node_due()
            && self.background.start_node(&self.settings, self.state.targets(), due)
        {
            self.state.started_node();
        }
    }

    /// Takes the result of a read by another thread.
    pub(super) fn take_read(&mut self, read: Read) {
        match read {
            Read::Node(node) => self.take_node(*node),
            Read::Cni(config) => {
                self.deliver_now(Observation::CniConfig(*config));
                self.deliver_now(Observation::Reread { scope: Scope::Cni });
            }
        }
    }

    fn take_node(&mut self, read: NodeRead) {
        let NodeRead { due, hidden, discovery, moved_logs, servers, host: found } = read;
        self.note_hidden(hidden);
        if moved_logs {
            self.state.must_reread(Scope::Processes);
        }
        // While no kubelet runs, what the last one used remains in effect.
        if discovery.kubelet_is_running || due == Due::Requested {
            self.kubelet.send_replace(discovery.kubelet.clone());
            self.follow_targets(servers);
        }
        self.follow_runtime(&discovery);
        let update = |host: &mut Host| {
            // Without a manifest only its processes show a control plane, and those may have exited meanwhile.
            if host.role != Role::ControlPlane {
                host.role = found.role;
            }
            if found.runtime != Runtime::Unknown {
                host.runtime = found.runtime;
            }
            host.kubelet_installed = found.kubelet_installed;
            if discovery.kubelet_is_running && found.runtime_endpoint.is_some() {
                host.runtime_endpoint = found.runtime_endpoint;
            }
        };
        self.update_host(update);
    }

    /// Sets the container runtime to call: the one that the kubelet is configured for.
    fn follow_runtime(&self, discovery: &Discovery) {
        let Some(endpoint) = cri::Endpoint::of(&self.settings, discovery) else { return };
        self.runtime.send_if_modified(|known| known.replace(endpoint) != *known);
    }

    /// Updates the API servers: a kubelet may have been restarted with another kubeconfig.
    fn follow_targets(&mut self, found: targets::Servers) {
        let now = clock::now();
        let known = self.state.targets().clone();
        let is_named =
            |name: &Option<String>| found.names.iter().any(|named| Some(&named.name) == name.as_ref());
        for (addr, target) in known.iter().filter(|_| found.is_complete) {
            if !is_named(&target.name) && !found.targets.iter().any(|target| target.addr == *addr) {
                self.deliver(now, Observation::ApiTargetGone { addr: *addr });
            }
        }
        self.names.send_replace(found.names);
        for target in found.targets {
            if known.get(&target.addr) != Some(&target) {
                self.deliver(now, Observation::ApiTarget(target));
            }
        }
        if found.gaps.is_empty() {
            self.deliver(now, Observation::GapClosed { signal: targets::SIGNAL.to_owned() });
        }
        for gap in found.gaps {
            self.deliver(now, Observation::Gap(gap));
        }
    }

    fn update_host(&mut self, update: impl FnOnce(&mut Host)) {
        let Some(known) = self.state.host.clone() else { return };
        let mut host = known.clone();
        update(&mut host);
        if host != known {
            self.deliver_now(Observation::Host(host));
        }
    }

    /// Reports events that the kernel programs lost or throttled.
    fn report_losses(&mut self) -> Result<()> {
        let losses = self.kernel.as_mut().map(|kernel| kernel.skips.take_losses()).transpose()?;
        self.deliver_unreported(losses.unwrap_or_default());
        Ok(())
    }

    /// Reports runs of kernel programs that the kernel skipped.
    pub(super) fn report_skipped_runs(&mut self) {
        let skipped = self.kernel.as_mut().map(|kernel| kernel.skips.take_skipped_runs());
        self.deliver_unreported(skipped.unwrap_or_default());
    }

    fn deliver_unreported(&mut self, unreported: Vec<Unreported>) {
        let now = clock::now();
        for Unreported { hook, count, how } in unreported {
            let scope = HOOKS.iter().find(|row| row.hook == hook).map_or(Scope::Sockets, |row| row.scope);
            if (hook, how) == (Hook::SchedProcessExec, How::Throttled) {
                self.recount_limited();
            }
            let hook = hook.name().to_owned();
            let observation = match how {
                How::Throttled => Observation::Throttled(Throttled { hook, count }),
                How::Lost | How::Skipped => {
                    Observation::Lost(Lost { hook, scope, count, left_out: how == How::Skipped })
                }
            };
            self.deliver(now, observation);
        }
    }

    fn recount_limited(&mut self) {
        let counted = self.kernel.as_mut().map_or(Ok(()), |kernel| kernel.watch.recount_limited());
        if let Err(error) = counted {
            self.state.gap("process.exit", format!("{error:#}"));
        }
    }

    /// Reports losses and what becomes due with time, and reads again the state that is no longer known.
    ///
    /// # Errors
    /// If the loss counters cannot be read, except for a shortage of resources: they are read again with the next check.
    pub(super) async fn check_for_losses(&mut self) -> Result<()> {
        if let Err(error) = self.report_losses()
            && !is_shortage(&error)
        {
            return Err(error);
        }
        let now = clock::now();
        for missing in self.enricher.missing_modules(now) {
            self.deliver(now, Observation::ModuleMissing(missing));
        }
        for sandbox in self.sandboxes.settled(now) {
            self.deliver(now, Observation::Sandbox(sandbox));
        }
        for gap in self.state.take_gaps() {
            self.deliver(now, Observation::Gap(gap));
        }
        let requested = std::mem::take(&mut *self.rereads.lock().unwrap_or_else(PoisonError::into_inner));
        for scope in requested {
            self.state.must_reread(scope);
        }
        for scope in self.state.take_rereads() {
            self.reread(scope).await;
        }
        Ok(())
    }

    async fn reread(&mut self, scope: Scope) {
        match scope {
            Scope::Sockets => {
                if !self.reread_listeners() {
                    // The sockets were not read: the loss remains, and the next check tries again.
                    self.state.must_reread(scope);
                    return;
                }
                let targets: Vec<_> = self.state.targets().keys().copied().collect();
                for addr in targets {
                    // If the queue is full, a request to this address is about to be sent anyway.
                    let _ = self.wake.try_send(addr);
                }
            }
            Scope::Processes => {
                self.note_hidden(processes::hidden());
                // Processes that cannot be read have not exited. The gap reports that they are unknown.
                if !self.state.hides_processes {
                    self.reread_processes().await;
                    self.reread_plugins().await;
                }
            }
            Scope::Cni => {
                if !self.state.hides_processes {
                    self.reread_plugins().await;
                }
                // A read that started before may return an outdated state.
                if !self.background.start_cni_config(&self.settings) {
                    self.state.must_reread(scope);
                }
                return;
            }
            Scope::Links => {
                if let Ok(links) = links::snapshot().await {
                    for link in links {
                        self.deliver_now(Observation::Link(link));
                    }
                }
            }
        }
        self.deliver_now(Observation::Reread { scope });
    }

    /// Drops plugins whose exit was lost, and reports all running ones again, including those whose start was lost.
    async fn reread_plugins(&mut self) {
        let dead = self.enricher.dead_runs();
        // An exit is recorded before the process disappears from /proc, so that only processes whose record was lost remain.
        self.take_all_events().await;
        if let Some(kernel) = &mut self.kernel {
            kernel.watch.forget_dead();
        }
        self.enricher.forget_runs(&dead);
        self.find_plugins();
        let now = clock::now();
        for start in self.enricher.running_plugins(now) {
            self.deliver(now, Observation::CniStart(start));
        }
    }

    /// Finds running plugins whose start was not observed. Only with kernel programs, because nothing else reports their exit.
    fn find_plugins(&mut self) {
        let Some(kernel) = &mut self.kernel else { return };
        let names = cni_config::plugin_names(&self.settings);
        let found = processes::called(&names).filter_map(running_plugin);
        let mut found: Vec<_> =
            found.filter(|record| provenance::is_trusted(&self.settings, &record.task)).collect();
        // Parents come before the processes that they start.
        found.sort_by_key(|record| (record.header.at_ns, record.task.tgid));
        for record in found {
            let pid = record.task.tgid;
            let runs = || processes::stat(pid).is_some_and(|stat| stat.started.0 == record.header.at_ns);
            match kernel.watch.add_plugin(pid, runs) {
                Ok(true) => self.enricher.found_plugin(&record),
                Ok(false) => {}
                Err(error) => self.state.gap("process.exit", format!("{error:#}")),
            }
        }
    }

    fn reread_listeners(&mut self) -> bool {
        let Ok(present) = sockets::snapshot() else { return false };
        let closed: Vec<_> = self
            .state
            .listeners()
            .iter()
            .filter(|known| !present.iter().any(|listener| listener.local == **known))
            .copied()
            .collect();
        let now = clock::now();
        for local in closed {
            let process = Actor::default();
            let listener = probe_engine::Listener { local, up: false, process, host_netns: true };
            self.deliver(now, Observation::Listener(listener));
        }
        for listener in present {
            if !self.state.listeners().contains(&listener.local) {
                self.deliver(now, Observation::Listener(listener));
            }
        }
        true
    }

    async fn reread_processes(&mut self) {
        let found = processes::scan(&self.settings);
        // An exit is recorded before the process disappears from /proc, so that only processes whose record was lost remain.
        self.take_all_events().await;
        let known: Vec<_> = self.enricher.clients().watched().cloned().collect();
        for (process, class) in known {
            if !found.iter().any(|now| now.actor.pid == process.pid) {
                self.enricher.clients().exited(process.pid);
                // Its exit status was lost with its event.
                let exit = ExitStatus::default();
                let event = ProcessEvent::Exited { exit, sender: None, sent: 0, oom: false };
                let exited = Observation::Process(Process { process, class, event });
                self.deliver_now(exited);
            }
        }
        for process in found {
            if self.enricher.clients().watched().any(|(actor, _)| actor.pid == process.actor.pid) {
                continue;
            }
            match self.watch_process(&process) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    self.state.gap("process.exit", format!("{error:#}"));
                    self.enricher.clients().found(process.actor.clone(), process.class);
                }
            }
            let event = ProcessEvent::Found;
            let observation =
                Observation::Process(Process { process: process.actor, class: process.class, event });
            self.deliver_now(observation);
        }
    }

    /// Watches a process that was found. Returns false if it has exited since, whether that was reported or not.
    fn watch_process(&mut self, process: &processes::Found) -> Result<bool> {
        let runs = || processes::executable(process.actor.pid).as_ref() == Some(&process.actor.name);
        let watched = match &mut self.kernel {
            Some(kernel) => kernel.watch.add_process(process.actor.pid, runs)?,
            None => true,
        };
        let runs = watched && runs();
        if runs {
            self.enricher.clients().found(process.actor.clone(), process.class);
        }
        Ok(runs)
    }
}

/// Returns whether a cause of the error is a shortage of resources, see [`file::is_shortage`].
fn is_shortage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref().is_some_and(file::is_shortage))
}
