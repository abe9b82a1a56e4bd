//! Devices that somebody wants in the VM and that must wait for the guest. Everything else goes on meanwhile.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::task::Poll;
use std::time::{Duration, Instant};

use hotplug::DeviceConfig;
use hotplug::api::{Failure, PciDevice, Reply};
use iommu_group::Sbdf;

use super::answer::failure;
use super::controller::VmController;
use crate::preopened;

/// How long the guest may take to let go of what is in the way. Most often that is milliseconds.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How many may wait.
const MAX_PENDING: usize = 64;

/// Those that wait, in the order in which they were asked for.
#[derive(Default)]
pub(super) struct PendingAdds(VecDeque<PendingAdd>);

/// One that waits, and who is told what comes of it.
struct PendingAdd {
    device: DeviceConfig,
    /// If it came open.
    preopened: Option<Sbdf>,
    deadline: Instant,
    reply: Reply<Option<PciDevice>>,
}

impl PendingAdds {
    /// When the first of them waits no more.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.front().map(|pending| pending.deadline)
    }
}

impl VmController {
    /// Adds a device, which may come open, now or as soon as there is nothing in its way.
    pub(super) fn request_add(
        &mut self,
        mut device: DeviceConfig,
        descriptor: Option<OwnedFd>,
        reply: Reply<Option<PciDevice>>,
    ) {
        let preopened = match self.take_descriptor(&mut device, descriptor) {
            Ok(preopened) => preopened,
            Err(error) => return reply.send(Err(failure(error))),
        };
        let now = Instant::now();
        self.try_add(PendingAdd {
            device,
            preopened,
            deadline: now.checked_add(TIMEOUT).unwrap_or(now),
            reply,
        });
    }

    /// The function that came open, if one did.
    fn take_descriptor(
        &self,
        device: &mut DeviceConfig,
        descriptor: Option<OwnedFd>,
    ) -> anyhow::Result<Option<Sbdf>> {
        let Some(descriptor) = descriptor else {
            return Ok(None);
        };
        if device.path.is_some() {
            let why = "a device has a path or comes as a descriptor, not both";
            return Err(Failure::Malformed(why.to_owned()).into());
        }
        preopened::take_device(&self.preopened, device, descriptor).map(Some)
    }

    /// Adds those that wait, if there is nothing in their way any more or they have waited long enough.
    pub(super) fn retry_pending_adds(&mut self) {
        let running = self.running.as_ref();
        let blocked = running.is_some_and(|running| running.machine.devices.has_empty_switches());
        let now = Instant::now();
        let over = self.pending_adds.deadline().is_some_and(|end| end <= now);
        if !blocked || over {
            for pending in std::mem::take(&mut self.pending_adds.0) {
                self.try_add(pending);
            }
        }
    }

    fn try_add(&mut self, pending: PendingAdd) {
        let added = self.add_device(pending.device.clone(), pending.deadline);
        let answer = match added.map_err(failure) {
            Ok(Poll::Ready(answer)) => Ok(answer),
            Ok(Poll::Pending) if self.pending_adds.0.len() < MAX_PENDING => {
                return self.pending_adds.0.push_back(pending);
            }
            Ok(Poll::Pending) => Err(Failure::Busy),
            Err(failure) => Err(failure),
        };
        if let (Err(_), Some(sbdf)) = (&answer, pending.preopened) {
            self.preopened.give_up(sbdf);
        }
        pending.reply.send(answer);
    }
}
