//! The container runtime does not serve CRI.

use alloc::format;
use alloc::vec::Vec;

use super::{Causes, Fault};
use crate::errno::socket_words;
use crate::facts::{Facts, RuntimeAnswer};
use crate::limits;
use crate::observation::{BootTime, CriAnswer, ProcessClass};
use crate::reason::Reason;

pub(super) fn judge(facts: &Facts) -> Vec<Fault> {
    if let Some((who, how, since)) = facts.stuck_of(ProcessClass::Runtime) {
        let message = format!("the container runtime does not respond: {} {}", who.with_pid(), how.words());
        return Vec::from([Fault::new(Reason::RuntimeDown, who.name.as_str(), message, since)]);
    }
    let down = facts.dead_endpoint().map(|failure| {
        let words = socket_words(failure.errno);
        let message = format!("the kubelet cannot reach the container runtime: {} {words}", failure.path);
        Fault::new(Reason::RuntimeDown, failure.path.as_str(), message, failure.since)
    });
    let down = down.or_else(|| unserving(facts)).map(|fault| fault.settles(settling(facts)));
    down.or_else(|| without_cri(facts))
        .map(|fault| fault.may_come_from(Causes::Runtime))
        .into_iter()
        .collect()
}

/// Judges failed CRI calls and the runtime's own condition.
fn unserving(facts: &Facts) -> Option<Fault> {
    let known = facts.answer_of_endpoint()?;
    let often = known.times >= limits::CRI_FAILURES;
    let is_fault = match &known.cri.answer {
        // Established connections outlive the socket file.
        CriAnswer::Unreachable { .. } => often && facts.runtime.is_none(),
        CriAnswer::Silent | CriAnswer::Fails { .. } => often,
        CriAnswer::Serves(status) => status.not_ready.is_some(),
        CriAnswer::Unimplemented { .. } => false,
    };
    is_fault.then(|| of_answer(known))
}

/// Judges a runtime that serves its socket without CRI. No grace period applies: a runtime serves its socket only after
/// it has registered all services.
fn without_cri(facts: &Facts) -> Option<Fault> {
    let known = facts.answer_of_endpoint().filter(|known| known.times >= limits::CRI_FAILURES)?;
    matches!(known.cri.answer, CriAnswer::Unimplemented { .. }).then(|| of_answer(known))
}

fn of_answer(known: &RuntimeAnswer) -> Fault {
    let socket = known.cri.socket.as_str();
    let message = format!("the container runtime cannot start pods: {socket} {}", known.cri.answer.words());
    Fault::new(Reason::RuntimeDown, socket, message, known.since)
}

/// Returns the end of the grace period of a runtime that was just started.
fn settling(facts: &Facts) -> Option<BootTime> {
    facts.settling(|_, class| class == ProcessClass::Runtime)
}
