//! Restricts the files that can be opened to those that the topology is read from.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use crate::source::proc_beside;

/// The newest Landlock ABI that is used. An older kernel enforces the subset that it supports.
const KNOWN: ABI = ABI::V6;

/// Files in `/proc` that describe the host.
const PROC: [&str; 4] = [
    "bus/pci/devices",
    "cmdline",
    "cpuinfo",
    "sys/kernel/osrelease",
];

/// Restricts this thread and its children to reading the topology below `sysfs` and files below `snapshots`, and to
/// creating and removing the socket `listen`.
pub(super) fn restrict_to_topology(
    sysfs: &Path,
    listen: Option<&Path>,
    snapshots: Option<&Path>,
) -> Result<(), RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::AbstractUnixSocket)?
        .create()?;
    let proc = proc_beside(sysfs);
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    ruleset = allow(ruleset, sysfs, read)?;
    for file in PROC {
        ruleset = allow(ruleset, &proc.join(file), AccessFs::ReadFile.into())?;
    }
    if let Some(snapshots) = snapshots {
        ruleset = allow(ruleset, snapshots, AccessFs::ReadFile.into())?;
    }
    if let Some(listen) = listen {
        let socket = AccessFs::MakeSock | AccessFs::RemoveFile;
        ruleset = allow(ruleset, &directory_of(listen), socket)?;
    }
    if ruleset.restrict_self()?.ruleset == RulesetStatus::NotEnforced {
        log::warn!("this kernel has no Landlock: files are not restricted");
    }
    Ok(())
}

/// Permits access to a path. A missing path is skipped.
fn allow(
    ruleset: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(fd) => ruleset.add_rule(PathBeneath::new(fd, access)),
        Err(error) => {
            log::debug!("not among the files: {error}");
            Ok(ruleset)
        }
    }
}

fn directory_of(socket: &Path) -> PathBuf {
    let parent = socket.parent().unwrap_or(Path::new(""));
    match parent.as_os_str().is_empty() {
        true => PathBuf::from("."),
        false => parent.to_owned(),
    }
}
