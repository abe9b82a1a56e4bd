//! What devices tell without being asked: the host wants one back, an error, a refused move.

use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use iommu_group::Sbdf;
use p2p_vfio::{AssignedDevice, DeviceEvent, EventSink};

use crate::lock::lock;

/// Puts events into the log.
#[derive(Debug)]
pub(crate) struct EventLog;

impl EventSink for EventLog {
    fn device_event(&self, sbdf: Sbdf, event: DeviceEvent) {
        match event {
            DeviceEvent::Reset | DeviceEvent::RouteRestored { .. } => {
                log::info!("{sbdf}: {event}");
            }
            DeviceEvent::RouteDegraded { .. } => log::warn!("{sbdf}: {event}"),
            DeviceEvent::Requested => {
                log::warn!("{sbdf}: {event}: end this VM or unplug the device");
            }
            _ => log::error!("{sbdf}: {event}"),
        }
    }
}

/// Waits for what the host tells of one device.
pub(crate) struct NoticeWatcher(pub(crate) Arc<Mutex<AssignedDevice>>);

impl MutEventSubscriber for NoticeWatcher {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let device = lock(&self.0);
        for event in device.notices() {
            if let Err(error) = ops.add(Events::new(event, EventSet::IN)) {
                log::error!("{}: cannot wait for the host: {error}", device.sbdf());
            }
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        lock(&self.0).heed();
    }
}
