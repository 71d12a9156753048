//! Decodes the bytes of the ring buffer into events, by checks and not by casts.

use core::mem::size_of;

use zerocopy::FromBytes;

use crate::hook::Hook;
use crate::record::{
    CniExec, Code, ConnectEnd, ConnectError, ConnectionEnd, Drops, Exit, FileRefused, Header, LimitHit,
    Listen, ModuleRequest, Netns, ProcessExec, Rtnetlink, STDOUT_LEN, Stdout, Task, UnixConnect,
};

/// One record, checked and copied out of the ring.
#[expect(
    clippy::large_enum_variant,
    reason = "lives on the stack for one iteration, and the crate has no heap"
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// See [`ConnectEnd`].
    ConnectEnd(ConnectEnd),
    /// See [`ConnectError`].
    ConnectError(ConnectError),
    /// See [`Listen`].
    Listen(Listen),
    /// See [`CniExec`].
    CniExec(CniExec),
    /// See [`ProcessExec`].
    ProcessExec(ProcessExec),
    /// See [`Stdout`]; holds only the valid bytes.
    Stdout {
        /// Time of the write; clock as in [`Header`].
        at_ns: u64,
        /// The writer.
        task: Task,
        /// The first bytes written, at most [`STDOUT_LEN`].
        data: &'a [u8],
        /// Number of bytes that the process wrote after `data`.
        cut: u64,
    },
    /// See [`Exit`].
    Exit(Exit),
    /// See [`Netns`].
    Netns(Netns),
    /// See [`ConnectionEnd`].
    ConnectionEnd(ConnectionEnd),
    /// See [`UnixConnect`].
    UnixConnect(UnixConnect),
    /// See [`Rtnetlink`].
    Rtnetlink(Rtnetlink),
    /// See [`LimitHit`].
    LimitHit(LimitHit),
    /// See [`ModuleRequest`].
    ModuleRequest(ModuleRequest),
    /// See [`FileRefused`].
    FileRefused(FileRefused),
    /// See [`Drops`].
    Drops(Drops),
}

impl Event<'_> {
    /// Returns the hook that reported the event.
    pub const fn hook(&self) -> Hook {
        match self {
            Self::ConnectEnd(_) | Self::ConnectionEnd(_) | Self::Listen(_) => Hook::InetSockSetState,
            Self::ConnectError(_) | Self::UnixConnect(_) => Hook::Connect,
            Self::CniExec(_) | Self::ProcessExec(_) => Hook::SchedProcessExec,
            Self::Rtnetlink(_) => Hook::Rtnetlink,
            Self::LimitHit(hit) if hit.what == LimitHit::INOTIFY => Hook::InotifyInit,
            Self::LimitHit(_) => Hook::Clone,
            Self::ModuleRequest(_) => Hook::ModuleRequest,
            Self::FileRefused(refused) if refused.write == 1 => Hook::Openat,
            Self::FileRefused(_) => Hook::Execve,
            Self::Drops(_) => Hook::KfreeSkb,
            Self::Stdout { .. } => Hook::Write,
            Self::Exit(_) => Hook::SchedProcessExit,
            // clone(2) creates namespaces as well, but the record does not distinguish the two.
            Self::Netns(netns) if netns.up == 1 => Hook::Unshare,
            Self::Netns(_) => Hook::QdiscDestroy,
        }
    }

    /// Returns when the kernel observed the event; clock as in [`Header`].
    pub const fn at_ns(&self) -> u64 {
        match self {
            Self::ConnectEnd(e) => e.header.at_ns,
            Self::ConnectError(e) => e.header.at_ns,
            Self::Listen(e) => e.header.at_ns,
            Self::CniExec(e) => e.header.at_ns,
            Self::ProcessExec(e) => e.header.at_ns,
            Self::Stdout { at_ns, .. } => *at_ns,
            Self::Exit(e) => e.header.at_ns,
            Self::Netns(e) => e.header.at_ns,
            Self::ConnectionEnd(e) => e.header.at_ns,
            Self::UnixConnect(e) => e.header.at_ns,
            Self::Rtnetlink(e) => e.header.at_ns,
            Self::LimitHit(e) => e.header.at_ns,
            Self::ModuleRequest(e) => e.header.at_ns,
            Self::FileRefused(e) => e.header.at_ns,
            Self::Drops(e) => e.header.at_ns,
        }
    }
}

