//! Processes of the node's components: which run, since when, and how they last exited.

use alloc::collections::{BTreeSet, VecDeque};
use alloc::format;
use alloc::string::String;
use core::net::SocketAddr;

use super::Facts;
use crate::limits;
use crate::memory::{Memory, Seen};
use crate::observation::{
    Actor, BootTime, Process, ProcessClass, ProcessEvent, ProcessManager, Stuck, StuckHow,
};
use crate::outcome::is_own;

/// All processes of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) class: ProcessClass,
    /// Those that are running.
    pub(crate) pids: BTreeSet<u32>,
    /// When the newest was started, if its start was observed.
    pub(crate) started: Option<BootTime>,
    /// The newest exit.
    pub(crate) ended: Option<(BootTime, ProcessEvent)>,
    /// The newest crashes. A stop is not a crash.
    crashes: VecDeque<BootTime>,
    /// How long each of those that exited last had run, nanoseconds.
    lived_ns: VecDeque<u64>,
}

impl Life {
    /// Returns whether it is crash-looping. A process that outlives its predecessors ends the loop.
    pub(crate) fn loops(&self, now: BootTime) -> bool {
        let recent = |crash: Option<&BootTime>, window| crash.is_some_and(|at| now.since(*at) < window);
        self.crashes.len() >= limits::CRASHES
            && recent(self.crashes.front(), limits::CRASH_WINDOW)
            && recent(self.crashes.back(), limits::CRASH_REST)
            && !self.is_up_again(now)
    }

    /// Returns whether the process that exited last was stopped.
    pub(crate) fn was_stopped(&self) -> bool {
        self.ended.as_ref().is_some_and(|(_, event)| event.is_stop())
    }

    /// Returns whether the running process has outlived its predecessors.
    pub(crate) fn is_up_again(&self, now: BootTime) -> bool {
        self.up_again_from().is_some_and(|at| at <= now)
    }

    /// Returns when the running process will have lived twice as long as any of its predecessors.
    fn up_again_from(&self) -> Option<BootTime> {
        let longest = self.lived_ns.iter().max()?;
        let rest = longest.saturating_mul(2).clamp(limits::UP_AGAIN, limits::CRASH_REST);
        self.started.filter(|_| !self.pids.is_empty()).map(|at| at.plus(rest))
    }

    /// Returns the end of its grace period. Servers are expected sooner than components that wait for them, and so are units
    /// of the host: a supervisor stops a unit only to start it again at once.
    fn settled(&self) -> Option<BootTime> {
        use ProcessClass::{ApiServer, Etcd, Proxy};
        let serves = matches!(self.class, ApiServer | Etcd | Proxy);
        let time = if serves { limits::RESTART } else { limits::SETTLE };
        let stopped = self.stopped().map(|(at, keeper)| match keeper {
            ProcessManager::Supervisor => at.plus(limits::RESTART),
            ProcessManager::Runtime => at.plus(time),
        });
        self.started.map(|at| at.plus(time)).into_iter().chain(stopped).max()
    }

    /// Returns when it was last stopped, and by whom, if that was a supervisor or runtime that starts it again.
    fn stopped(&self) -> Option<(BootTime, ProcessManager)> {
        let (at, event) = self.ended.as_ref()?;
        Some((*at, event.stopped_by_manager()?))
    }
}

impl Memory for Life {
    fn deadlines(&self, _now: BootTime, at: &mut dyn FnMut(BootTime)) {
        let settled = self.settled();
        let rested = self.ended.as_ref().map(|(at, _)| at.plus(limits::CRASH_REST));
        let forgotten = self.crashes.front().map(|at| at.plus(limits::CRASH_WINDOW));
        settled.into_iter().chain(rested).chain(forgotten).chain(self.up_again_from()).for_each(at);
    }
}

/// The newest exits of components that serve others, oldest first, apart from orderly stops.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exits(VecDeque<(BootTime, Process)>);

impl Exits {
    /// Returns them, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(BootTime, Process)> {
        self.0.iter()
    }

    pub(super) fn push(&mut self, at: BootTime, process: Process) {
        if self.0.len() >= limits::EXITS {
            self.0.pop_front();
        }
        self.0.push_back((at, process));
    }
}

impl Memory for Exits {
    fn expire(&mut self, now: BootTime) {
        self.0.retain(|(at, _)| now.since(*at) < limits::CRASH_WINDOW);
    }

