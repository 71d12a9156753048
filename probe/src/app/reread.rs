//! Reading the present state: at start, so that faults older than the agent are seen, and after a loss.

use std::sync::PoisonError;

use anyhow::Result;
use probe_common::Hook;
use probe_engine::{
    Actor, ClientRole, Connect, ConnectEnd, ExitStatus, Gap, Host, Lost, Mono, Netns, Observation, Process,
    ProcessEvent, Role, Runtime, Scope, Throttled,
};

use super::App;
use super::looks::{Look, NodeLook, discover};
use super::sources::Due;
use crate::bpf::{HOOKS, HookState, How, Missed};
use crate::clock;
use crate::enrich::plugin_of;
use crate::node::ask::Asked;
use crate::node::discovery::Discovery;
use crate::node::{cni_config, cri, file, links, namespaces, processes, provenance, role, sockets, targets};

impl App {
    /// Everything there is at start, in an order that needs no second thoughts: what the host is for, which
    /// addresses matter, then what can be said of them.
    pub(super) async fn snapshot(&mut self) -> Result<()> {
        self.note_gaps();
        // Before the scan: a process that starts in between must be in one of the two.
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
            Err(error) => self.early_gap("link.address", &format!("{error:#}")),
        }
        self.early(Observation::Host(host));
        for target in targets.targets {
            self.early(Observation::ApiTarget(target));
        }
        for gap in targets.gaps {
            self.early(Observation::Gap(gap));
        }
        self.names.send_replace(targets.names);
        self.follow_runtime(&discovery);
        for process in found {
            let event = ProcessEvent::Found;
            self.early(Observation::Process(Process { process: process.actor, class: process.class, event }));
        }
        match sockets::snapshot() {
            Ok(listeners) => {
                for listener in listeners {
                    self.early(Observation::Listener(listener));
                }
            }
            Err(error) => self.early_gap("tcp.listen", &format!("{error:#}")),
        }
        self.unanswered();
        for inum in namespaces::bound(&self.settings) {
            self.early(Observation::Netns(Netns { inum, up: true, process: Actor::default() }));
        }
        self.find_plugins();
        for start in self.enricher.running_plugins(clock::now()) {
            self.early(Observation::CniStart(start));
        }
        match links::snapshot().await {
            Ok(links) => {
                for link in links {
                    self.early(Observation::Link(link));
                }
            }
            Err(error) => self.early_gap("link", &format!("{error:#}")),
        }
        let config = self.looks.cni_config(&self.settings).await;
        self.early(Observation::CniConfig(config));
        self.early(Observation::SnapshotDone);
        Ok(())
    }

    /// Connects that were under way before the kernel half: it reports only those whose start it saw.
    fn unanswered(&mut self) {
        let targets: Vec<_> = self.state.targets().keys().copied().collect();
        let found = sockets::unanswered(&targets).unwrap_or_default();
        for sockets::Connecting { to, retransmits, client } in found {
            let role = provenance::role_of(&self.settings, client.pid, &client.name);
            // The first SYN is sent again after one second, and each further one after twice the time.
            let took_ns = ((1_u64 << retransmits.min(16)) - 1) * 1_000_000_000;
            let end = ConnectEnd { retransmits, ..ConnectEnd::default() };
            self.early(Observation::Connect(Connect {
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
            let why = format!("no eBPF: {why}; the agent's own questions and /proc stand in");
            self.early(Observation::Gap(Gap { signal: "ebpf".to_owned(), why, blind: false }));
        }
        let less = self.kernel.as_ref().map(|kernel| kernel.less.clone()).unwrap_or_default();
        for (signal, why) in less {
            self.early_gap(signal, why);
        }
        for (row, status) in HOOKS.iter().zip(self.hooks.clone()) {
            if let HookState::Missing { why, cost } = status.state {
                let why = format!("{}: {why}; not seen: {cost}", row.hook.name());
                let gap = Gap { signal: row.signal.to_owned(), why, blind: row.blind };
                self.early(Observation::Gap(gap));
            }
        }
    }

    /// Takes note of why the processes of the host cannot be read, or that they can be.
    fn note_hidden(&mut self, hidden: Option<String>) {
        let signal = Gap::PROCESS_TABLE.to_owned();
        let is_news = self.state.hides_processes != hidden.is_some();
        self.state.hides_processes = hidden.is_some();
        match hidden {
            Some(why) if is_news => self.early(Observation::Gap(Gap { signal, why, blind: true })),
            None if is_news => self.early(Observation::GapClosed { signal }),
            _ => {}
        }
    }

    fn early(&mut self, observation: Observation) {
        self.deliver(clock::now(), observation);
    }

    fn early_gap(&mut self, signal: &str, why: &str) {
        self.early(Observation::Gap(Gap { signal: signal.to_owned(), why: why.to_owned(), blind: false }));
    }

    /// The answer to one of the agent's own questions. With a kernel half its connect has been seen there
    /// already, with more detail; here remains what only the asker knows.
    pub(super) fn take_answer(&mut self, asked: Asked) {
        self.deliver(asked.at, Observation::Route(asked.route));
        if let Some(answer) = asked.answer {
            self.deliver(clock::now(), Observation::Answer(answer));
        }
        // The sender of an ICMP message is not always known to the kernel half, and always to the asker.
        if self.kernel.is_some() && !asked.neighbour_failed && asked.icmp.is_none() {
            return;
        }
        let errno = asked.result.err();
        let end = ConnectEnd {
            established: errno.is_none(),
            // Without the kernel half a reset and an ICMP message look alike: the more common one is taken,
            // and the gap says so.
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

    /// The host's addresses changed: whose refusal is a local one depends on them.
    pub(super) async fn look_at_addresses(&mut self) {
        let Ok(addresses) = links::addresses().await else { return };
        self.update_host(|host| host.addresses = addresses);
    }

    /// Has the node read again when something started that shows what the host is for, or what it uses: an agent may be
    /// there before the node is made.
    pub(super) fn look_at_node(&mut self) {
        if let Some(due) = self.state.is_look_due()
            && self.looks.start_node(&self.settings, self.state.targets(), due)
        {
            self.state.is_looked_at();
        }
    }

    /// Takes what was read by another thread.
    pub(super) fn take_look(&mut self, look: Look) {
        match look {
            Look::Node(node) => self.take_node(*node),
            Look::Cni(config) => {
                self.deliver(clock::now(), Observation::CniConfig(*config));
                self.deliver(clock::now(), Observation::Reread { scope: Scope::Cni });
            }
        }
    }

    fn take_node(&mut self, look: NodeLook) {
        let NodeLook { due, hidden, discovery, moved_logs, servers, host: found } = look;
        self.note_hidden(hidden);
        if moved_logs {
            self.state.must_reread(Scope::Processes);
        }
        // Between two kubelets what the last one used stands.
        if discovery.kubelet_runs || due == Due::Asked {
            self.kubelet.send_replace(discovery.kubelet.clone());
            self.follow_targets(servers);
        }
        self.follow_runtime(&discovery);
        let update = |host: &mut Host| {
            // Where no manifest shows a control plane, only its process does: when that has ended it is missing.
            if host.role != Role::ControlPlane {
                host.role = found.role;
            }
            if found.runtime != Runtime::Unknown {
                host.runtime = found.runtime;
            }
            host.kubelet_installed = found.kubelet_installed;
            if discovery.kubelet_runs && found.runtime_endpoint.is_some() {
                host.runtime_endpoint = found.runtime_endpoint;
            }
        };
        self.update_host(update);
    }

    /// Calls the runtime that the kubelet is configured for.
    fn follow_runtime(&self, discovery: &Discovery) {
        let Some(endpoint) = cri::Endpoint::of(&self.settings, discovery) else { return };
        self.runtime.send_if_modified(|known| known.replace(endpoint) != *known);
    }

    /// A kubelet that was started with another kubeconfig has another API server.
    fn follow_targets(&mut self, found: targets::Servers) {
        let now = clock::now();
        let known = self.state.targets().clone();
        let is_named =
            |name: &Option<String>| found.names.iter().any(|named| Some(&named.name) == name.as_ref());
        for (addr, target) in known.iter().filter(|_| found.is_whole) {
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
            self.deliver(clock::now(), Observation::Host(host));
        }
    }

    /// Tells what the kernel half could not keep or read.
    fn tell_skipped(&mut self) -> Result<()> {
        let missed = self.kernel.as_mut().map(|kernel| kernel.skips.take_skipped()).transpose()?;
        self.report_missed(missed.unwrap_or_default());
        Ok(())
    }

    /// Tells the runs of programs that the kernel left out.
    pub(super) fn tell_left_out(&mut self) {
        let missed = self.kernel.as_mut().map(|kernel| kernel.skips.take_left_out());
        self.report_missed(missed.unwrap_or_default());
    }

    fn report_missed(&mut self, missed: Vec<Missed>) {
        let now = clock::now();
        for Missed { hook, count, how } in missed {
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

    /// Reports what was lost and what shows with time, and reads again what is not known any more.
    pub(super) async fn look_for_loss(&mut self) -> Result<()> {
        // After a shortage the counters are read again with the next look.
        if let Err(error) = self.tell_skipped()
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
        let wanted = std::mem::take(&mut *self.rereads.lock().unwrap_or_else(PoisonError::into_inner));
        for scope in wanted {
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
                    // Not re-read: the loss stands, and the next look tries again.
                    self.state.must_reread(scope);
                    return;
                }
                let targets: Vec<_> = self.state.targets().keys().copied().collect();
                for addr in targets {
                    // A full queue means that this address is about to be asked anyway.
                    let _ = self.wake.try_send(addr);
                }
            }
            Scope::Processes => {
                self.note_hidden(processes::hidden());
                // Processes that cannot be read have not exited. The gap says that they are unknown.
                if !self.state.hides_processes {
                    self.reread_processes().await;
                    self.reread_plugins().await;
                }
            }
            Scope::Cni => {
                if !self.state.hides_processes {
                    self.reread_plugins().await;
                }
                // What was begun before may have read what is not there any more.
                if !self.looks.start_cni_config(&self.settings) {
                    self.state.must_reread(scope);
                }
                return;
            }
            Scope::Links => {
                if let Ok(links) = links::snapshot().await {
                    for link in links {
                        self.deliver(clock::now(), Observation::Link(link));
                    }
                }
            }
        }
        self.deliver(clock::now(), Observation::Reread { scope });
    }

    /// Those whose end was lost are forgotten; those that run are told again, also when their start was lost.
    async fn reread_plugins(&mut self) {
        let dead = self.enricher.dead_runs();
        // An exit is recorded before the process disappears from /proc: only those whose record was lost remain.
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

    /// Plugins that run and whose start was not seen. Only with a kernel half: nobody else tells their end.
    fn find_plugins(&mut self) {
        let Some(kernel) = &mut self.kernel else { return };
        let names = cni_config::plugin_names(&self.settings);
        let found = processes::called(&names).filter_map(plugin_of);
        let mut found: Vec<_> =
            found.filter(|record| provenance::is_trusted(&self.settings, &record.task)).collect();
        // Who starts others comes before them.
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
        let gone: Vec<_> = self
            .state
            .listeners()
            .iter()
            .filter(|known| !present.iter().any(|listener| listener.local == **known))
            .copied()
            .collect();
        let now: Mono = clock::now();
        for local in gone {
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
        // An exit is recorded before the process disappears from /proc: only those whose record was lost remain.
        self.take_all_events().await;
        let known: Vec<_> = self.enricher.clients().watched().cloned().collect();
        for (process, class) in known {
            if !found.iter().any(|now| now.actor.pid == process.pid) {
                self.enricher.clients().exited(process.pid);
                // How it ended was lost with its event.
                let exit = ExitStatus::default();
                let event = ProcessEvent::Exited { exit, sender: None, sent: 0, oom: false };
                let ended = Observation::Process(Process { process, class, event });
                self.deliver(clock::now(), ended);
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
            self.deliver(clock::now(), observation);
        }
    }

    /// Watches a process that was found; false when it has exited since, whether that was reported or not.
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

/// See [`file::is_shortage`].
fn is_shortage(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref().is_some_and(file::is_shortage))
}