/// Reason why bytes cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Shorter than a header.
    NoHeader {
        /// Number of bytes in the input.
        got: usize,
    },
    /// The code is not one of [`Code`].
    UnknownCode(u16),
    /// The record of this code has a different size.
    WrongSize {
        /// The code in the header.
        code: Code,
        /// Size of that record, bytes.
        want: usize,
        /// Number of bytes in the input.
        got: usize,
    },
    /// A length inside the record exceeds the record.
    WrongLength {
        /// The code in the header.
        code: Code,
        /// That length, bytes.
        claimed: usize,
    },
}

impl core::fmt::Display for DecodeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoHeader { got } => write!(f, "record of {got} bytes is shorter than its header"),
            Self::UnknownCode(code) => write!(f, "record has the unknown code {code}"),
            Self::WrongSize { code, want, got } => write!(f, "{code:?} record has {got} bytes, not {want}"),
            Self::WrongLength { code, claimed } => {
                write!(f, "{code:?} record claims {claimed} bytes of payload")
            }
        }
    }
}

impl core::error::Error for DecodeError {}

/// Decodes one record of the ring buffer.
///
/// # Errors
/// Returns an error if `bytes` is not exactly one record of a known code.
pub fn decode(bytes: &[u8]) -> Result<Event<'_>, DecodeError> {
    let header = header(bytes)?;
    let code = Code::ALL
        .iter()
        .copied()
        .find(|code| *code as u16 == header.code)
        .ok_or(DecodeError::UnknownCode(header.code))?;
    Ok(match code {
        Code::ConnectEnd => Event::ConnectEnd(whole(code, bytes)?),
        Code::ConnectError => Event::ConnectError(whole(code, bytes)?),
        Code::Listen => Event::Listen(whole(code, bytes)?),
        Code::CniExec => Event::CniExec(whole(code, bytes)?),
        Code::ProcessExec => Event::ProcessExec(whole(code, bytes)?),
        Code::Stdout => stdout(bytes)?,
        Code::Exit => Event::Exit(whole(code, bytes)?),
        Code::Netns => Event::Netns(whole(code, bytes)?),
        Code::ConnectionEnd => Event::ConnectionEnd(whole(code, bytes)?),
        Code::UnixConnect => Event::UnixConnect(whole(code, bytes)?),
        Code::Rtnetlink => Event::Rtnetlink(whole(code, bytes)?),
        Code::LimitHit => Event::LimitHit(whole(code, bytes)?),
        Code::ModuleRequest => Event::ModuleRequest(whole(code, bytes)?),
        Code::FileRefused => Event::FileRefused(whole(code, bytes)?),
        Code::Drops => Event::Drops(whole(code, bytes)?),
    })
}

/// Returns when the kernel wrote a record, from its header alone; clock as in [`Header`].
///
/// # Errors
/// Returns an error if `bytes` is shorter than a header.
pub fn recorded_at(bytes: &[u8]) -> Result<u64, DecodeError> {
    Ok(header(bytes)?.at_ns)
}

fn header(bytes: &[u8]) -> Result<Header, DecodeError> {
    match Header::read_from_prefix(bytes) {
        Ok((header, _)) => Ok(header),
        Err(_) => Err(DecodeError::NoHeader { got: bytes.len() }),
    }
}

fn whole<T: FromBytes>(code: Code, bytes: &[u8]) -> Result<T, DecodeError> {
    T::read_from_bytes(bytes).map_err(|_| DecodeError::WrongSize {
        code,
        want: size_of::<T>(),
        got: bytes.len(),
    })
}

