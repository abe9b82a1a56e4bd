//! `p2pctl front`: a proxy that checks requests to cloud-hypervisor's API.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use iommu_group::Sbdf;
use vmm_api::{ApiServer, Client};

use crate::answer::Answer;
use crate::cli::Global;
use crate::cloud_hypervisor::StockGate;
use crate::confine;
use crate::policy_file;

/// The sockets and rules of the proxy.
pub(crate) struct Request<'a> {
    pub(crate) vmm: &'a Path,
    pub(crate) listen: &'a Path,
    pub(crate) policy: Option<&'a Path>,
    /// The directory of snapshots that may be restored.
    pub(crate) snapshots: Option<&'a Path>,
    pub(crate) expose: &'a [Sbdf],
}

/// Serves until a signal.
pub(crate) fn run(global: &Global, request: &Request<'_>) -> Result<Answer> {
    if global.from.is_some() {
        bail!("front looks at the machine that it runs on: leave --from out");
    }
    let sysfs = global
        .sysfs
        .clone()
        .unwrap_or_else(|| PathBuf::from("/sys"));
    let policy = policy_file::read(request.policy, request.expose)?;
    confine::proxy(&sysfs, request.listen, request.snapshots)?;
    let gate = StockGate::new(sysfs, policy, Client::new(request.vmm));
    let server = ApiServer::proxy(request.listen, request.vmm.to_owned(), Arc::new(gate))?;
    eprintln!(
        "clients of {} may use {}",
        request.vmm.display(),
        request.listen.display()
    );
    server.join();
    bail!("{} can be served no more", request.listen.display())
}
