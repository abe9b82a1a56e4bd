//! What root keeps of its rights.

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs,
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

fn needed(role: Role) -> CapabilitySet {
    match role {
        // Guest memory is locked without regard to RLIMIT_MEMLOCK (linux drivers/vfio/vfio_iommu_type1.c:
        // vfio_lock_acct()); and sysfs shows all of a configuration space, where ACS is, to nobody else (linux
        // drivers/pci/pci-sysfs.c: pci_read_config()).
        Role::Main => CapabilitySet::IPC_LOCK | CapabilitySet::SYS_ADMIN,
        Role::Vcpu | Role::Api | Role::Events | Role::Log => CapabilitySet::empty(),
    }
}
