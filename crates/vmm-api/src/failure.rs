//! Errors of calls, and their HTTP answers.

use hyper::StatusCode;

use crate::ConfigError;

/// Reason why the VMM did not carry out a call.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is no VM.
    #[error("VM is not created")]
    NotCreated,
    /// There is a VM already.
    #[error("VM is already created")]
    AlreadyCreated,
    /// The VM does not run.
    #[error("VM is not running")]
    NotRunning,
    /// The state of the VM does not permit the call.
    #[error("invalid VM state transition: {0}")]
    State(String),
    /// There is no device with this name.
    #[error("No device with id {0:?} to remove")]
    UnknownDevice(String),
    /// The path or descriptor is not a device that can be assigned.
    #[error("{0}")]
    NoSuchDevice(String),
    /// The configuration is invalid.
    #[error("Failed to validate config")]
    Invalid(#[from] ConfigError),
    /// The body is not the JSON that the call expects.
    #[error("Failed to deserialize JSON")]
    Malformed(String),
    /// The object of the call does not exist.
    #[error("{0}")]
    NotFound(String),
    /// Policy or hardware forbid the call. Nothing was changed.
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
        /// The cause.
        reason: String,
    },
    /// The call was started and failed.
    #[error("{}", messages.first().map_or("failed", String::as_str))]
    Failed {
        /// The error and its causes, the root cause last.
        messages: Vec<String>,
    },
    /// Too many calls are waiting.
    #[error("Too Many Requests")]
    Busy,
    /// The VMM is shutting down.
    #[error("the VMM is shutting down")]
    Ending,
}

impl Failure {
    /// A failure with the causes of `error`.
    pub fn failed(error: &(dyn std::error::Error + 'static)) -> Self {
        let chain = std::iter::successors(Some(error), |error| error.source());
        Self::Failed {
            messages: chain.map(ToString::to_string).collect(),
        }
    }

    /// The HTTP status. cloud-hypervisor answers 500 to calls that the state of the VM does not permit; here that is a
    /// conflict (409).
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

    /// The messages below "Error from API" and the failed action, the root cause last.
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
    fn each_failure_has_its_status() {
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
    fn messages_end_with_the_root_cause() {
        let failure = Failure::from(ConfigError::DuplicateId("a".into()));
        assert_eq!(
            failure.messages(),
            ["Failed to validate config", "Identifier a is not unique"]
        );
    }
}
