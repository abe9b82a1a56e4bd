//! Sources of the topology: the live `/sys`, a directory with the same layout, or a file written by `dump`.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use iommu_group::assignment::HostSnapshot;
use iommu_group::policy::Policy;
use iommu_group::{Host, Sbdf, Sysfs, Topology};

use crate::cli::Global;
use crate::names::Names;
use crate::policy_file;

/// The machine that a command works on.
pub(crate) struct Source {
    pub(crate) host: HostSnapshot,
    /// Where it was read from, for messages.
    pub(crate) from: String,
    /// The format of its function names.
    pub(crate) names: Names,
}

impl Source {
    /// Reads the machine that the command line names.
    pub(crate) fn load(global: &Global) -> Result<Self> {
        let (topology, from) = match (&global.from, &global.sysfs) {
            (Some(file), _) => (read_file(file)?, file.display().to_string()),
            (None, sysfs) => {
                let root = sysfs.clone().unwrap_or_else(|| PathBuf::from("/sys"));
                (scan(&root)?, root.display().to_string())
            }
        };
        if topology.functions().is_empty() {
            bail!("there is no PCI function in {from}");
        }
        Ok(Self {
            names: Names::new(topology.functions().iter().map(|f| f.sbdf())),
            host: HostSnapshot::new(topology, Policy::default()),
            from,
        })
    }

    /// Replaces the policy by that of a file.
    pub(crate) fn with_policy_file(self, file: Option<&Path>) -> Result<Self> {
        Ok(self.with_policy(policy_file::read(file, &[])?))
    }

    /// Replaces the policy.
    pub(crate) fn with_policy(self, policy: Policy) -> Self {
        Self {
            host: self.host.with_policy(policy),
            ..self
        }
    }

    /// Its topology.
    pub(crate) fn topology(&self) -> &Topology {
        self.host.topology()
    }

    /// Fails if the machine does not have one of these functions.
    pub(crate) fn must_have(&self, functions: &[Sbdf]) -> Result<()> {
        for function in functions {
            if self.topology().get(*function).is_none() {
                bail!(
                    "there is no PCI function {function} in {}: `p2pctl topology` lists the functions",
                    self.from
                );
            }
        }
        Ok(())
    }
}

/// Reads `/sys` or a directory with the same layout.
pub(crate) fn scan(root: &Path) -> Result<Topology> {
    if !root.is_dir() {
        bail!("{} is not a directory", root.display());
    }
    let sysfs = Sysfs::new(root);
    let host = Host::read(&proc_beside(root), &sysfs);
    Ok(Topology::scan(&sysfs, host)?)
}

/// The `/proc` that belongs to a sysfs root: `/proc` for `/sys`, and the copy beside a copy of sysfs,
/// never that of this host.
pub(crate) fn proc_beside(root: &Path) -> PathBuf {
    match (root.file_name(), root.parent()) {
        (Some(name), Some(above)) if name == "sys" => above.join("proc"),
        _ => PathBuf::from("/nonexistent"),
    }
}

fn read_file(file: &Path) -> Result<Topology> {
    let text = if file == Path::new("-") {
        let mut text = String::new();
        io::stdin()
            .read_to_string(&mut text)
            .context("cannot read standard input")?;
        text
    } else {
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?
    };
    Topology::from_fixture(&text).with_context(|| format!("cannot use {}", file.display()))
}
