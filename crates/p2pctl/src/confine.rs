//! What the proxy, the daemon and `launch` give up of the rights of who starts them. docs/security.md says what is left.
//!
//! Called before there are other threads: those that are started later inherit all of it.

mod files;
mod filter;

use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs,
};

/// The proxy: it reads the host's topology and snapshots, and serves a socket before that of a VMM. `sysfs` is where the
/// topology is.
pub(crate) fn proxy(sysfs: &Path, listen: &Path, snapshots: Option<&Path>) -> Result<()> {
    // All of a configuration space, and sockets of VMMs of other users.
    keep(CapabilitySet::SYS_ADMIN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH)?;
    files::restrict_to_topology(sysfs, Some(listen), snapshots).context("cannot give up files")?;
    install(&[libc::AF_UNIX])
}

/// The daemon: it changes the host, and talks to VMMs and clients; it starts no program.
pub(crate) fn daemon() -> Result<()> {
    // Those that resources/systemd/p2pctl.service leaves it.
    keep(
        CapabilitySet::SYS_ADMIN
            | CapabilitySet::SYS_PTRACE
            | CapabilitySet::DAC_READ_SEARCH
            | CapabilitySet::DAC_OVERRIDE,
    )?;
    install(&[libc::AF_UNIX, libc::AF_NETLINK])
}

/// A thread of `launch` that looks at the host, and at nothing else. What is started afterwards is started by another.
pub(crate) fn inspection(sysfs: &Path) -> Result<()> {
    keep(CapabilitySet::SYS_ADMIN | CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH)?;
    files::restrict_to_topology(sysfs, None, None).context("cannot give up files")?;
    install(&[])
}

/// Takes all other capabilities from this thread, and the way to get any by a program.
fn keep(wanted: CapabilitySet) -> Result<()> {
    let reduce = || -> io::Result<()> {
        let held = capabilities(None)?;
        let kept = held.permitted & wanted;
        let wanted = CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        };
        // A unit of systemd has taken them already, and the system call as well.
        if held != wanted {
            set_capabilities(None, wanted)?;
        }
        Ok(set_no_new_privs(true)?)
    };
    reduce().context("cannot give up capabilities")
}

/// Filters the system calls of this thread; sockets are of these families only.
fn install(families: &[libc::c_int]) -> Result<()> {
    for program in filter::programs(families).context("cannot make a filter of system calls")? {
        seccompiler::apply_filter(&program).context("cannot filter system calls")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
