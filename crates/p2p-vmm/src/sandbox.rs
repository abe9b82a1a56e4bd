//! The sandbox: capabilities, files and system calls that each kind of thread gives up. docs/security.md has the
//! lists.
//!
//! ```text
//!            capabilities      files (Landlock)                  system calls (seccomp)
//!   main     IPC_LOCK          from the first guest on:          all that VMs need
//!                              its VM, devices
//!   host     SYS_ADMIN         topology, as user nobody          read
//!   vcpu     none              none                              run, and program device and IOMMU
//!   api      none              removal of the socket             connections
//!   events   none              none                              write, and truncate its file
//!   log      none              none                              write
//! ```
//! The restrictions apply to a thread and to the threads that it starts. They cannot be undone.

mod capabilities;
mod files;
mod filter;
mod ioctls;
mod system_calls;
mod violation;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_api::VmConfig;

use crate::memory;

pub(crate) use files::FileRule;
pub(crate) use filter::ViolationAction;

/// The purpose of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Owns the VM.
    Main,
    /// Runs a vCPU, and handles its accesses to devices.
    Vcpu,
    /// Serves API clients.
    Api,
    /// Writes events.
    Events,
    /// Writes the log.
    Log,
    /// Reads the host's topology.
    Host,
}

impl Role {
    #[cfg(test)]
    const ALL: [Self; 6] = [
        Self::Main,
        Self::Vcpu,
        Self::Api,
        Self::Events,
        Self::Log,
        Self::Host,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Vcpu => "vcpu",
            Self::Api => "api",
            Self::Events => "events",
            Self::Log => "log",
            Self::Host => "host",
        }
    }
}

/// A thread could not enter the sandbox. It does not continue.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    #[error("cannot drop capabilities")]
    Capabilities(#[source] io::Error),
    #[error("cannot restrict files")]
    Files(#[from] landlock::RulesetError),
    #[error(
        "cannot install the system call filter of the {role} thread (--seccomp false disables filters)"
    )]
    Filter {
        role: &'static str,
        source: seccompiler::Error,
    },
    #[error("cannot install the handler for filter violations")]
    Watch(#[source] io::Error),
}

/// The restrictions that the operator configured.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// Action on an unexpected system call; `None` installs no filters.
    seccomp: Option<ViolationAction>,
    files: Option<Files>,
    /// Whether the main thread has restricted its files.
    files_restricted: AtomicBool,
}

/// Files that may be opened in addition to those of a VM.
#[derive(Debug)]
pub(crate) struct Files {
    /// Rules for the main thread.
    pub(crate) rules: Vec<FileRule>,
    /// Path of the API socket.
    pub(crate) socket: Option<PathBuf>,
}

impl Sandbox {
    /// Nothing is restricted yet. Without `seccomp` no filters are installed, and without `files` all files can be
    /// opened.
    pub(crate) fn new(seccomp: Option<ViolationAction>, files: Option<Files>) -> Self {
        Self {
            seccomp,
            files,
            files_restricted: AtomicBool::new(false),
        }
    }

    /// Prepares the process. Must be called before other threads are started.
    pub(crate) fn prepare(&self) -> Result<(), SandboxError> {
        memory::share_heap();
        if self.seccomp == Some(ViolationAction::Trap) {
            violation::watch().map_err(SandboxError::Watch)?;
        }
        Ok(())
    }

    /// Drops the capabilities that neither the main thread nor its children need.
    pub(crate) fn begin(&self) -> Result<(), SandboxError> {
        capabilities::reduce(Role::Main).map_err(SandboxError::Capabilities)
    }

    /// Restricts this thread to `role`. The files of the main thread are restricted when its first VM starts.
    pub(crate) fn enter(&self, role: Role) -> Result<(), SandboxError> {
        if let Some(files) = &self.files {
            match role {
                Role::Main => {}
                Role::Host => drop(files::restrict_to(&FileRule::of_topology())?),
                Role::Api => drop(files::restrict_to(
                    &files.socket.as_deref().map(FileRule::of_socket),
                )?),
                Role::Vcpu | Role::Events | Role::Log => drop(files::restrict_to(&[])?),
            }
        }
        if role == Role::Host {
            capabilities::switch_to_nobody().map_err(SandboxError::Capabilities)?;
        }
        capabilities::reduce(role).map_err(SandboxError::Capabilities)?;
        violation::set_role(role);
        if let Some(on_violation) = self.seccomp {
            let starts_threads = role == Role::Main;
            let filters = starts_threads.then(filter::without_clone3);
            for filter in filters
                .into_iter()
                .chain([filter::compile(role, on_violation)])
            {
                let applied = filter.and_then(|filter| seccompiler::apply_filter(&filter));
                applied.map_err(|source| {
                    let role = role.name();
                    SandboxError::Filter { role, source }
                })?;
            }
        }
        Ok(())
    }

    /// [`enter`](Self::enter) for functions that start threads and report `io::Error`.
    pub(crate) fn enter_io(&self, role: Role) -> io::Result<()> {
        self.enter(role).map_err(io::Error::other)
    }

    /// Restricts the files of this thread to those that a VM like `config` needs and those that the operator allowed.
    /// Later calls change nothing: a Landlock restriction cannot be extended.
    pub(crate) fn restrict_files_to(&self, config: &VmConfig) -> Result<(), SandboxError> {
        let Some(files) = &self.files else {
            return Ok(());
        };
        if self.files_restricted.load(Ordering::Relaxed) {
            return Ok(());
        }
        let rules = FileRule::of_vm(config);
        let enforced = files::restrict_to(rules.iter().chain(&files.rules))?;
        if !enforced {
            log::warn!("this kernel has no Landlock: the VMM can open all files of its user");
        }
        self.files_restricted.store(enforced, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the main thread can open only the files of its first VM.
    pub(crate) fn files_restricted(&self) -> bool {
        self.files_restricted.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
