//! Assembles a sandbox from observations: its network namespace, its name, the plugins that ran for it, its links.

use probe_engine::{
    BootTime, CniEnd, CniStart, Link, NameState, Netns, NetnsName, NetnsSeen, Observation, Sandbox, Step,
    StepKind,
};

/// Maximum number of sandboxes: 110 pods and as many that are being removed, with a margin of two.
const SANDBOXES: usize = 512;
/// Maximum number of steps of a sandbox that are kept: the first half and the last half.
const STEPS: usize = 32;
/// How long observations of links and names may lag behind those of plugins, nanoseconds: they come from other sources.
const SETTLING: u64 = 300_000_000;

/// A sandbox that is being assembled.
#[derive(Debug)]
struct Attempt {
    sandbox: Sandbox,
    first: BootTime,
    last: BootTime,
    /// Process IDs and start times of the plugins that run for it.
    running: Vec<(u32, BootTime)>,
    /// It has changed since it was last reported.
    has_changed: bool,
    /// No further observations of it are expected.
    is_finished: bool,
}

impl Attempt {
    fn new(at: BootTime) -> Self {
        Self {
            sandbox: Sandbox::default(),
            first: at,
            last: at,
            running: Vec::new(),
            has_changed: false,
            is_finished: false,
        }
    }

    /// Adds its name unless it is known: several sources may report it, by different paths.
    fn named(&mut self, at: BootTime, path: &str) {
        let name = |path: &str| path.rsplit('/').next().map(str::to_owned);
        let is_known = |step: &Step| step.step == StepKind::Named && name(&step.what) == name(path);
        if !self.sandbox.steps.iter().any(is_known) {
            self.step(at, StepKind::Named, path.to_owned(), true, 0);
        }
    }

    /// Adds a step.
    fn step(&mut self, at: BootTime, step: StepKind, what: String, ok: bool, took_ns: u64) {
        let steps = &mut self.sandbox.steps;
        if steps.len() == STEPS {
            steps.remove(STEPS / 2);
        }
        let after_ns = at.since(self.first);
        steps.push(Step { after_ns, step, what, ok, took_ns });
        self.last = self.last.max(at);
    }
}

/// Sandboxes that exist or are being created or removed. Only those for which a plugin ran are reported.
#[derive(Debug, Default)]
pub(crate) struct Sandboxes {
    attempts: Vec<Attempt>,
}

impl Sandboxes {
    /// Records what an observation shows of a sandbox.
    pub(crate) fn note(&mut self, at: BootTime, observation: &Observation) {
        match observation {
            Observation::Netns(netns) => self.netns(at, netns),
            Observation::NetnsName(name) => self.name(at, name),
            Observation::Link(link) => self.link(at, link),
            Observation::CniStart(start) => self.started(at, start),
            Observation::CniEnd(end) => self.ended(at, end),
            _ => {}
        }
    }

    /// Returns the sandboxes that have changed since they were last reported, and for which nothing is in progress.
    pub(crate) fn settled(&mut self, now: BootTime) -> Vec<Sandbox> {
        let mut settled = Vec::new();
        for attempt in &mut self.attempts {
            if attempt.has_changed && attempt.running.is_empty() && now.since(attempt.last) >= SETTLING {
                attempt.has_changed = false;
                let mut sandbox = attempt.sandbox.clone();
                sandbox.steps.sort_by_key(|step| (step.after_ns, step.step));
                sandbox.took_ns = attempt.last.since(attempt.first);
                sandbox.ok = sandbox.steps.iter().all(|step| step.ok);
                settled.push(sandbox);
            }
        }
        self.attempts.retain(|attempt| attempt.has_changed || !attempt.is_finished);
        settled
    }

    fn of_netns(&mut self, inum: u32) -> Option<&mut Attempt> {
        // The kernel reuses the number of a removed namespace: the newest sandbox with it is meant.
        self.attempts
            .iter_mut()
            .rev()
            .find(|attempt| inum != 0 && attempt.sandbox.netns == inum && !attempt.is_finished)
    }

    fn begin(&mut self, at: BootTime) -> &mut Attempt {
        if self.attempts.len() >= SANDBOXES {
            self.attempts.remove(0);
        }
        self.attempts.push(Attempt::new(at));
        let newest = self.attempts.len() - 1;
        &mut self.attempts[newest]
    }

