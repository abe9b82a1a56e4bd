//! `p2pctl proxy`: a proxy that checks requests to cloud-hypervisor's API.

use std::sync::Arc;

use anyhow::{Result, bail};
use vmm_api::{ApiServer, Client};

use crate::answer::Answer;
use crate::cli::{Global, ProxyArgs};
use crate::cloud_hypervisor::CloudHypervisorFilter;
use crate::host;
use crate::policy_file;
use crate::sandbox;

/// Serves until a signal.
pub(crate) fn run(global: &Global, args: &ProxyArgs) -> Result<Answer> {
    if global.from.is_some() {
        bail!("proxy reads the host that it runs on: omit --from");
    }
    let sysfs = host::root(global);
    let policy = policy_file::read(args.consent.policy_file.as_deref(), &args.consent.expose)?;
    sandbox::proxy(&sysfs, &args.listen, args.snapshots.as_deref())?;
    let filter = CloudHypervisorFilter::new(sysfs, policy, Client::new(&args.api_socket));
    let server = ApiServer::proxy(&args.listen, args.api_socket.clone(), Arc::new(filter))?;
    eprintln!(
        "clients of {} may use {}",
        args.api_socket.display(),
        args.listen.display()
    );
    server.join();
    bail!("the server at {} has ended", args.listen.display())
}
