//! The newest answer of the container runtime over CRI.

use alloc::format;

use super::Facts;
use super::is_same_path;
use crate::limits;
use crate::memory::Memory;
use crate::observation::{BootTime, Cri, CriAnswer, CriStatus};

/// A CRI answer and how long it has been the same.
#[derive(Clone, Debug)]
pub(crate) struct RuntimeAnswer {
    pub(crate) cri: Cri,
    /// The times of the first and the newest of consecutive similar answers, and their number.
    pub(crate) since: BootTime,
    pub(crate) last: BootTime,
    pub(crate) times: u32,
}

impl Memory for RuntimeAnswer {
    /// A runtime that is ready counts as ready until the next answer.
    fn until(&self) -> Option<BootTime> {
        (!self.cri.answer.is_well()).then(|| self.last.plus(limits::CRI_ANSWER))
    }
}

/// Returns whether two answers are the same apart from details such as the text of an error.
fn is_alike(one: &CriAnswer, other: &CriAnswer) -> bool {
    match (one, other) {
        (CriAnswer::Serves(one), CriAnswer::Serves(other)) => {
            (&one.not_ready, &one.network_not_ready) == (&other.not_ready, &other.network_not_ready)
        }
        _ => core::mem::discriminant(one) == core::mem::discriminant(other),
    }
}

impl Facts {
    pub(super) fn cri(&mut self, at: BootTime, cri: Cri) {
        let known = self.runtime_answer.take();
        let known =
            known.filter(|known| known.cri.socket == cri.socket && is_alike(&known.cri.answer, &cri.answer));
        if known.is_none() {
            self.line(at, "runtime.cri", format!("{} {}", cri.socket, cri.answer.words()));
        }
        if matches!(cri.answer, CriAnswer::Serves(_)) {
            // The runtime serves again; the kubelet reconnects within seconds.
            self.runtime_down.take_if(|down| !down.is_denied() && is_same_path(&down.path, &cri.socket));
        }
        let (since, times) = known.map_or((at, 0), |known| (known.since, known.times));
        let times = times.saturating_add(1);
        self.runtime_answer = Some(RuntimeAnswer { cri, since, last: at, times });
    }

    /// Returns the newest answer of the runtime that the kubelet is configured for.
    pub(crate) fn answer_of_endpoint(&self) -> Option<&RuntimeAnswer> {
        let endpoint = self.host.runtime_endpoint.as_ref()?;
        self.runtime_answer.as_ref().filter(|known| is_same_path(endpoint, &known.cri.socket))
    }

    /// Returns the deadline of the first answer after the agent's start; `None` if it has passed, an answer was received, or
    /// no runtime is called.
    pub(crate) fn until_asked(&self) -> Option<BootTime> {
        let started = self.snapshot_done.filter(|_| self.host.runtime_endpoint.is_some())?;
        let until = started.plus(limits::CRI_FIRST);
        (self.runtime_answer.is_none() && self.now < until).then_some(until)
    }

    /// Returns the status in [`Self::answer_of_endpoint`] if the runtime serves CRI.
    pub(crate) fn runtime_status(&self) -> Option<(&CriStatus, &RuntimeAnswer)> {
        let known = self.answer_of_endpoint()?;
        match &known.cri.answer {
            CriAnswer::Serves(status) => Some((status, known)),
            _ => None,
        }
    }
}
