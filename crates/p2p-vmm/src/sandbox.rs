//! What every kind of thread gives up: capabilities, files, system calls. docs/security.md has the lists.
//!
//! ```text
//!            capabilities      files (Landlock)                  system calls (seccomp)
//!   main     IPC_LOCK,         from the first guest on:          all that VMs need
//!            SYS_ADMIN         its VM, devices
//!   host     SYS_ADMIN         topology, as nobody's user        read
//!   vcpu     none              none                              run, and program device and IOMMU
//!   api      none              removal of the socket             connections
//!   events   none              none                              write, and begin its file again
//!   log      none              none                              write
//! ```
//! All of it is of a thread and inherited by those that it starts; nothing gives it back.

mod capabilities;
mod files;
mod filter;
mod ioctls;
mod system_calls;
mod violation;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use hotplug::VmConfig;

use crate::memory;

pub(crate) use files::FileRule;
pub(crate) use filter::ViolationAction;

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Owns the VM.
    Main,
    /// Runs a vCPU, and what the guest makes of devices.
    Vcpu,
    /// Talks with clients.
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

/// Why a thread could not give up what it does not need. It did not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    #[error("cannot give up capabilities")]
    Capabilities(#[source] io::Error),
    #[error("cannot give up files")]
    Files(#[from] landlock::RulesetError),
    #[error("cannot filter the system calls of the {role} thread (--seccomp false does without)")]
    Filter {
        role: &'static str,
        source: seccompiler::Error,
    },
    #[error("cannot wait for violations of a filter")]
    Watch(#[source] io::Error),
}

/// What the operator wants to be given up.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// What happens at system calls that nobody should make; `None` is nothing.
    seccomp: Option<ViolationAction>,
    files: Option<Files>,
    /// Whether the main thread has given up files.
    files_restricted: AtomicBool,
}

/// What may still be opened besides that which a VM has.
#[derive(Debug)]
pub(crate) struct Files {
    /// By the main thread.
    pub(crate) rules: Vec<FileRule>,
    /// Where the API is served.
    pub(crate) socket: Option<PathBuf>,
}

impl Sandbox {
    /// Nothing is given up yet. Without `seccomp` system calls are not filtered, without `files` all can be opened.
    pub(crate) fn new(seccomp: Option<ViolationAction>, files: Option<Files>) -> Self {
        Self {
            seccomp,
            files,
            files_restricted: AtomicBool::new(false),
        }
    }

    /// Prepares the process. Called before there is any other thread.
    pub(crate) fn prepare(&self) -> Result<(), SandboxError> {
        memory::share_heap();
        if self.seccomp == Some(ViolationAction::Trap) {
            violation::watch().map_err(SandboxError::Watch)?;
        }
        Ok(())
    }

    /// Gives up what the main thread does not need, nor any that it will start.
    pub(crate) fn begin(&self) -> Result<(), SandboxError> {
        capabilities::reduce(Role::Main).map_err(SandboxError::Capabilities)
    }

    /// Makes this thread one for `role` only. The files of the main thread depend on its first VM.
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

    /// [`enter`](Self::enter), for threads whose start only knows this kind of error.
    pub(crate) fn enter_io(&self, role: Role) -> io::Result<()> {
        self.enter(role).map_err(io::Error::other)
    }

    /// From now on this thread opens only what a VM like `config` needs, and what the operator allowed besides.
    /// The first VM decides: what was given up does not come back.
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

    /// Whether the main thread opens only what its first VM has.
    pub(crate) fn files_restricted(&self) -> bool {
        self.files_restricted.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests;
