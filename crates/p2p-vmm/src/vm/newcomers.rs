//! Devices that somebody wants in the VM and that must wait for the guest. Everything else goes on meanwhile.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::task::Poll;
use std::time::{Duration, Instant};

use hotplug::DeviceConfig;
use hotplug::api::{Failure, PciDevice, Reply};
use iommu_group::Sbdf;

use super::answer::failure;
use super::owner::Owner;
use crate::handed;

/// How long the guest may take to let go of what is in the way. Most often that is milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many may wait.
const MOST: usize = 64;

/// Those that wait, in the order in which they were asked for.
#[derive(Default)]
pub(super) struct Newcomers(VecDeque<Newcomer>);

/// One that waits, and who is told what comes of it.
struct Newcomer {
    device: DeviceConfig,
    /// If it came open.
    handed: Option<Sbdf>,
    patience: Instant,
    reply: Reply<Option<PciDevice>>,
}

impl Newcomers {
    /// When the first of them waits no more.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.front().map(|newcomer| newcomer.patience)
    }
}

impl Owner {
    /// Adds a device, which may come open, now or as soon as there is nothing in its way.
    pub(super) fn receive(
        &mut self,
        mut device: DeviceConfig,
        descriptor: Option<OwnedFd>,
        reply: Reply<Option<PciDevice>>,
    ) {
        let handed = match self.take(&mut device, descriptor) {
            Ok(handed) => handed,
            Err(error) => return reply.send(Err(failure(error))),
        };
        let now = Instant::now();
        self.try_to_add(Newcomer {
            device,
            handed,
            patience: now.checked_add(PATIENCE).unwrap_or(now),
            reply,
        });
    }

    /// The function that came open, if one did.
    fn take(
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
        handed::take(&self.handed, device, descriptor).map(Some)
    }

    /// Adds those that wait, if there is nothing in their way any more or they have waited long enough.
    pub(super) fn receive_waiting(&mut self) {
        let running = self.running.as_ref();
        let blocked = running.is_some_and(|running| running.machine.devices.has_empty_switches());
        let now = Instant::now();
        let over = self.newcomers.deadline().is_some_and(|end| end <= now);
        if !blocked || over {
            for newcomer in std::mem::take(&mut self.newcomers.0) {
                self.try_to_add(newcomer);
            }
        }
    }

    fn try_to_add(&mut self, newcomer: Newcomer) {
        let added = self.add_device(newcomer.device.clone(), newcomer.patience);
        let answer = match added.map_err(failure) {
            Ok(Poll::Ready(answer)) => Ok(answer),
            Ok(Poll::Pending) if self.newcomers.0.len() < MOST => {
                return self.newcomers.0.push_back(newcomer);
            }
            Ok(Poll::Pending) => Err(Failure::Busy),
            Err(failure) => Err(failure),
        };
        if let (Err(_), Some(sbdf)) = (&answer, newcomer.handed) {
            self.handed.give_up(sbdf);
        }
        newcomer.reply.send(answer);
    }
}
