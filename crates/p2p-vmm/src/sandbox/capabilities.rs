//! What root keeps of its rights.

use std::io;

use rustix::process::{DumpableBehavior, Gid, Uid, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_keep_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::Role;

/// Takes all but what `role` needs from this thread, for good, and from what it starts.
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

/// Makes this thread, and no other, one of nobody's: it opens what everybody may. Capabilities stay. Without the right to
/// do so it stays who it is, which only root's threads notice.
pub(super) fn switch_to_nobody() -> io::Result<()> {
    let permitted = capabilities(None)?.permitted;
    if !permitted.contains(CapabilitySet::SETUID | CapabilitySet::SETGID) {
        if rustix::process::geteuid().is_root() {
            log::warn!(
                "without CAP_SETUID and CAP_SETGID files of root can be read below /sys/devices"
            );
        }
        return Ok(());
    }
    set_keep_capabilities(true)?;
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    // The kernel takes the process for one that has changed its user (linux kernel/cred.c: commit_creds()).
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    Ok(())
}

fn needed(role: Role) -> CapabilitySet {
    match role {
        // Guest memory is locked without regard to RLIMIT_MEMLOCK (linux drivers/vfio/vfio_iommu_type1.c:
        // vfio_lock_acct()).
        Role::Main => CapabilitySet::IPC_LOCK,
        // sysfs shows all of a configuration space, where ACS is, to nobody else (linux drivers/pci/pci-sysfs.c:
        // pci_read_config()).
        Role::Host => CapabilitySet::SYS_ADMIN,
        Role::Vcpu | Role::Api | Role::Events | Role::Log => CapabilitySet::empty(),
    }
}
