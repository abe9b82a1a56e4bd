//! Why a call was not done.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::Inherited;

/// Why a call was not done.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens at the socket.
    #[error("cannot connect to {socket}")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A descriptor that was to be sent is none.
    #[error("cannot send descriptor {fd}")]
    Descriptor {
        /// Its number.
        fd: Inherited,
        /// Why not.
        source: io::Error,
    },
    /// The connection broke.
    #[error("{call}: the connection to the VMM broke")]
    Broken {
        /// The call.
        call: String,
        /// How.
        source: io::Error,
    },
    /// The VMM did not answer in time. What was asked for may happen yet.
    #[error("{call}: no answer within {} s", patience.as_secs_f32())]
    Late {
        /// The call.
        call: String,
        /// How long it was waited for.
        patience: Duration,
    },
    /// The answer cannot be understood.
    #[error("{call}: cannot understand the answer: {what}")]
    Malformed {
        /// The call.
        call: String,
        /// What is wrong with it.
        what: String,
    },
    /// Policy, hardware or the VM's state forbid it. Nothing was changed.
    #[error("{}", reasons.join("\n"))]
    Refused {
        /// The call.
        call: String,
        /// Every reason, most fundamental first.
        reasons: Vec<String>,
    },
    /// The VMM could not do it.
    #[error("{call}: {}", if messages.is_empty() { format!("status {status}") } else { messages.join(": ") })]
    Failed {
        /// The call.
        call: String,
        /// HTTP's status.
        status: u16,
        /// What the VMM says, from the top to the cause.
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

    /// What an answer with this status and body means.
    pub(super) fn told(call: &str, status: u16, body: &[u8]) -> Self {
        const CONFLICT: u16 = 409;
        // Above the reasons: that it was the API, and what was tried.
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
