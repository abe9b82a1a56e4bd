//! Adds a device to a running VM.

use std::collections::BTreeSet;
use std::task::Poll;
use std::time::Instant;

use hotplug::lifecycle::{Event as Step, State};
use iommu_group::Sbdf;
use vmm_api::{DeviceConfig, Event};

use super::registry::{Devices, GuestDevice};
use super::request::request;
use crate::error::VmmError;
use crate::host_reader::HostReader;

/// What an added device is checked against.
pub(crate) struct AddContext<'a> {
    /// Source of host snapshots with the operator's policy.
    pub(crate) host: &'a HostReader,
    /// Functions that the VM had before.
    pub(crate) departed: &'a BTreeSet<Sbdf>,
}

impl Devices {
    /// Adds a device with a name to the running VM. Returns its address in the guest. Pending while the guest ejects
    /// an empty switch, until `deadline`.
    pub(crate) fn add(
        &mut self,
        config: &DeviceConfig,
        context: &AddContext<'_>,
        deadline: Instant,
    ) -> Result<Poll<Sbdf>, VmmError> {
        let added = self.try_add(config, context, deadline);
        if let Err(error) = &added {
            self.pending_events.push(Event::DeviceAddFailed {
                id: config.id.clone().unwrap_or_default(),
                reason: format!("{error:#}"),
            });
        }
        added
    }

    fn try_add(
        &mut self,
        config: &DeviceConfig,
        context: &AddContext<'_>,
        deadline: Instant,
    ) -> Result<Poll<Sbdf>, VmmError> {
        let request = request(config)?;
        let host = context.host.view()?;
        if self.set.needs_switch(request.domain.as_ref()) {
            // An empty switch holds windows that a new switch may need.
            self.process_ejected();
            if self.has_empty_switches() {
                // A refusal does not wait for the guest, and no switch is removed for it.
                self.set.check_added(&host, &request, context.departed)?;
                if Instant::now() < deadline {
                    return Ok(Poll::Pending);
                }
                self.remove_empty_switches();
            }
        }
        let added = self.set.add(&host, request, context.departed)?;
        let mut device = GuestDevice::new(config.clone(), &added.member);
        device.state = State::Attaching;
        self.list.push(device);
        for slot in [added.member.announced_slot, added.member.slot] {
            self.control.occupy(slot);
        }
        self.advance(&added.member.tag, Step::Attached);
        self.emit_exposures(&added.exposures);
        Ok(Poll::Ready(added.member.guest))
    }
}
