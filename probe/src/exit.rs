//! Exit codes: public, see `docs/verdicts.md` §3.

use std::process::ExitCode;

use probe_engine::{Reason, Side, Status};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Ready; or the command did what it was asked to.
    Ready = 0,
    /// A CNI, datapath or runtime fault; or the command failed.
    NodeFault = 1,
    /// Wrong use, unreadable input.
    Usage = 2,
    /// A fault on the way to the API server.
    ApiFault = 3,
    /// Not ready for another reason.
    OtherFault = 4,
    /// Not known.
    Unknown = 5,
    /// Not a Kubernetes node.
    NotApplicable = 6,
    /// Missing privilege or unsupported kernel.
    Unsupported = 77,
}

impl Exit {
    /// For a verdict.
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
    fn every_verdict_has_the_contract_s_exit_code() {
        assert_eq!(Exit::of(Reason::NetworkReady, Status::True) as u8, 0);
        assert_eq!(Exit::of(Reason::IPAMExhausted, Status::False) as u8, 1);
        assert_eq!(Exit::of(Reason::OVSNotReady, Status::False) as u8, 1);
        assert_eq!(Exit::of(Reason::KubeletDown, Status::False) as u8, 1);
        assert_eq!(Exit::of(Reason::APITimeout, Status::False) as u8, 3);
        assert_eq!(Exit::of(Reason::Learning, Status::Unknown) as u8, 5);
        assert_eq!(Exit::of(Reason::NotApplicable, Status::Unknown) as u8, 6);
    }
}