fn stdout(bytes: &[u8]) -> Result<Event<'_>, DecodeError> {
    let record: Stdout = whole(Code::Stdout, bytes)?;
    let claimed = record.len as usize;
    let head = bytes.len() - STDOUT_LEN;
    let data =
        bytes[head..].get(..claimed).ok_or(DecodeError::WrongLength { code: Code::Stdout, claimed })?;
    let cut = record.asked.saturating_sub(u64::from(record.len));
    Ok(Event::Stdout { at_ns: record.header.at_ns, task: record.task, data, cut })
}

/// Returns the text in a fixed-size field: the bytes before the first NUL, or the whole field if it has none.
pub fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, Immutable, IntoBytes};

    use super::*;

    fn assert_truncations_are_errors<T: FromZeros + FromBytes + IntoBytes + Immutable>(code: Code) {
        let mut record = T::new_zeroed();
        let bytes = record.as_mut_bytes();
        bytes[8..10].copy_from_slice(&(code as u16).to_ne_bytes());
        for cut in 0..bytes.len() {
            let got = decode(&bytes[..cut]);
            assert!(got.is_err(), "{code:?} cut to {cut} bytes was decoded as {got:?}");
        }
        assert!(decode(bytes).is_ok(), "{code:?}");
    }

    #[test]
    fn rejects_record_truncated_at_any_length() {
        assert_truncations_are_errors::<ConnectEnd>(Code::ConnectEnd);
        assert_truncations_are_errors::<ConnectError>(Code::ConnectError);
        assert_truncations_are_errors::<Listen>(Code::Listen);
        assert_truncations_are_errors::<CniExec>(Code::CniExec);
        assert_truncations_are_errors::<ProcessExec>(Code::ProcessExec);
        assert_truncations_are_errors::<Stdout>(Code::Stdout);
        assert_truncations_are_errors::<Exit>(Code::Exit);
        assert_truncations_are_errors::<Netns>(Code::Netns);
        assert_truncations_are_errors::<ConnectionEnd>(Code::ConnectionEnd);
        assert_truncations_are_errors::<UnixConnect>(Code::UnixConnect);
        assert_truncations_are_errors::<Rtnetlink>(Code::Rtnetlink);
        assert_truncations_are_errors::<LimitHit>(Code::LimitHit);
        assert_truncations_are_errors::<ModuleRequest>(Code::ModuleRequest);
        assert_truncations_are_errors::<FileRefused>(Code::FileRefused);
        assert_truncations_are_errors::<Drops>(Code::Drops);
    }

    #[test]
    fn rejects_record_with_trailing_bytes() {
        let mut bytes = [0_u8; size_of::<Listen>() + 1];
        bytes[8] = Code::Listen as u8;
        assert!(matches!(decode(&bytes), Err(DecodeError::WrongSize { code: Code::Listen, got: 81, .. })));
    }

    #[test]
    fn reports_unknown_code() {
        let mut bytes = [0_u8; 80];
        bytes[8..10].copy_from_slice(&999_u16.to_ne_bytes());
        assert_eq!(decode(&bytes), Err(DecodeError::UnknownCode(999)));
    }

    #[test]
    fn rejects_stdout_length_beyond_record() {
        let mut record = Stdout::new_zeroed();
        record.header.code = Code::Stdout as u16;
        record.len = 4097;
        assert_eq!(
            decode(record.as_bytes()),
            Err(DecodeError::WrongLength { code: Code::Stdout, claimed: 4097 })
        );
        record.len = 4096;
        record.asked = 5000;
        let Ok(Event::Stdout { data, cut, .. }) = decode(record.as_bytes()) else { panic!("not decoded") };
        assert_eq!((data.len(), cut), (4096, 904));
    }

    #[test]
    fn text_ends_at_first_nul_or_end_of_field() {
        assert_eq!(text(b"eth0\0rest"), b"eth0");
        assert_eq!(text(b"full"), b"full");
        assert_eq!(text(b""), b"");
    }
}
