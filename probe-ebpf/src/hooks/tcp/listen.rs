//! Listeners.

use probe_common::{Listen, Skip};

use super::socket::{local, netns};
use crate::current;
use crate::filter::{port_watched, process_watched};
use crate::layout::SOCK_NUM;
use crate::read::field;
use crate::report::report_charged;

#[inline(always)]
pub(super) fn changed(sk: *const u8, up: bool) -> Result<(), Skip> {
    // SAFETY: `sk` is the typed argument.
    let port: u16 = unsafe { field(sk, &SOCK_NUM) };
    if !port_watched(port) && !process_watched(current::tgid()) {
        return Ok(());
    }
    let own = local(sk);
    report_charged!(Listen {
        task: current::task_in(netns(sk)),
        addr: own.bytes(),
        port,
        family: own.family,
        up: u8::from(up),
        _pad: [0; 3],
    })
}
