//! The privileges that the proxy, the daemon and `launch` drop. docs/security.md describes what remains.
//!
//! These functions are called before other threads are started; later threads inherit the restrictions.

mod files;
mod filter;

use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs,
};

/// Confines the proxy, which reads the topology and snapshots, connects to a VMM's socket and serves one. The topology
/// is in `sysfs`.
pub(crate) fn proxy(sysfs: &Path, listen: &Path, snapshots: Option<&Path>) -> Result<()> {
    // Needed for reading the whole configuration space, and for VMM sockets of other users.
    keep(CapabilitySet::SYS_ADMIN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH)?;
    files::restrict_to_topology(sysfs, Some(listen), snapshots).context("cannot give up files")?;
    install(&[libc::AF_UNIX])
}

/// Confines the daemon, which changes the host and communicates with VMMs and clients. It starts no programs.
pub(crate) fn daemon() -> Result<()> {
    // The capabilities that resources/systemd/p2pctl.service permits.
    keep(
        CapabilitySet::SYS_ADMIN
            | CapabilitySet::SYS_PTRACE
            | CapabilitySet::DAC_READ_SEARCH
            | CapabilitySet::DAC_OVERRIDE,
    )?;
    install(&[libc::AF_UNIX, libc::AF_NETLINK])
}

/// Confines a thread of `launch` that only reads the topology. Another thread starts the program afterwards.
pub(crate) fn inspection(sysfs: &Path) -> Result<()> {
    keep(CapabilitySet::SYS_ADMIN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH)?;
    files::restrict_to_topology(sysfs, None, None).context("cannot give up files")?;
    install(&[])
}

/// Drops all other capabilities of this thread, and prevents gaining any by starting a program.
fn keep(wanted: CapabilitySet) -> Result<()> {
    let reduce = || -> io::Result<()> {
        let held = capabilities(None)?;
        let kept = held.permitted & wanted;
        let wanted = CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        };
        // A systemd unit may have dropped them already, and may forbid the system call.
        if held != wanted {
            set_capabilities(None, wanted)?;
        }
        Ok(set_no_new_privs(true)?)
    };
    reduce().context("cannot give up capabilities")
}

/// Filters the system calls of this thread. Sockets are limited to these address families.
fn install(families: &[libc::c_int]) -> Result<()> {
    for program in filter::programs(families).context("cannot make a filter of system calls")? {
        seccompiler::apply_filter(&program).context("cannot filter system calls")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
