//! Topology files: `p2pctl dump` writes them, and every tool can read one in place of `/sys`.
//!
//! The file is JSON with a version. Its order is fixed and it has one entry per function, so that `diff` can compare
//! two files. It contains the facts from sysfs and the bytes of configuration space that were read, but no computed
//! values. A topology that is read from a file equals the one that was written.

mod config;
mod format;

use crate::Topology;
use crate::topology::RawFunction;
use format::Document;

pub use format::FixtureError;

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
