//! The thread that reads the host's topology: the only one that opens files of devices in sysfs.
//!
//! A thread that can open any file below `/sys/devices` can map BARs of devices that are not its own (`resourceN`). Which
//! devices there are changes while the VM runs, and with them the files, so no rule by path tells them apart. This thread
//! is nobody's user instead: what everybody may read is what it needs, and `resourceN` is root's.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::Context;
use iommu_group::SysfsError;
use p2p_vfio::{HostView, Policy};

/// How long the host may take to be read. Thousands of functions take less than a second.
const TIMEOUT: Duration = Duration::from_secs(30);

struct Request {
    policy: Policy,
    reply: Sender<Result<HostView, SysfsError>>,
}

/// The thread, and by what devices are judged. It ends when this is dropped.
pub(crate) struct HostReader {
    policy: Policy,
    requests: Sender<Request>,
}

impl HostReader {
    /// Starts the thread with `first`, which takes its rights away.
    pub(crate) fn start(
        first: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let (requests, waiting) = channel();
        hotplug::start_thread("host", first, move || serve(&waiting))?;
        Ok(Self {
            policy: Policy::default(),
            requests,
        })
    }

    /// The same with another policy.
    pub(crate) fn with_policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// The host as it is now.
    ///
    /// What sysfs says is [`SysfsError`].
    pub(crate) fn view(&self) -> anyhow::Result<HostView> {
        let (reply, answer) = channel();
        let policy = self.policy.clone();
        let sent = self.requests.send(Request { policy, reply });
        sent.ok()
            .context("the thread that reads the host has ended")?;
        let answer = answer.recv_timeout(TIMEOUT);
        Ok(answer.context("the host could not be read in time")??)
    }
}

fn serve(waiting: &Receiver<Request>) {
    for Request { policy, reply } in waiting {
        // Whoever has asked may have given up.
        let _ = reply.send(HostView::read(policy));
    }
}
