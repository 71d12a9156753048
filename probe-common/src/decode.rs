//! Bytes become events by checking, never by casting.

use core::mem::size_of;

use zerocopy::FromBytes;

use crate::hook::Hook;
use crate::record::{
    CniExec, Code, ConnectEnd, ConnectError, ConnectionEnd, Drops, Exit, FileRefused, Header, LimitHit,
    Listen, ModuleRequest, Netns, ProcessExec, Rtnetlink, STDOUT_LEN, Stdout, Task, UnixConnect,
};

/// One record, checked and copied out of the ring.
#[expect(clippy::large_enum_variant, reason = "lives on the stack for one turn, in a crate that has no heap")]
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
    /// See [`Stdout`]; only the valid bytes.
    Stdout {
        /// Time of the write; clock as in [`Header`].
        at_ns: u64,
        /// The writer.
        task: Task,
        /// What was written, at most [`STDOUT_LEN`] bytes of it.
        data: &'a [u8],
        /// Bytes that the process wrote beyond `data`.
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
    /// The hook that saw it.
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
            // clone(2) makes one, too; what counts is that it came.
            Self::Netns(netns) if netns.up == 1 => Hook::Unshare,
            Self::Netns(_) => Hook::QdiscDestroy,
        }
    }

    /// When the kernel saw it; clock as in [`Header`].
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

/// Why bytes are not an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Shorter than a header.
    NoHeader {
        /// Bytes given.
        got: usize,
    },
    /// The code is none of [`Code`].
    UnknownCode(u16),
    /// The code's record has another size.
    WrongSize {
        /// The record that the header names.
        code: Code,
        /// Bytes that it takes.
        want: usize,
        /// Bytes given.
        got: usize,
    },
    /// A length inside the record points beyond it.
    WrongLength {
        /// The record that the header names.
        code: Code,
        /// The length it claims.
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

/// Reads one record as the ring buffer gives it.
///
/// # Errors
/// When `bytes` are not exactly one record of a known code.
pub fn decode(bytes: &[u8]) -> Result<Event<'_>, DecodeError> {
    let header = header(bytes)?;
    let code = Code::ALL
        .into_iter()
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

/// When the kernel made a record, without a look at the rest of it; clock as in [`Header`].
///
/// # Errors
/// When there are fewer bytes than a header has.
pub fn made_at(bytes: &[u8]) -> Result<u64, DecodeError> {
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

/// The text in a fixed field: up to the first NUL, or all of it when there is none.
pub fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, Immutable, IntoBytes};

    use super::*;

    fn every_cut_is_an_error<T: FromZeros + FromBytes + IntoBytes + Immutable>(code: Code) {
        let mut record = T::new_zeroed();
        let bytes = record.as_mut_bytes();
        bytes[8..10].copy_from_slice(&(code as u16).to_ne_bytes());
        for cut in 0..bytes.len() {
            let got = decode(&bytes[..cut]);
            assert!(got.is_err(), "{code:?} cut to {cut} bytes was taken for {got:?}");
        }
        assert!(decode(bytes).is_ok(), "{code:?}");
    }

    #[test]
    fn a_record_cut_at_any_length_is_an_error() {
        every_cut_is_an_error::<ConnectEnd>(Code::ConnectEnd);
        every_cut_is_an_error::<ConnectError>(Code::ConnectError);
        every_cut_is_an_error::<Listen>(Code::Listen);
        every_cut_is_an_error::<CniExec>(Code::CniExec);
        every_cut_is_an_error::<ProcessExec>(Code::ProcessExec);
        every_cut_is_an_error::<Stdout>(Code::Stdout);
        every_cut_is_an_error::<Exit>(Code::Exit);
        every_cut_is_an_error::<Netns>(Code::Netns);
        every_cut_is_an_error::<ConnectionEnd>(Code::ConnectionEnd);
        every_cut_is_an_error::<UnixConnect>(Code::UnixConnect);
        every_cut_is_an_error::<Rtnetlink>(Code::Rtnetlink);
        every_cut_is_an_error::<LimitHit>(Code::LimitHit);
        every_cut_is_an_error::<ModuleRequest>(Code::ModuleRequest);
        every_cut_is_an_error::<FileRefused>(Code::FileRefused);
        every_cut_is_an_error::<Drops>(Code::Drops);
    }

    #[test]
    fn a_record_with_bytes_to_spare_is_an_error() {
        let mut bytes = [0_u8; size_of::<Listen>() + 1];
        bytes[8] = Code::Listen as u8;
        assert!(matches!(decode(&bytes), Err(DecodeError::WrongSize { code: Code::Listen, got: 81, .. })));
    }

    #[test]
    fn an_unknown_code_is_named() {
        let mut bytes = [0_u8; 80];
        bytes[8..10].copy_from_slice(&999_u16.to_ne_bytes());
        assert_eq!(decode(&bytes), Err(DecodeError::UnknownCode(999)));
    }

    #[test]
    fn a_write_that_claims_more_than_its_record_is_an_error() {
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
    fn text_ends_at_the_first_nul_or_at_the_end() {
        assert_eq!(text(b"eth0\0rest"), b"eth0");
        assert_eq!(text(b"full"), b"full");
        assert_eq!(text(b""), b"");
    }
}
