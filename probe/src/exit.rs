//! Exit codes: public, see `docs/verdicts.md` §3.

use std::process::ExitCode;

use probe_engine::{Reason, Side, Status};

/// The exit code of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The node is ready, or the command succeeded.
    Ready = 0,
    /// A CNI, datapath or runtime fault, or the command failed.
    NodeFault = 1,
    /// A usage error or unreadable input.
    Usage = 2,
    /// A fault on the path to the API server.
    ApiFault = 3,
    /// Not ready for another reason.
    OtherFault = 4,
    /// The verdict is unknown.
    Unknown = 5,
    /// The host is not a Kubernetes node.
    NotApplicable = 6,
    /// Missing privilege or unsupported kernel.
    Unsupported = 77,
}

impl Exit {
    /// Returns the exit code for a verdict.
    pub(crate) const fn of(reason: Reason, status: Status) -> Self {
        match (reason, status, reason.side()) {
            (Reason::NotApplicable, ..) => Self::NotApplicable,
            (_, Status::True, _) => Self::Ready,
            (_, Status::Unknown, _) => Self::Unknown,
            (_, Status::False, Side::Api) => Self::ApiFault,
            (_, Status::False, Side::Cni | Side::Datapath | Side::Runtime) => Self::NodeFault,
            (_, Status::False, Side::None) => Self::OtherFault,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_code_follows_from_reason_and_status() {
        assert_eq!(Exit::of(Reason::NetworkReady, Status::True) as u8, 0);
        assert_eq!(Exit::of(Reason::IPAMExhausted, Status::False) as u8, 1);
        assert_eq!(Exit::of(Reason::OVSNotReady, Status::False) as u8, 1);
        assert_eq!(Exit::of(Reason::KubeletDown, Status::False) as u8, 1);
        assert_eq!(Exit::of(Reason::APITimeout, Status::False) as u8, 3);
        assert_eq!(Exit::of(Reason::Learning, Status::Unknown) as u8, 5);
        assert_eq!(Exit::of(Reason::NotApplicable, Status::Unknown) as u8, 6);
    }
}
