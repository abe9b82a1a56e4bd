//! Why a call was not done, and what a client is told of it.

use hyper::StatusCode;

use crate::ConfigError;

/// Why the owner of the VM did not do what a call asks.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is no VM.
    #[error("VM is not created")]
    NotCreated,
    /// There is a VM already.
    #[error("VM is already created")]
    AlreadyCreated,
    /// The VM has no guest.
    #[error("VM is not running")]
    NotRunning,
    /// It cannot be done in the VM's state.
    #[error("invalid VM state transition: {0}")]
    State(String),
    /// No device has this name.
    #[error("No device with id {0:?} to remove")]
    UnknownDevice(String),
    /// What was given as a device is none.
    #[error("{0}")]
    NoSuchDevice(String),
    /// What was asked for makes no sense.
    #[error("Failed to validate config")]
    Invalid(#[from] ConfigError),
    /// The body is not the JSON that the call needs.
    #[error("Failed to deserialize JSON")]
    Malformed(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// Policy or hardware forbid it. Nothing was changed.
    #[error("refused")]
    Refused {
        /// Every reason, most fundamental first.
        reasons: Vec<String>,
    },
    /// A file that the VM needs cannot be read.
    #[error("cannot read {path}: {reason}")]
    NoSuchFile {
        /// The file.
        path: String,
        /// Why not.
        reason: String,
    },
    /// It was tried and did not work.
    #[error("{}", messages.first().map_or("failed", String::as_str))]
    Failed {
        /// What went wrong, the root cause last.
        messages: Vec<String>,
    },
    /// Too much is waiting already.
    #[error("Too Many Requests")]
    Busy,
    /// The VMM ends.
    #[error("the VMM is shutting down")]
    Ending,
}

impl Failure {
    /// A failure with its causes.
    pub fn failed(error: &(dyn std::error::Error + 'static)) -> Self {
        let chain = std::iter::successors(Some(error), |error| error.source());
        Self::Failed {
            messages: chain.map(ToString::to_string).collect(),
        }
    }

    /// The status that says it best. cloud-hypervisor answers 500 to what cannot be done in the VM's state;
    /// nothing has failed then, so it is a conflict here.
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::NotCreated | Self::UnknownDevice(_) | Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Invalid(ConfigError::DuplicateId(_))
            | Self::AlreadyCreated
            | Self::NotRunning
            | Self::State(_)
            | Self::Refused { .. } => StatusCode::CONFLICT,
            Self::Invalid(ConfigError::BadId(_) | ConfigError::NoPath)
            | Self::NoSuchDevice(_)
            | Self::Malformed(_)
            | Self::NoSuchFile { .. } => StatusCode::BAD_REQUEST,
            Self::Failed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::Ending => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// What goes below "Error from API" and the name of what was tried, top first.
    pub(super) fn messages(&self) -> Vec<String> {
        match self {
            Self::Failed { messages } => messages.clone(),
            Self::Refused { reasons } => reasons.clone(),
            Self::Malformed(why) => vec![self.to_string(), why.clone()],
            Self::Invalid(error) => vec![self.to_string(), error.to_string()],
            _ => vec![self.to_string()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_says_whose_fault_it_is() {
        let refused = Failure::Refused {
            reasons: vec!["two groups".into()],
        };
        for (failure, status) in [
            (Failure::NotCreated, 404),
            (Failure::UnknownDevice("a".into()), 404),
            (Failure::NotRunning, 409),
            (refused, 409),
            (ConfigError::DuplicateId("a".into()).into(), 409),
            (ConfigError::BadId(String::new()).into(), 400),
            (Failure::failed(&std::fmt::Error), 500),
            (Failure::Busy, 429),
        ] {
            assert_eq!(failure.status().as_u16(), status, "{failure}");
        }
    }

    #[test]
    fn messages_go_from_the_top_to_the_cause() {
        let failure = Failure::from(ConfigError::DuplicateId("a".into()));
        assert_eq!(
            failure.messages(),
            ["Failed to validate config", "Identifier a is not unique"]
        );
    }
}
