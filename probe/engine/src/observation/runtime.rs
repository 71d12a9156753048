//! Responses of the container runtime over CRI.

use alloc::format;
use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::errno::socket_words;

/// See [`super::Observation::Cri`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cri {
    /// Path of the socket on the host; control characters are escaped.
    pub socket: String,
    /// The result of the calls.
    pub answer: CriAnswer,
}

/// The result of calling a container runtime over CRI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum CriAnswer {
    /// It serves CRI.
    Serves(CriStatus),
    /// connect(2) failed.
    Unreachable {
        /// The positive errno.
        errno: u32,
    },
    /// It serves its socket, but not CRI.
    Unimplemented {
        /// The configuration file that disables CRI, if one was found.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disabled_by: Option<String>,
    },
    /// It did not respond in time.
    Silent,
    /// It returned an error.
    Fails {
        /// The error message of the runtime, or else of the connection.
        why: String,
    },
}

/// The status of a container runtime that serves CRI.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CriStatus {
    /// Its name and version.
    pub runtime: String,
    /// The version of the API: `v1` or `v1alpha2`.
    pub api: String,
    /// Why its condition `RuntimeReady` is false, in the format of the kubelet: reason, colon, message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_ready: Option<String>,
    /// The same for `NetworkReady`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_not_ready: Option<String>,
    /// The result of loading the network configuration: `OK`, or an error. Only containerd reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_load: Option<String>,
    /// The configured sandbox image, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_image: Option<SandboxImage>,
}

/// The image of the container that holds each sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxImage {
    /// The configured name.
    pub name: String,
    /// Whether the runtime's image store has it.
    pub is_here: bool,
}

impl CriStatus {
    /// The value of [`Self::config_load`] for a configuration that was loaded (`internal/cri/server/status.go` in
    /// containerd).
    pub(crate) const LOADED: &'static str = "OK";
}

impl CriAnswer {
    /// Returns whether the runtime serves CRI and reports both of its conditions as true.
    pub fn is_well(&self) -> bool {
        matches!(self, Self::Serves(status) if status.not_ready.is_none() && status.network_not_ready.is_none())
    }

    /// Returns the result as a phrase that follows the path of the socket.
    pub fn words(&self) -> String {
        match self {
            Self::Serves(status) => {
                let CriStatus { runtime, api, not_ready, network_not_ready, .. } = status;
                match not_ready.as_ref().or(network_not_ready.as_ref()) {
                    Some(why) => format!("{runtime} serves CRI {api}, not ready: {why}"),
                    None => format!("{runtime} serves CRI {api}, ready"),
                }
            }
            Self::Unreachable { errno } => socket_words(*errno),
            Self::Unimplemented { disabled_by: None } => "does not serve CRI".into(),
            Self::Unimplemented { disabled_by: Some(file) } => {
                format!("does not serve CRI: {file} disables it")
            }
            Self::Silent => "does not respond".into(),
            Self::Fails { why } => format!("returned an error: {why}"),
        }
    }
}
