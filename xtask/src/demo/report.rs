//! Output of the demo: facts on standard output, everything else in a file.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use lab::Progress;

pub(super) struct Report {
    progress: Progress,
    path: PathBuf,
    file: RefCell<File>,
}

impl Report {
    pub(super) fn begin(progress: Progress) -> Result<Self> {
        let dir = lab::lab_dir();
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let path = dir.join("demo.log");
        let file =
            File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self {
            progress,
            path,
            file: RefCell::new(file),
        })
    }

    /// Prints a fact. A fact that belongs to the previous one has no label.
    pub(super) fn fact(&self, label: &str, text: &str) -> Result<()> {
        self.progress.clear();
        println!("{label:<9}{text}");
        self.log(&format!("{label:<9}{text}"))
    }

    /// Writes to the file only.
    pub(super) fn log(&self, text: &str) -> Result<()> {
        writeln!(self.file.borrow_mut(), "{}", text.trim_end())
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    pub(super) fn details(&self) -> &Path {
        &self.path
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }
}
