//! Paths of the workspace, the lab's directories and programs.

use std::env;
use std::path::{Path, PathBuf};

/// The root of the workspace that this crate was built in.
pub(crate) fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// Directory of everything the lab writes: `target/lab` in the workspace.
#[must_use]
pub fn lab_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), PathBuf::from)
        .join("lab")
}

/// Directory of downloads: `LAB_CACHE`, or `target/lab/cache`.
pub(crate) fn cache_dir() -> PathBuf {
    env::var_os("LAB_CACHE").map_or_else(|| lab_dir().join("cache"), PathBuf::from)
}

/// Directory of the profiles, init scripts and module lists.
pub(crate) fn resources() -> PathBuf {
    workspace().join("resources/lab")
}

/// The first executable file of this name on `PATH` or in the system's administration directories.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
