//! Errors of client calls.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::InheritedFd;

/// Error of a client call.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection to the socket failed.
    #[error("cannot connect to {socket}")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The descriptor to send is not open.
    #[error("cannot send descriptor {fd}")]
    Descriptor {
        /// The number of the descriptor.
        fd: InheritedFd,
        /// The cause.
        source: io::Error,
    },
    /// The connection to the VMM broke.
    #[error("{call}: the connection to the VMM broke")]
    Broken {
        /// The call.
        call: String,
        /// The cause.
        source: io::Error,
    },
    /// The VMM did not answer in time. It may still carry out the call.
    #[error("{call}: no answer within {} s", patience.as_secs_f32())]
    Late {
        /// The call.
        call: String,
        /// The timeout.
        patience: Duration,
    },
    /// The answer does not parse.
    #[error("{call}: cannot parse the answer: {what}")]
    Malformed {
        /// The call.
        call: String,
        /// What is wrong with the answer.
        what: String,
    },
    /// Policy, hardware or the state of the VM forbid the call. Nothing was changed.
    #[error("{}", reasons.join("\n"))]
    Refused {
        /// The call.
        call: String,
        /// Every reason, most fundamental first.
        reasons: Vec<String>,
    },
    /// The call failed.
    #[error("{call}: {}", if messages.is_empty() { format!("status {status}") } else { messages.join(": ") })]
    Failed {
        /// The call.
        call: String,
        /// The HTTP status.
        status: u16,
        /// The messages of the VMM, the root cause last.
        messages: Vec<String>,
    },
}

impl ClientError {
    pub(super) fn malformed(call: &str, what: impl Display) -> Self {
        Self::Malformed {
            call: call.to_owned(),
            what: what.to_string(),
        }
    }

    /// Builds the error for an answer with this status and body.
    pub(super) fn from_answer(call: &str, status: u16, body: &[u8]) -> Self {
        const CONFLICT: u16 = 409;
        // The reasons follow two messages: "Error from API" and the failed action.
        const TOP: usize = 2;
        let mut messages: Vec<String> = serde_json::from_slice(body).unwrap_or_default();
        let call = call.to_owned();
        if status == CONFLICT && messages.len() > TOP {
            let reasons = messages.split_off(TOP);
            return Self::Refused { call, reasons };
        }
        messages.retain(|message| message != "Error from API");
        Self::Failed {
            call,
            status,
            messages,
        }
    }
}
