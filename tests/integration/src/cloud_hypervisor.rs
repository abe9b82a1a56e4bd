//! A cloud-hypervisor that the user provides. Releases are static programs, as the lab requires.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::binaries::ensure_static;
use crate::host::Lab;

/// Paths of the program and its client in the lab host.
const PROGRAM: &str = "/bin/cloud-hypervisor";
const CLIENT: &str = "/bin/ch-remote";

/// Programs of cloud-hypervisor on this machine.
#[derive(Debug, Clone)]
pub struct CloudHypervisor {
    program: PathBuf,
    client: PathBuf,
}

impl CloudHypervisor {
    /// The programs that `CH_BIN` and `CH_REMOTE` name.
    ///
    /// # Errors
    /// One of them does not name a file.
    pub fn given() -> Result<Self> {
        let path = |name, what| {
            let path = env::var_os(name).filter(|path| !path.is_empty());
            path.map(PathBuf::from).with_context(|| {
                format!("{name} does not name a {what} (a release's {what}-static will do)")
            })
        };
        Ok(Self {
            program: path("CH_BIN", "cloud-hypervisor")?,
            client: path("CH_REMOTE", "ch-remote")?,
        })
    }

    /// Copies it into the lab host, unless it is there already.
    ///
    /// # Errors
    /// It is not a static program, or cannot be copied.
    pub fn put(&self, lab: &Lab) -> Result<()> {
        for (source, target) in [(&self.program, PROGRAM), (&self.client, CLIENT)] {
            if lab.run(["test", "-e", target])?.code() == Some(0) {
                continue;
            }
            ensure_static(source)
                .with_context(|| format!("{} cannot run in the lab", source.display()))?;
            lab.put(source, target)?;
        }
        Ok(())
    }

    /// Whether it can be told not to map BARs. Without that, a VM can have at most one unshared device.
    ///
    /// # Errors
    /// It does not report its version.
    pub fn has_p2p_switch(&self) -> Result<bool> {
        const FIRST: u32 = 52;
        let program = self.program.display();
        let output = Command::new(&self.program).arg("--version").output();
        let output = output.with_context(|| format!("cannot run {program}"))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let mut words = said.split_whitespace();
        let major = words.find_map(|word| word.strip_prefix('v')?.split('.').next()?.parse().ok());
        let major: u32 = major.with_context(|| format!("{program} says no version: {said}"))?;
        Ok(major >= FIRST)
    }
}
