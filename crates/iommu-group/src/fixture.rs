//! A topology as a file: what `p2pctl dump` writes and every tool reads in place of `/sys`.
//!
//! The file is JSON with a version, in one order and with one function per entry, so that two of them can be
//! compared with `diff`. It has what sysfs says and the bytes of configuration space that were read, but none of
//! what is computed from them; a topology read from a file is equal to the one that was written.

mod config;
mod format;

use crate::topology::RawFunction;
use crate::{Sbdf, Topology};

use format::{Document, FORMAT, VERSION};

/// Why a text is not a topology.
#[derive(Debug, thiserror::Error)]
pub enum FixtureError {
    /// It is not JSON, or not of the shape that a topology has.
    #[error("not a topology file: {0}")]
    Json(#[from] serde_json::Error),
    /// It is some other document.
    #[error("not a topology file: its format is `{found}`, want `{FORMAT}`")]
    Format {
        /// What it says it is.
        found: String,
    },
    /// It is of a version that this program does not know.
    #[error("topology file of version {found}: this program reads version {VERSION}")]
    Version {
        /// The version of the file.
        found: u32,
    },
    /// Something of a function makes no sense.
    #[error("{sbdf}: {field} `{text}`: want {want}")]
    Field {
        /// The function.
        sbdf: Sbdf,
        /// Where.
        field: &'static str,
        /// What is there.
        text: String,
        /// What should be there.
        want: &'static str,
    },
    /// A root bus makes no sense.
    #[error("root bus `{text}`: want a name such as pci0000:00")]
    RootBus {
        /// What is there.
        text: String,
    },
}

impl Topology {
    /// Writes the topology as a file.
    #[must_use]
    pub fn to_fixture(&self) -> String {
        let document = Document::of(self);
        let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Reads a topology from the text of a file.
    pub fn from_fixture(text: &str) -> Result<Self, FixtureError> {
        let document: Document = serde_json::from_str(text)?;
        let (host, raw): (_, Vec<RawFunction>) = document.into_raw()?;
        Ok(Self::build(host, raw))
    }
}
