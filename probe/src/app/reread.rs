//! Reading the present state: at start, so that faults older than the agent are seen, and after a loss.

use anyhow::Result;
use probe_engine::{
    Actor, ClientRole, Connect, ConnectEnd, ExitStatus, Gap, Host, Lost, Mono, Netns, Observation, Process,
    ProcessEvent, Role, Runtime, Scope,
};

use super::App;
use crate::bpf::{HOOKS, HookState, Loss};
use crate::clock;
use crate::enrich::plugin_of;
use crate::feed::Seen;
use crate::node::ask::Asked;
use crate::node::discovery::Discovery;
use crate::node::{cni_config, links, namespaces, processes, role, sockets, targets};
use crate::sinks::Sink;

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
        for process in processes::scan() {
            if self.watch_process(&process)? {
                found.push(process);
            }
        }
        let discovery = Discovery::followed(&self.settings, &found);
        let targets = targets::find(&self.settings, &discovery);
        let mut host = role::find(&self.settings, &found, &discovery, !targets.targets.is_empty());
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
        self.watch_targets();
        self.names.send_replace(targets.names);
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
        let config = cni_config::read(&self.settings);
        self.early(Observation::CniConfig(config));
        self.early(Observation::SnapshotDone);
        Ok(())
    }

    /// Connects that were under way before the kernel half: it reports only those whose start it saw.
    fn unanswered(&mut self) {
        let targets: Vec<_> = self.state.targets().keys().copied().collect();
        let found = sockets::unanswered(&targets).unwrap_or_default();
        for sockets::Connecting { to, retransmits, client } in found {
            let class = processes::classify(&client.name);
            let role = class.map_or(ClientRole::Other, processes::client_role);
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

    fn early(&mut self, observation: Observation) {
        self.state.note(&observation);
        self.early.push(Seen { at: clock::now(), observation });
    }

    fn early_gap(&mut self, signal: &str, why: &str) {
        self.early(Observation::Gap(Gap { signal: signal.to_owned(), why: why.to_owned(), blind: false }));
    }

    /// The answer to one of the agent's own questions. With a kernel half its connect has been seen there
    /// already, with more detail; here remains what only the asker knows.
    pub(super) fn take_answer(&mut self, asked: Asked, sinks: &mut [&mut dyn Sink]) {
        self.deliver(asked.at, Observation::Route(asked.route), sinks);
        if let Some(answer) = asked.answer {
            self.deliver(clock::now(), Observation::Answer(answer), sinks);
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
        self.deliver(asked.at, Observation::Connect(connect), sinks);
    }

    /// The host's addresses changed: whose refusal is a local one depends on them.
    pub(super) async fn look_at_addresses(&mut self, sinks: &mut [&mut dyn Sink]) {
        let Ok(addresses) = links::addresses().await else { return };
        self.update_host(|host| host.addresses = addresses, sinks);
    }

    /// Something started that shows what the host is for, or what it uses: an agent may be there before the node is made.
    pub(super) fn look_at_node(&mut self, sinks: &mut [&mut dyn Sink]) {
        let processes = processes::scan();
        let discovery = Discovery::followed(&self.settings, &processes);
        // Between two kubelets what the last one used stands.
        if discovery.kubelet_runs {
            self.follow_targets(targets::find(&self.settings, &discovery), sinks);
        }
        let found = role::find(&self.settings, &processes, &discovery, !self.state.targets().is_empty());
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
        self.update_host(update, sinks);
    }

    /// A kubelet that was started with another kubeconfig has another API server.
    fn follow_targets(&mut self, found: targets::Servers, sinks: &mut [&mut dyn Sink]) {
        let now = clock::now();
        let known = self.state.targets().clone();
        let is_named =
            |name: &Option<String>| found.names.iter().any(|named| Some(&named.name) == name.as_ref());
        for (addr, name) in known.iter().filter(|_| found.is_whole) {
            if !is_named(name) && !found.targets.iter().any(|target| target.addr == *addr) {
                self.deliver(now, Observation::ApiTargetGone { addr: *addr }, sinks);
            }
        }
        self.names.send_replace(found.names);
        for target in found.targets {
            if known.get(&target.addr) != Some(&target.name) {
                self.deliver(now, Observation::ApiTarget(target), sinks);
            }
        }
        if found.gaps.is_empty() {
            self.deliver(now, Observation::GapClosed { signal: targets::SIGNAL.to_owned() }, sinks);
        }
        for gap in found.gaps {
            self.deliver(now, Observation::Gap(gap), sinks);
        }
    }

    fn update_host(&mut self, update: impl FnOnce(&mut Host), sinks: &mut [&mut dyn Sink]) {
        let Some(known) = self.state.host.clone() else { return };
        let mut host = known.clone();
        update(&mut host);
        if host != known {
            self.deliver(clock::now(), Observation::Host(host), sinks);
        }
    }

    /// Tells what the kernel half could not keep or read.
    fn tell_skipped(&mut self, sinks: &mut [&mut dyn Sink]) -> Result<()> {
        let losses = self.kernel.as_mut().map(|kernel| kernel.skips.take_skipped()).transpose()?;
        self.tell_losses(losses.unwrap_or_default(), sinks);
        Ok(())
    }

    /// Tells the runs of programs that the kernel left out.
    pub(super) fn tell_left_out(&mut self, sinks: &mut [&mut dyn Sink]) {
        let losses = self.kernel.as_mut().map(|kernel| kernel.skips.take_left_out());
        self.tell_losses(losses.unwrap_or_default(), sinks);
    }

    fn tell_losses(&mut self, losses: Vec<Loss>, sinks: &mut [&mut dyn Sink]) {
        let now = clock::now();
        for loss in losses {
            let scope =
                HOOKS.iter().find(|row| row.hook == loss.hook).map_or(Scope::Sockets, |row| row.scope);
            let hook = loss.hook.name().to_owned();
            let lost = Lost { hook, scope, count: loss.count, left_out: loss.left_out };
            self.deliver(now, Observation::Lost(lost), sinks);
        }
    }

    /// Tells what was lost and what shows with time, and reads again what is not known any more.
    pub(super) async fn look_for_loss(&mut self, sinks: &mut [&mut dyn Sink]) -> Result<()> {
        self.tell_skipped(sinks)?;
        let now = clock::now();
        for missing in self.enricher.missing_modules(now) {
            self.deliver(now, Observation::ModuleMissing(missing), sinks);
        }
        for sandbox in self.sandboxes.settled(now) {
            self.deliver(now, Observation::Sandbox(sandbox), sinks);
        }
        for gap in self.state.take_gaps() {
            self.deliver(now, Observation::Gap(gap), sinks);
        }
        for scope in self.state.take_rereads() {
            self.reread(scope, sinks).await;
        }
        Ok(())
    }

    async fn reread(&mut self, scope: Scope, sinks: &mut [&mut dyn Sink]) {
        match scope {
            Scope::Sockets => {
                if !self.reread_listeners(sinks) {
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
                self.reread_processes(sinks);
                self.reread_plugins(sinks);
            }
            Scope::Cni => {
                self.reread_plugins(sinks);
                let config = cni_config::read(&self.settings);
                self.deliver(clock::now(), Observation::CniConfig(config), sinks);
            }
            Scope::Links => {
                if let Ok(links) = links::snapshot().await {
                    for link in links {
                        self.deliver(clock::now(), Observation::Link(link), sinks);
                    }
                }
            }
        }
        self.deliver(clock::now(), Observation::Reread { scope }, sinks);
    }

    /// Those whose end was lost are forgotten; those that run are told again, also when their start was lost.
    fn reread_plugins(&mut self, sinks: &mut [&mut dyn Sink]) {
        let dead = self.enricher.dead_runs();
        // An exit is recorded before the process disappears from /proc: only those whose record was lost remain.
        self.take_all_events(sinks);
        if let Some(kernel) = &mut self.kernel {
            kernel.watch.forget_dead();
        }
        self.enricher.forget_runs(&dead);
        self.find_plugins();
        let now = clock::now();
        for start in self.enricher.running_plugins(now) {
            self.deliver(now, Observation::CniStart(start), sinks);
        }
    }

    /// Plugins that run and whose start was not seen. Only with a kernel half: nobody else tells their end.
    fn find_plugins(&mut self) {
        let Some(kernel) = &mut self.kernel else { return };
        let names = cni_config::plugin_names(&self.settings);
        let mut found: Vec<_> = processes::called(&names).filter_map(plugin_of).collect();
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

    fn reread_listeners(&mut self, sinks: &mut [&mut dyn Sink]) -> bool {
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
            self.deliver(now, Observation::Listener(listener), sinks);
        }
        for listener in present {
            if !self.state.listeners().contains(&listener.local) {
                self.deliver(now, Observation::Listener(listener), sinks);
            }
        }
        true
    }

    fn reread_processes(&mut self, sinks: &mut [&mut dyn Sink]) {
        let found = processes::scan();
        // An exit is recorded before the process disappears from /proc: only those whose record was lost remain.
        self.take_all_events(sinks);
        let known: Vec<_> = self.enricher.clients().watched().cloned().collect();
        for (process, class) in known {
            if !found.iter().any(|now| now.actor.pid == process.pid) {
                self.enricher.clients().exited(process.pid);
                // How it ended was lost with its event.
                let exit = ExitStatus::default();
                let event = ProcessEvent::Exited { exit, sender: None, sent: 0, oom: false };
                let ended = Observation::Process(Process { process, class, event });
                self.deliver(clock::now(), ended, sinks);
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
            self.deliver(clock::now(), observation, sinks);
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
