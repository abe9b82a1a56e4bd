//! Devices that somebody wants in the VM and that must wait for the guest. Everything else goes on meanwhile.

use std::collections::VecDeque;
use std::task::Poll;
use std::time::{Duration, Instant};

use hotplug::DeviceConfig;
use hotplug::api::{Failure, PciDevice, Reply};

use super::answer::failure;
use super::owner::Owner;

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
    /// Adds a device, now or as soon as there is nothing in its way.
    pub(super) fn receive(&mut self, device: DeviceConfig, reply: Reply<Option<PciDevice>>) {
        let now = Instant::now();
        self.try_to_add(Newcomer {
            device,
            patience: now.checked_add(PATIENCE).unwrap_or(now),
            reply,
        });
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
        match added.map_err(failure) {
            Ok(Poll::Ready(answer)) => newcomer.reply.send(Ok(answer)),
            Ok(Poll::Pending) if self.newcomers.0.len() < MOST => {
                self.newcomers.0.push_back(newcomer);
            }
            Ok(Poll::Pending) => newcomer.reply.send(Err(Failure::Busy)),
            Err(failure) => newcomer.reply.send(Err(failure)),
        }
    }
}
