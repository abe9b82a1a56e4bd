//! Requests to add a device that wait for the guest to eject something first. The VM is served meanwhile.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::task::Poll;
use std::time::{Duration, Instant};

use iommu_group::Sbdf;
use vmm_api::{DeviceConfig, Failure, PciDevice, Reply};

use super::answer::failure;
use super::controller::VmController;
use crate::error::VmmError;
use crate::preopened;

/// How long a request waits. Guests usually take milliseconds.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Most requests that wait.
const MAX_PENDING: usize = 64;

/// The waiting requests, oldest first.
#[derive(Default)]
pub(super) struct PendingAdds(VecDeque<PendingAdd>);

/// A request that waits, and where its response goes.
struct PendingAdd {
    device: DeviceConfig,
    /// The function, if the device was passed as an open descriptor.
    preopened: Option<Sbdf>,
    deadline: Instant,
    reply: Reply<Option<PciDevice>>,
}

impl PendingAdds {
    /// When the oldest request times out.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.front().map(|pending| pending.deadline)
    }
}

impl VmController {
    /// Adds a device, which may be an open descriptor, now or when the guest has made room for it.
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

    /// Takes the descriptor, if there is one. Returns its function.
    fn take_descriptor(
        &self,
        device: &mut DeviceConfig,
        descriptor: Option<OwnedFd>,
    ) -> Result<Option<Sbdf>, VmmError> {
        let Some(descriptor) = descriptor else {
            return Ok(None);
        };
        if device.path.is_some() {
            let why = "a device has a path or a descriptor, not both";
            return Err(Failure::Malformed(why.to_owned()).into());
        }
        preopened::take_device(&self.context.preopened, device, descriptor).map(Some)
    }

    /// Retries the waiting requests if the guest has ejected the empty switches or the oldest request has timed out.
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
            self.context.preopened.give_up(sbdf);
        }
        pending.reply.send(answer);
    }
}
