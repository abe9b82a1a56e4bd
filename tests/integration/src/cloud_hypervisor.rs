//! A cloud-hypervisor that whoever runs the tests has: releases are static programs, as the lab needs them.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::binaries::ensure_static;
use crate::host::Lab;

/// Where it and its client are in the lab host.
const PROGRAM: &str = "/bin/cloud-hypervisor";
const CLIENT: &str = "/bin/ch-remote";

/// Programs of cloud-hypervisor on this machine.
#[derive(Debug, Clone)]
pub struct CloudHypervisor {
    program: PathBuf,
    client: Option<PathBuf>,
}

impl CloudHypervisor {
    /// What `CH_BIN` and `CH_REMOTE` name; without `CH_BIN` there is none, and `test` says that it is skipped.
    #[must_use]
    pub fn given(test: &str) -> Option<Self> {
        let path = |name| {
            env::var_os(name)
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
        };
        let Some(program) = path("CH_BIN") else {
            eprintln!(
                "SKIPPED {test}: CH_BIN does not name a cloud-hypervisor (a release's cloud-hypervisor-static will do)"
            );
            return None;
        };
        Some(Self {
            program,
            client: path("CH_REMOTE"),
        })
    }

    /// Copies it into the lab host, if it is not there yet.
    ///
    /// # Errors
    /// It is no static program, or cannot be copied.
    pub fn put(&self, lab: &Lab) -> Result<()> {
        let programs = [
            (Some(&self.program), PROGRAM),
            (self.client.as_ref(), CLIENT),
        ];
        for (source, target) in programs {
            let Some(source) = source else { continue };
            if lab.run(["test", "-e", target])?.code() == Some(0) {
                continue;
            }
            ensure_static(source)
                .with_context(|| format!("{} cannot run in the lab", source.display()))?;
            lab.put(source, target)?;
        }
        Ok(())
    }

    /// Whether it can be told to map no BARs, without which it has one device that is no peer at most.
    ///
    /// # Errors
    /// It does not say of which version it is.
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

    /// What [`given`](Self::given) says, of one that can have several devices that are no peers.
    ///
    /// # Errors
    /// It does not say of which version it is.
    pub fn for_strangers(test: &str) -> Result<Option<Self>> {
        let Some(given) = Self::given(test) else {
            return Ok(None);
        };
        if given.has_p2p_switch()? {
            return Ok(Some(given));
        }
        eprintln!("SKIPPED {test}: CH_BIN maps all BARs always, v52.0 and newer need not");
        Ok(None)
    }

    /// Whether there is `ch-remote`; if not, `test` says that it is skipped.
    #[must_use]
    pub fn has_client(&self, test: &str) -> bool {
        if self.client.is_none() {
            eprintln!(
                "SKIPPED {test}: CH_REMOTE does not name a ch-remote (a release's ch-remote-static will do)"
            );
        }
        self.client.is_some()
    }
}
