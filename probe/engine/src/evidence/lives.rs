//! Processes that matter: who runs, since when, how it last ended.

use alloc::collections::{BTreeSet, VecDeque};
use alloc::string::String;

use super::Facts;
use crate::limits;
use crate::observation::{Mono, Process, ProcessClass, ProcessEvent};

/// Every process of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) class: ProcessClass,
    /// Those that run.
    pub(crate) pids: BTreeSet<u32>,
    /// When the newest was started, if that was seen.
    pub(crate) started: Option<Mono>,
    /// The newest end.
    pub(crate) ended: Option<(Mono, ProcessEvent)>,
    /// The newest ends.
    ends: VecDeque<Mono>,
}

/// Who ends others to start them again: runtimes, for the kubelet.
const IN_ORDER: &[&str] = &["conmon", "containerd", "crio", "crun", "docker", "kubelet", "runc"];

// include/uapi/asm-generic/signal.h; a shell's and Go's exit code for a signal is 128 more.
const SIGKILL: u8 = 9;
const SIGTERM: u8 = 15;

impl Life {
    /// It ends again and again.
    pub(crate) fn loops(&self, now: Mono) -> bool {
        self.ends.len() >= limits::CRASHES
            && self.ends.front().is_some_and(|at| now.since(*at) < limits::CRASH_WINDOW)
            && self.ends.back().is_some_and(|at| now.since(*at) < limits::CRASH_REST)
    }

    /// When it last ended because somebody whose work that is told it to.
    pub(crate) fn told_to_end(&self) -> Option<Mono> {
        let (at, ProcessEvent::Exited { exit, sender, oom }) = self.ended.as_ref()? else { return None };
        let keeper = sender.as_ref().map(|sender| IN_ORDER.iter().any(|name| sender.name.starts_with(name)));
        let asked = exit.success() || exit.signal == SIGTERM || exit.code == 128 + SIGTERM;
        let in_order = match keeper {
            Some(keeper) => keeper && (asked || exit.signal == SIGKILL),
            None => asked,
        };
        (in_order && !oom).then_some(*at)
    }

    /// Until when it has time to start. What serves others is expected sooner than what waits for others.
    fn settled(&self) -> Option<Mono> {
        use ProcessClass::{ApiServer, Etcd, Proxy};
        let serves = matches!(self.class, ApiServer | Etcd | Proxy);
        let time = if serves { limits::RESTART } else { limits::SETTLE };
        self.started.into_iter().chain(self.told_to_end()).max().map(|at| at.plus(time))
    }

    /// When any of this changes by time alone.
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Mono> {
        let settled = self.settled();
        let rested = self.ended.as_ref().map(|(at, _)| at.plus(limits::CRASH_REST));
        let forgotten = self.ends.front().map(|at| at.plus(limits::CRASH_WINDOW));
        settled.into_iter().chain(rested).chain(forgotten)
    }
}

impl Facts {
    pub(super) fn life(&mut self, at: Mono, process: &Process) {
        let name = &process.process.name;
        if !self.lives.contains_key(name) {
            if self.lives.len() >= limits::LIVES {
                return;
            }
            let life = Life {
                class: process.class,
                pids: BTreeSet::new(),
                started: None,
                ended: None,
                ends: VecDeque::new(),
            };
            self.lives.insert(name.clone(), life);
        }
        let Some(life) = self.lives.get_mut(name) else { return };
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
                life.ended = Some((at, process.event.clone()));
                if life.ends.len() >= limits::CRASHES {
                    life.ends.pop_front();
                }
                life.ends.push_back(at);
            }
        }
    }

    /// Lives of these, by name.
    pub(crate) fn lives_of(
        &self,
        who: impl Fn(&str, ProcessClass) -> bool,
    ) -> impl Iterator<Item = (&String, &Life)> {
        self.lives.iter().filter(move |(name, life)| who(name, life.class))
    }

    /// The newest end of these: who, when and how.
    pub(crate) fn newest_end(
        &self,
        who: impl Fn(&str, ProcessClass) -> bool,
    ) -> Option<(&str, Mono, String)> {
        let ends = self.lives_of(who).filter_map(|(name, life)| {
            let (at, event) = life.ended.as_ref()?;
            Some((name.as_str(), *at, event.how()?))
        });
        ends.max_by_key(|(_, at, _)| *at)
    }

    /// Until when these have time to start: after a boot, after their own start, and after they were told to
    /// end by somebody who will start them again. Who ends again and again has none.
    pub(crate) fn settling(&self, who: impl Fn(&str, ProcessClass) -> bool) -> Option<Mono> {
        let calm = self.lives_of(who).filter(|(_, life)| !life.loops(self.now));
        let boot = Mono(limits::SETTLE);
        calm.filter_map(|(_, life)| life.settled()).chain([boot]).filter(|until| *until > self.now).max()
    }
}
