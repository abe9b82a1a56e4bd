//! Configuration of a VM that is restored from a snapshot.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustix::process::geteuid;
use serde_json::{Value, json};
use thiserror::Error;

/// Name of the configuration file in a snapshot directory.
const FILE: &str = "config.json";
/// Longest configuration, in bytes: the limit of `vm.create`.
const MAX_BYTES: u64 = 512 << 10;
const SCHEME: &str = "file://";
#[expect(clippy::cast_possible_wrap, reason = "the flag is far from the sign")]
const NONBLOCK: i32 = OFlags::NONBLOCK.bits() as i32;

/// Why a snapshot is not restored.
#[derive(Debug, Error)]
pub(super) enum RestoreError {
    #[error("source_url is not the file:// URL of a directory")]
    NoDirectory,
    #[error(
        "vfio_fds and iommufd_fd would replace devices by descriptors of unknown devices: omit them"
    )]
    Descriptors,
    #[error(
        "cannot read {path}: {source}\n       start the proxy with --snapshots and a directory that contains it"
    )]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{path} is not the configuration of a VM: {why}")]
    NoVm { path: PathBuf, why: String },
    #[error(
        "others may change {path} after the check\n       \
         it and all directories above it must belong to root, and no other user may write to them"
    )]
    Writable { path: PathBuf },
}

/// The configuration of the VM that a `vm.restore` request names, and its directory.
pub(super) fn config(request: &Value) -> Result<(Value, PathBuf), RestoreError> {
    let given = |key: &str| {
        let value = request.get(key).unwrap_or(&Value::Null);
        !value.is_null() && value.as_array().is_none_or(|all| !all.is_empty())
    };
    if given("vfio_fds") || given("iommufd_fd") {
        return Err(RestoreError::Descriptors);
    }
    let url = request.get("source_url").and_then(Value::as_str);
    let path = url.and_then(|url| url.strip_prefix(SCHEME));
    let directory = path.and_then(|path| fs::canonicalize(path).ok());
    let directory = directory.ok_or(RestoreError::NoDirectory)?;
    let path = directory.join(FILE);
    for part in path.ancestors() {
        if !is_ours(part)? {
            let path = part.to_owned();
            return Err(RestoreError::Writable { path });
        }
    }
    let text = read(&path)?;
    match serde_json::from_slice(&text) {
        Ok(config @ Value::Object(_)) => Ok((config, directory)),
        Ok(_) => Err(RestoreError::NoVm {
            path,
            why: "it is not a JSON object".to_owned(),
        }),
        Err(error) => Err(RestoreError::NoVm {
            path,
            why: error.to_string(),
        }),
    }
}

/// The URL of a directory.
pub(super) fn url(directory: &Path) -> Value {
    json!(format!("{SCHEME}{}", directory.display()))
}

/// Whether only root and this process's user can replace the file or its contents.
fn is_ours(path: &Path) -> Result<bool, RestoreError> {
    const WRITABLE: u32 = 0o022;
    const STICKY: u32 = 0o1000;
    let status = fs::symlink_metadata(path).map_err(unreadable(path))?;
    let owner = status.uid();
    let known = owner == 0 || owner == geteuid().as_raw();
    // In a sticky directory everybody can add files, but only the owner of a file can replace it.
    let kept = status.mode() & WRITABLE == 0 || status.is_dir() && status.mode() & STICKY != 0;
    Ok(known && kept && !status.is_symlink())
}

fn read(path: &Path) -> Result<Vec<u8>, RestoreError> {
    let no_vm = |why: &str| RestoreError::NoVm {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    let mut options = File::options();
    // Opening a pipe must not block.
    let options = options.read(true).custom_flags(NONBLOCK);
    let file = options.open(path).map_err(unreadable(path))?;
    if !file.metadata().map_err(unreadable(path))?.is_file() {
        return Err(no_vm("it is not a regular file"));
    }
    let mut text = Vec::new();
    let mut file = file.take(MAX_BYTES.saturating_add(1));
    file.read_to_end(&mut text).map_err(unreadable(path))?;
    match u64::try_from(text.len()).is_ok_and(|length| length <= MAX_BYTES) {
        true => Ok(text),
        false => Err(no_vm("it is too long")),
    }
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> RestoreError {
    let path = path.to_owned();
    move |source| RestoreError::Unreadable { path, source }
}
