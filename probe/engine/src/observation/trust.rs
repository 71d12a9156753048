//! Whether the kubelet trusts the API server, and the API server the kubelet.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use super::Answer;
use super::api::{FORBIDDEN, UNAUTHORIZED};

/// See [`Answer::untrusted`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Untrusted {
    /// The file with the CA certificates: a kubeconfig, or the file that it names. Control characters are escaped.
    pub file: String,
    /// Distinguished name of the certificate's issuer; control characters are escaped.
    pub issuer: String,
    /// A kubelet has, or may have, a connection to this address on which it is served. Then the CAs that it read at its
    /// start count, not the present content of the file.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub kubelet_served: bool,
}

/// See [`Answer::kubelet`]. The request reads the kubelet's own Node object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialAnswer {
    /// The file that holds the certificate or the token; control characters are escaped.
    pub file: String,
    /// HTTP status of the response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The TLS alert (its name in RFC 8446 section 6) by which the server rejects the client certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alert: Option<String>,
    /// The server's message in a response with 403, on one line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Whether the Node object certainly belongs to the credential. Otherwise a 403 Forbidden proves only that the
    /// server accepts the credential: bootstrap tokens may not read nodes.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub own_node: bool,
}

impl CredentialAnswer {
    /// Returns whether the server refuses the credential.
    pub fn refuses(&self) -> bool {
        let status = self.status;
        self.alert.is_some() || status == Some(UNAUTHORIZED) || status == Some(FORBIDDEN) && self.own_node
    }

    /// Returns whether the server could not serve the request.
    pub fn fails(&self) -> bool {
        self.status.is_some_and(Answer::is_refusal)
    }

    /// Returns whether the server accepts the credential and served the request.
    pub fn accepts(&self) -> bool {
        !self.refuses() && !self.fails()
    }
}
