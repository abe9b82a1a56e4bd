//! Host side of the guest's serial port and console.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::json::{ConsoleFields, ConsoleMode};

/// `--serial tty|file=PATH|null|off`: host side of the guest's first serial port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "ConsoleFields", into = "ConsoleFields")]
pub enum SerialConfig {
    /// Standard input and output.
    Tty,
    /// Output to a file, no input.
    File(PathBuf),
    /// Output is discarded, no input.
    #[default]
    Null,
    /// The guest has no serial port.
    Off,
}

/// Parse error of `--serial` or `--console`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConsoleError {
    /// Unknown mode.
    #[error("\"{0}\" is not a serial mode (known: tty, file=PATH, null, off)")]
    SerialMode(String),
    /// `file=` without a path.
    #[error("file= needs a path")]
    NoPath,
    /// A mode that needs a virtio console.
    #[error(
        "there is no virtio console: \"{0}\" is not supported (known: off, null); the guest's console is --serial"
    )]
    ConsoleMode(String),
}

impl FromStr for SerialConfig {
    type Err = ConsoleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "tty" => Ok(Self::Tty),
            "null" => Ok(Self::Null),
            "off" => Ok(Self::Off),
            "file=" => Err(ConsoleError::NoPath),
            _ => match text.strip_prefix("file=") {
                Some(path) => Ok(Self::File(path.into())),
                None => Err(ConsoleError::SerialMode(text.into())),
            },
        }
    }
}

/// `--console off|null`: accepted as in cloud-hypervisor. There is no virtio console.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(try_from = "ConsoleFields", into = "ConsoleFields")]
pub struct ConsoleConfig;

impl FromStr for ConsoleConfig {
    type Err = ConsoleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" | "null" => Ok(Self),
            _ => Err(ConsoleError::ConsoleMode(text.into())),
        }
    }
}

impl TryFrom<ConsoleFields> for SerialConfig {
    type Error = String;

    fn try_from(fields: ConsoleFields) -> Result<Self, String> {
        match (fields.mode, fields.file) {
            (ConsoleMode::File, Some(path)) => Ok(Self::File(path)),
            (ConsoleMode::File, None) => Err("mode File needs a file".to_owned()),
            (mode, Some(_)) => Err(format!("file has no effect in mode {mode:?}")),
            (ConsoleMode::Tty, None) => Ok(Self::Tty),
            (ConsoleMode::Null, None) => Ok(Self::Null),
            (ConsoleMode::Off, None) => Ok(Self::Off),
        }
    }
}

impl From<SerialConfig> for ConsoleFields {
    fn from(serial: SerialConfig) -> Self {
        match serial {
            SerialConfig::Tty => Self::of(ConsoleMode::Tty),
            SerialConfig::Null => Self::of(ConsoleMode::Null),
            SerialConfig::Off => Self::of(ConsoleMode::Off),
            SerialConfig::File(path) => Self::file(path),
        }
    }
}

impl TryFrom<ConsoleFields> for ConsoleConfig {
    type Error = String;

    fn try_from(fields: ConsoleFields) -> Result<Self, String> {
        match fields.mode {
            ConsoleMode::Off | ConsoleMode::Null if fields.file.is_none() => Ok(Self),
            mode => Err(format!(
                "there is no virtio console: mode {mode:?} is not supported (known: Off, Null); the guest's console is serial"
            )),
        }
    }
}

impl From<ConsoleConfig> for ConsoleFields {
    fn from(_: ConsoleConfig) -> Self {
        Self::of(ConsoleMode::Off)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_modes() {
        assert_eq!("tty".parse(), Ok(SerialConfig::Tty));
        assert_eq!("null".parse(), Ok(SerialConfig::Null));
        assert_eq!("off".parse(), Ok(SerialConfig::Off));
        assert_eq!(
            "file=/tmp/log".parse(),
            Ok(SerialConfig::File("/tmp/log".into()))
        );
        assert_eq!("file=".parse::<SerialConfig>(), Err(ConsoleError::NoPath));
        assert_eq!(
            "pty".parse::<SerialConfig>(),
            Err(ConsoleError::SerialMode("pty".into()))
        );
    }

    #[test]
    fn only_a_console_that_is_off_is_accepted() {
        assert_eq!("off".parse(), Ok(ConsoleConfig));
        assert_eq!("null".parse(), Ok(ConsoleConfig));
        let error = "tty".parse::<ConsoleConfig>().unwrap_err();
        assert!(error.to_string().contains("\"tty\" is not supported"));
    }
}
