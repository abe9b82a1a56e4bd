//!
//! Topology files: `p2pctl dump` writes them, and every tool can read one in place of `/sys`.
//!
//! The file is JSON with a version. Its order is fixed and it has one entry per function, so that `diff` can compare
//! two files. It contains the facts from sysfs and the bytes of configuration space that were read, but no computed
//! values. A topology that is read from a file equals the one that was written.

mod config;
mod format;

use crate::topology::RawFunction;
use crate::{Sbdf, Topology};

use format::{Document, FORMAT, VERSION};

/// An error while reading a topology file.
#[derive(Debug, thiserror::Error)]
pub enum FixtureError {
    /// The text is not JSON or does not have the structure of a topology.
    #[error("not a topology file: {0}")]
    Json(#[from] serde_json::Error),
    /// The text is another kind of document.
    #[error("not a topology file: its format is `{found}`, want `{FORMAT}`")]
    Format {
        /// The format that the document names.
        found: String,
    },
    /// This program does not support the version of the file.
    #[error("topology file of version {found}: this program reads version {VERSION}")]
    Version {
        /// The version of the file.
        found: u32,
    },
    /// A field of a function is invalid.
    #[error("{sbdf}: {field} `{text}`: want {want}")]
    Field {
        /// The function.
        sbdf: Sbdf,
        /// The field.
        field: &'static str,
        /// The text of the field.
        text: String,
        /// The expected text.
        want: &'static str,
    },
    /// The name of a root bus is invalid.
    #[error("root bus `{text}`: want a name such as pci0000:00")]
    RootBus {
        /// The name.
        text: String,
    },
}

impl Topology {
    /// Serializes the topology as the text of a file.
    #[must_use]
    pub fn to_fixture(&self) -> String {
        let document = Document::of(self);
        let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Parses a topology from the text of a file.
    pub fn from_fixture(text: &str) -> Result<Self, FixtureError> {
        let document: Document = serde_json::from_str(text)?;
        let (host, raw): (_, Vec<RawFunction>) = document.into_raw()?;
        Ok(Self::build(host, raw))
    }
}