    fn deadlines(&self, _now: BootTime, at: &mut dyn FnMut(BootTime)) {
        self.0.front().iter().for_each(|(oldest, _)| at(oldest.plus(limits::CRASH_WINDOW)));
        self.0.back().iter().for_each(|(newest, _)| at(newest.plus(limits::CRASH_REST)));
    }
}

/// Keeps as many as make a crash loop.
fn push<T>(newest: &mut VecDeque<T>, one: T) {
    if newest.len() >= limits::CRASHES {
        newest.pop_front();
    }
    newest.push_back(one);
}

impl Facts {
    pub(super) fn life(&mut self, at: BootTime, process: &Process) {
        let name = &process.process.name;
        let new = || Life {
            class: process.class,
            pids: BTreeSet::new(),
            started: None,
            ended: None,
            crashes: VecDeque::new(),
            lived_ns: VecDeque::new(),
        };
        let Some(life) = self.lives.get_or_insert_with(name.clone(), new) else { return };
        match &process.event {
            ProcessEvent::Started | ProcessEvent::Found => {
                if process.event == ProcessEvent::Started {
                    life.started = Some(at);
                }
                if life.pids.len() < limits::LIVES {
                    life.pids.insert(process.process.pid);
                }
            }
            ProcessEvent::Exited { .. } => {
                life.pids.remove(&process.process.pid);
                self.stuck.remove(&process.process.pid);
                life.ended = Some((at, process.event.clone()));
                let lived_ns = life.started.map_or(0, |started| at.since(started));
                push(&mut life.lived_ns, lived_ns);
                if !process.event.is_stop() {
                    push(&mut life.crashes, at);
                }
            }
        }
    }

    pub(super) fn stuck(&mut self, at: BootTime, stuck: Stuck) {
        let pid = stuck.process.pid;
        let Some(how) = stuck.how else {
            self.stuck.remove(&pid);
            return;
        };
        let known = self.stuck.get(&pid).map(|known| known.since);
        if known.is_none() {
            self.line(at, "process.stuck", format!("{}[{pid}] {}", stuck.process.name, how.words()));
        }
        let since = known.unwrap_or_else(|| at.minus(stuck.for_ns));
        self.stuck.put(pid, Seen { value: stuck, since, last: at });
    }

    /// Returns the running process of this class that makes no progress, how, and since when.
    pub(crate) fn stuck_of(&self, class: ProcessClass) -> Option<(&Actor, StuckHow, BootTime)> {
        let mut stuck = self.stuck.values().filter(|known| known.value.class == class);
        stuck.find_map(|known| Some((&known.value.process, known.value.how?, known.since)))
    }

    /// Returns the matching processes by name.
    pub(crate) fn lives_of(
        &self,
        who: impl Fn(&str, ProcessClass) -> bool,
    ) -> impl Iterator<Item = (&String, &Life)> {
        self.lives.iter().filter(move |(name, life)| who(name, life.class))
    }

    /// Returns the newest exit among the matching processes: name, time and manner.
    pub(crate) fn newest_exit(
        &self,
        who: impl Fn(&str, ProcessClass) -> bool,
    ) -> Option<(&str, BootTime, String)> {
        let ends = self.lives_of(who).filter_map(|(name, life)| {
            let (at, event) = life.ended.as_ref()?;
            Some((name.as_str(), *at, event.how()?))
        });
        ends.max_by_key(|(_, at, _)| *at)
    }

    /// Returns when a supervisor last stopped the server of an address of this host, if the restart may still be under way.
    pub(super) fn restarted(&self, now: BootTime, addr: SocketAddr) -> Option<BootTime> {
        if !is_own(addr.ip(), &self.host.addresses) {
            return None;
        }
        let serves = |_: &str, class| matches!(class, ProcessClass::ApiServer | ProcessClass::Proxy);
        let stops = self.lives_of(serves).filter_map(|(_, life)| life.stopped());
        let by_supervisor =
            stops.filter(|(_, keeper)| *keeper == ProcessManager::Supervisor).map(|(at, _)| at);
        by_supervisor.max().filter(|at| now.since(*at) < limits::RESTART)
    }

    /// Returns the end of the grace period of the matching processes: after a boot, after their own start, and after a runtime
    /// or supervisor that starts them again stopped them. A crash loop gets no grace period.
    pub(crate) fn settling(&self, who: impl Fn(&str, ProcessClass) -> bool) -> Option<BootTime> {
        let calm = self.lives_of(who).filter(|(_, life)| !life.loops(self.now));
        let boot = BootTime(limits::SETTLE);
        calm.filter_map(|(_, life)| life.settled()).chain([boot]).filter(|until| *until > self.now).max()
    }
}
