//! The thread that reads the host's topology. It is the only thread that opens files of devices in sysfs.
//!
//! A thread that can open any file below `/sys/devices` can map BARs of any device (`resourceN`). The devices of the
//! host and their files change while the VM runs, so rules by path cannot tell the VM's devices from others. This
//! thread therefore runs as the user nobody: it needs only files that everybody may read, and `resourceN` belongs to
//! root.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::Context;
use iommu_group::SysfsError;
use iommu_group::assignment::HostSnapshot;
use iommu_group::policy::Policy;

use crate::error::VmmError;

/// Timeout for a read of the host. A host with thousands of functions takes less than a second.
const TIMEOUT: Duration = Duration::from_secs(30);

struct Request {
    policy: Policy,
    reply: Sender<Result<HostSnapshot, SysfsError>>,
}

/// The thread, and the policy for its snapshots. The thread ends when this is dropped.
pub(crate) struct HostReader {
    policy: Policy,
    requests: Sender<Request>,
}

impl HostReader {
    /// Starts the thread, which first calls `first` to drop its rights.
    pub(crate) fn start(
        first: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let (requests, waiting) = channel();
        vmm_api::start_thread("host", first, move || serve(&waiting))?;
        Ok(Self {
            policy: Policy::default(),
            requests,
        })
    }

    /// The same reader with another policy.
    pub(crate) fn with_policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// A snapshot of the host.
    pub(crate) fn view(&self) -> Result<HostSnapshot, VmmError> {
        let (reply, answer) = channel();
        let policy = self.policy.clone();
        let sent = self.requests.send(Request { policy, reply });
        sent.ok()
            .context("the thread that reads the host has ended")?;
        let answer = answer.recv_timeout(TIMEOUT);
        Ok(answer.context("the read of the host timed out")??)
    }
}

fn serve(waiting: &Receiver<Request>) {
    for Request { policy, reply } in waiting {
        // The requester may have timed out.
        let _ = reply.send(HostSnapshot::read(policy));
    }
}
