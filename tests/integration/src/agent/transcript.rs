//! Record of the commands run in a lab host and their results, in a file beside the host's logs.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};

use super::Output;

/// The transcript file; a failed test points to it.
pub(crate) struct Transcript {
    file: Mutex<File>,
    started: Instant,
}

impl Transcript {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file =
            File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self {
            file: Mutex::new(file),
            started: Instant::now(),
        })
    }

    /// Adds a command that has ended or was abandoned.
    pub(super) fn add(&self, output: &Output) {
        let mut text = format!(
            "[{:8.3}] {}: {}\n",
            self.started.elapsed().as_secs_f64(),
            output.argv.join(" "),
            output.exit
        );
        for (mark, stream) in [("  ", &output.stdout), ("! ", &output.stderr)] {
            for line in stream.lines() {
                let _ = writeln!(text, "{mark}{line}");
            }
        }
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // Ignored: a full disk shows in other ways, and the command itself succeeded.
        drop(file.write_all(text.as_bytes()));
    }
}
