//! Where a rule comes from.

use std::fmt;
use std::sync::Arc;

/// A line of a policy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of the file, as it was given.
    pub file: Arc<str>,
    /// Number of the line, from 1.
    pub line: usize,
}

impl Place {
    /// The line of `text` that has the byte at `offset`.
    pub(super) fn of(file: &Arc<str>, text: &str, offset: usize) -> Self {
        let before = text.bytes().take(offset);
        Self {
            file: Arc::clone(file),
            line: before.filter(|byte| *byte == b'\n').count() + 1,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// Who made a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody: there is none for the device.
    NoRule,
    /// The quirk table.
    BuiltIn,
    /// The operator.
    File(Place),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRule => f.write_str("no rule"),
            Self::BuiltIn => f.write_str("built-in rule"),
            Self::File(place) => write!(f, "rule at {place}"),
        }
    }
}
