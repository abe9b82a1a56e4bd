//! Capabilities and users of threads.

use std::io;

use rustix::process::{DumpableBehavior, Gid, Uid, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_keep_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::Role;

/// Permanently drops all capabilities of this thread and its children except those that `role` needs.
pub(super) fn reduce(role: Role) -> io::Result<()> {
    let kept = capabilities(None)?.permitted & needed(role);
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )?;
    set_no_new_privs(true)?;
    Ok(())
}

/// User and group that own nothing (linux include/linux/highuid.h: `DEFAULT_OVERFLOWUID`).
const NOBODY: u32 = 65534;

/// Switches this thread, and no other, to the user nobody, who can open only world-readable files. Capabilities stay.
/// Without CAP_SETUID and CAP_SETGID the user does not change, which matters only for root.
pub(super) fn switch_to_nobody() -> io::Result<()> {
    let permitted = capabilities(None)?.permitted;
    if !permitted.contains(CapabilitySet::SETUID | CapabilitySet::SETGID) {
        if rustix::process::geteuid().is_root() {
            log::warn!(
                "without CAP_SETUID and CAP_SETGID the host thread stays root and can open files of root below /sys/devices"
            );
        }
        return Ok(());
    }
    set_keep_capabilities(true)?;
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    // A change of user makes the kernel mark the process as not dumpable (linux kernel/cred.c: commit_creds()).
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    Ok(())
}

fn needed(role: Role) -> CapabilitySet {
    match role {
        // VFIO locks guest memory beyond RLIMIT_MEMLOCK with this (linux drivers/vfio/vfio_iommu_type1.c:
        // vfio_lock_acct()).
        Role::Main => CapabilitySet::IPC_LOCK,
        // sysfs shows configuration space above 64 bytes, which has the ACS registers, only with this (linux
        // drivers/pci/pci-sysfs.c: pci_read_config()).
        Role::Host => CapabilitySet::SYS_ADMIN,
        Role::Vcpu | Role::Api | Role::Events | Role::Log => CapabilitySet::empty(),
    }
}
