//! The seam to the file system that has the state directory.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// A file system, where it is changed. A fake fails, or ends the process, where a real one may.
pub trait Disk: Debug + Send + Sync {
    /// Makes a change to the file at `path`. `verb` says which.
    fn change(
        &self,
        verb: &'static str,
        path: &Path,
        make: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()>;
}

/// The file system that there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct RealDisk;

impl Disk for RealDisk {
    fn change(
        &self,
        _verb: &'static str,
        _path: &Path,
        make: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        make()
    }
}

/// Sees to it that there is space for `bytes` bytes from `at` on, whose length the file does not have yet. File systems
/// that cannot do that have it or not.
pub(super) fn reserve(file: &File, at: u64, bytes: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::KEEP_SIZE, at, bytes) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
