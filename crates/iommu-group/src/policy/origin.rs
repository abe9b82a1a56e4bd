//! Origins of rules.

use std::fmt;
use std::sync::Arc;

/// A line of a policy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Name of the file, as it was given.
    pub file: Arc<str>,
    /// Line number, from 1.
    pub line: usize,
}

impl Location {
    /// The line of `text` that contains the byte at `offset`.
    #[cfg(feature = "policy-file")]
    pub(super) fn of(file: &Arc<str>, text: &str, offset: usize) -> Self {
        let before = text.bytes().take(offset);
        Self {
            file: Arc::clone(file),
            line: before
                .filter(|byte| *byte == b'\n')
                .count()
                .saturating_add(1),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// The origin of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// No rule matches the device.
    NoRule,
    /// The built-in table.
    BuiltIn,
    /// The operator's policy file.
    File(Location),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRule => f.write_str("no rule"),
            Self::BuiltIn => f.write_str("built-in rule"),
            Self::File(location) => write!(f, "rule at {location}"),
        }
    }
}