    fn netns(&mut self, at: BootTime, netns: &Netns) {
        if netns.up {
            let attempt = self.begin(at);
            attempt.sandbox.netns = netns.inum;
            let who = format!("{}[{}]", netns.process.name, netns.process.pid);
            attempt.step(at, StepKind::Created, who, true, 0);
        } else if let Some(attempt) = self.of_netns(netns.inum) {
            attempt.step(at, StepKind::Ended, String::new(), true, 0);
            attempt.is_finished = true;
            attempt.has_changed |= !attempt.sandbox.container_id.is_empty();
        }
    }

    fn name(&mut self, at: BootTime, name: &NetnsName) {
        let Some(attempt) = self.of_netns(name.inum) else { return };
        match name.state {
            NameState::Bound => {
                // Names are observed with a delay, and exist before the first plugin runs.
                let ran = attempt.sandbox.steps.iter().filter(|step| step.step == StepKind::Add);
                let ran = ran.map(|step| attempt.first.plus(step.after_ns));
                let at = attempt.running.iter().map(|(_, since)| *since).chain(ran).fold(at, BootTime::min);
                attempt.named(at, &name.path);
            }
            NameState::Unbound => attempt.step(at, StepKind::Unnamed, name.path.clone(), true, 0),
            NameState::Stale => {}
        }
    }

    fn link(&mut self, at: BootTime, link: &Link) {
        let Some(attempt) = link.netns.and_then(|inum| self.of_netns(inum)) else { return };
        let what = format!("{} {}", link.name, link.link_kind);
        let known = attempt.sandbox.steps.iter().any(|step| step.step == StepKind::Link && step.what == what);
        if link.present && !link.link_kind.is_empty() && !known {
            attempt.step(at, StepKind::Link, what, true, 0);
        }
    }

    fn started(&mut self, at: BootTime, start: &CniStart) {
        // VERSION and STATUS do not concern a sandbox.
        if start.container_id.is_empty() {
            return;
        }
        let inum = match start.netns_seen {
            NetnsSeen::Namespace { inum } => inum,
            _ => 0,
        };
        let known = self.attempts.iter().rposition(|attempt| {
            !attempt.is_finished
                && (inum != 0 && attempt.sandbox.netns == inum
                    || attempt.sandbox.container_id == start.container_id)
        });
        let attempt = match known {
            Some(index) => &mut self.attempts[index],
            None => self.begin(at),
        };
        if inum != 0 {
            attempt.sandbox.netns = inum;
        }
        // On a busy host the mount may be observed only after the last plugin has exited.
        let is_name = start.netns.starts_with('/') && !start.netns.starts_with("/proc/");
        if inum != 0 && start.command == "ADD" && is_name {
            attempt.named(at.minus(start.running_ns), &start.netns);
        }
        attempt.sandbox.container_id.clone_from(&start.container_id);
        if start.pod.is_some() {
            attempt.sandbox.pod.clone_from(&start.pod);
        }
        // After lost events running plugins are reported again.
        if !attempt.running.iter().any(|(running, _)| *running == start.pid) {
            attempt.running.push((start.pid, at.minus(start.running_ns)));
        }
    }

    fn ended(&mut self, at: BootTime, end: &CniEnd) {
        let pid = end.start.pid;
        let runs = |attempt: &&mut Attempt| attempt.running.iter().any(|(running, _)| *running == pid);
        let Some(attempt) = self.attempts.iter_mut().find(runs) else { return };
        attempt.running.retain(|(running, _)| *running != pid);
        attempt.has_changed = true;
        let step = match end.start.command.as_str() {
            "ADD" => StepKind::Add,
            "DEL" => StepKind::Del,
            _ => StepKind::Check,
        };
        attempt.sandbox.added |= step == StepKind::Add;
        let mut what = end.start.plugin.clone();
        for delegate in &end.delegates {
            what.push_str(" ▸ ");
            what.push_str(&delegate.plugin);
        }
        let began = BootTime(at.0.saturating_sub(end.took_ns)).max(attempt.first);
        attempt.step(began, step, what, end.exit.success(), end.took_ns);
        attempt.last = attempt.last.max(at);
        // Without a known namespace its removal will not be observed: this is the last step.
        attempt.is_finished |= step == StepKind::Del && attempt.sandbox.netns == 0;
    }
}

#[cfg(test)]
mod tests {
    use probe_engine::{Actor, ExitStatus};

    use super::*;

