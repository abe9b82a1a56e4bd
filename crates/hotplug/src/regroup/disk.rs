//! Interface to the file system of the state directory.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// Changes to a file system. A fake fails or ends the process where a real file system may.
pub trait Disk: Debug + Send + Sync {
    /// Applies a change to the file at `path`. `verb` names the change.
    fn change(
        &self,
        verb: &'static str,
        path: &Path,
        make: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()>;
}

/// The real file system.
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

/// Reserves space for `bytes` bytes from offset `at`, without changing the length of the file. On file systems that
/// cannot reserve space this does nothing.
pub(super) fn reserve(file: &File, at: u64, bytes: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::KEEP_SIZE, at, bytes) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