    const MS: u64 = 1_000_000;

    fn start(pid: u32, command: &str, inum: u32) -> CniStart {
        CniStart {
            pid,
            command: command.into(),
            plugin: "bridge".into(),
            container_id: "c1".into(),
            netns_seen: if inum == 0 { NetnsSeen::Missing } else { NetnsSeen::Namespace { inum } },
            ..CniStart::default()
        }
    }

    fn end(start: &CniStart, took_ms: u64) -> Observation {
        Observation::CniEnd(CniEnd {
            start: start.clone(),
            took_ns: took_ms * MS,
            exit: ExitStatus::default(),
            ..CniEnd::default()
        })
    }

    #[test]
    fn assembles_all_steps_of_a_sandbox() {
        let mut sandboxes = Sandboxes::default();
        let netns = |up| Observation::Netns(Netns { inum: 7, up, process: Actor::default() });
        let named = NetnsName { path: "/run/netns/x".into(), inum: 7, state: NameState::Bound };
        let link = Link {
            index: 2,
            name: "eth0".into(),
            link_kind: "veth".into(),
            present: true,
            up: true,
            netns: Some(7),
            peer_netns: None,
            moved_to: None,
        };
        let add = start(10, "ADD", 7);
        sandboxes.note(BootTime(0), &netns(true));
        sandboxes.note(BootTime(10 * MS), &Observation::CniStart(add.clone()));
        sandboxes.note(BootTime(30 * MS), &end(&add, 20));
        // Both are observed with a delay.
        sandboxes.note(BootTime(40 * MS), &Observation::NetnsName(named));
        sandboxes.note(BootTime(41 * MS), &Observation::Link(link));
        assert_eq!(sandboxes.settled(BootTime(50 * MS)), []);
        let settled = sandboxes.settled(BootTime(400 * MS));
        let steps: Vec<_> = settled[0].steps.iter().map(|step| (step.after_ns / MS, step.step)).collect();
        let wanted =
            [(0, StepKind::Created), (10, StepKind::Named), (10, StepKind::Add), (41, StepKind::Link)];
        assert_eq!(steps, wanted);
        assert!(settled[0].added && settled[0].ok && settled[0].netns == 7);
        assert_eq!(sandboxes.settled(BootTime(900 * MS)), []);
        sandboxes.note(BootTime(1000 * MS), &netns(false));
        assert_eq!(sandboxes.settled(BootTime(2000 * MS)).len(), 1);
        assert!(sandboxes.attempts.is_empty());
    }

    #[test]
    fn name_is_taken_from_plugin_and_reported_once() {
        let mut sandboxes = Sandboxes::default();
        let add = CniStart { netns: "/var/run/netns/x".into(), ..start(10, "ADD", 7) };
        sandboxes.note(BootTime(0), &Observation::CniStart(add.clone()));
        sandboxes.note(BootTime(20 * MS), &end(&add, 20));
        let name = NetnsName { path: "/run/netns/x".into(), inum: 7, state: NameState::Bound };
        sandboxes.note(BootTime(30 * MS), &Observation::NetnsName(name));
        let settled = sandboxes.settled(BootTime(400 * MS));
        let steps: Vec<_> = settled[0].steps.iter().map(|step| step.step).collect();
        assert_eq!(steps, [StepKind::Named, StepKind::Add]);
    }

    #[test]
    fn reports_del_without_add() {
        let mut sandboxes = Sandboxes::default();
        let del = start(10, "DEL", 0);
        sandboxes.note(BootTime(0), &Observation::CniStart(del.clone()));
        sandboxes.note(BootTime(MS), &end(&del, 1));
        let settled = sandboxes.settled(BootTime(1000 * MS));
        assert!(!settled[0].added && settled[0].netns == 0);
        assert!(sandboxes.attempts.is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let mut sandboxes = Sandboxes::default();
        for inum in 1..2000 {
            sandboxes.note(
                BootTime(u64::from(inum)),
                &Observation::Netns(Netns { inum, up: true, process: Actor::default() }),
            );
        }
        assert_eq!(sandboxes.attempts.len(), SANDBOXES);
        let mut attempt = Attempt::new(BootTime(0));
        for _ in 0..100 {
            attempt.step(BootTime(0), StepKind::Check, String::new(), true, 0);
        }
        assert_eq!(attempt.sandbox.steps.len(), STEPS);
    }
}
