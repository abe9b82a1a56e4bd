//! Events of a VMM: the state of the VM and of its devices, in cloud-hypervisor's format.
//!
//! ```text
//! main thread ──publish──▶ EventLog ──▶ EventMonitor   a file or descriptor, for one reader
//!                          (the last   ──▶ API           server-sent events, for many
//!                           thousand)
//! ```
//! A slow reader does not block the VM. A reader that falls too far behind gets an event with the number of missed
//! events.

mod log;
mod monitor;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

#[cfg(feature = "server")]
pub(crate) use log::Line;
pub use log::{EVENTS, EventLog};
pub(crate) use log::{Found, Reader};
pub use monitor::{EventMonitor, MonitorError, MonitorTarget};

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The VMM has started.
    VmmStarting,
    /// The VMM is about to end.
    VmmShutdown,
    /// The VM is being built.
    VmBooting,
    /// The VM has started.
    VmBooted,
    /// The vCPUs are being stopped.
    VmPausing,
    /// All vCPUs are stopped.
    VmPaused,
    /// The vCPUs are being started again.
    VmResuming,
    /// The vCPUs run again.
    VmResumed,
    /// The VM is being stopped to start again.
    VmRebooting,
    /// The VM has started again from its beginning.
    VmRebooted,
    /// The VM was stopped.
    VmShutdown,
    /// The VM's configuration was deleted.
    VmDeleted,
    /// A device was added to the guest.
    DeviceAdded {
        /// The device's name.
        id: String,
        /// The device's address in the guest.
        bdf: String,
    },
    /// A device could not be added. Nothing of it is left in the VM.
    DeviceAddFailed {
        /// The device's name.
        id: String,
        /// The cause.
        reason: String,
    },
    /// The guest was asked to release a device.
    DeviceUnplugRequested {
        /// The device's name.
        id: String,
    },
    /// A device was removed from the guest and closed.
    DeviceRemoved {
        /// The device's name.
        id: String,
        /// The device's address in the guest.
        bdf: String,
        /// How the device left the guest.
        departure: Departure,
    },
    /// The guest did not release the device in time; the device is still attached.
    DeviceUnplugTimeout {
        /// The device's name.
        id: String,
    },
    /// Requests between peers take a longer route than possible.
    DeviceRouteDegraded {
        /// The device whose BAR mapping is not at the address that the shorter route needs.
        id: String,
        /// The change of the route.
        reason: String,
    },
    /// The guest moved a BAR of a device.
    DeviceWindowMoved {
        /// The device's name.
        id: String,
        /// The number of the BAR.
        bar: u8,
        /// Guest-physical address of the BAR; `None` if it is not mapped.
        gpa: Option<u64>,
    },
    /// A device of the VM and a function reach each other without the IOMMU, and the exposure was accepted.
    DeviceExposed {
        /// The device's name.
        id: String,
        /// The reachable function.
        function: String,
        /// The functions and ports on the path, and who accepted the exposure.
        reason: String,
    },
    /// A device caused more events than the limit.
    DeviceEventsSuppressed {
        /// The device's name.
        id: String,
        /// The number of suppressed events.
        count: u64,
    },
    /// A device error.
    DeviceError {
        /// The device's name.
        id: String,
        /// The error.
        reason: String,
    },
}

/// How a device left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Departure {
    /// The guest released it on request.
    Requested,
    /// The guest released it without a request.
    GuestInitiated,
    /// The VMM removed it without the guest's consent.
    Forced,
}

/// An event with its time, in the form that clients get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Record {
    /// Time since the VMM started.
    pub timestamp: Duration,
    /// What the event is about: `vmm` or `vm`.
    pub source: String,
    /// Name of the event.
    pub event: String,
    /// Properties of the event, if it has any.
    pub properties: Option<BTreeMap<String, String>>,
}

impl Event {
    /// The record of the event at `timestamp`.
    fn record(&self, timestamp: Duration) -> Record {
        let (source, event, properties) = self.parts();
        let properties = properties
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect::<BTreeMap<_, _>>();
        Record {
            timestamp,
            source: source.to_owned(),
            event: event.to_owned(),
            properties: (!properties.is_empty()).then_some(properties),
        }
    }

    fn parts(&self) -> (&'static str, &'static str, Vec<(&'static str, String)>) {
        let vm = |event| ("vm", event, Vec::new());
        let of = |event, id: &str, more: &[(&'static str, &str)]| {
            let more = more.iter().map(|(key, value)| (*key, (*value).to_owned()));
            let id = ("id", id.to_owned());
            ("vm", event, std::iter::once(id).chain(more).collect())
        };
        match self {
            Self::VmmStarting => ("vmm", "starting", Vec::new()),
            Self::VmmShutdown => ("vmm", "shutdown", Vec::new()),
            Self::VmBooting => vm("booting"),
            Self::VmBooted => vm("booted"),
            Self::VmPausing => vm("pausing"),
            Self::VmPaused => vm("paused"),
            Self::VmResuming => vm("resuming"),
            Self::VmResumed => vm("resumed"),
            Self::VmRebooting => vm("rebooting"),
            Self::VmRebooted => vm("rebooted"),
            Self::VmShutdown => vm("shutdown"),
            Self::VmDeleted => vm("deleted"),
            Self::DeviceAdded { id, bdf } => of("device-added", id, &[("bdf", bdf)]),
            Self::DeviceAddFailed { id, reason } => {
                of("device-add-failed", id, &[("reason", reason)])
            }
            Self::DeviceUnplugRequested { id } => of("device-unplug-requested", id, &[]),
            Self::DeviceRemoved { id, bdf, departure } => {
                let reason = reason(*departure);
                of("device-removed", id, &[("bdf", bdf), ("reason", reason)])
            }
            Self::DeviceUnplugTimeout { id } => of("device-unplug-timeout", id, &[]),
            Self::DeviceRouteDegraded { id, reason } => {
                of("device-route-degraded", id, &[("reason", reason)])
            }
            Self::DeviceWindowMoved { id, bar, gpa } => {
                let gpa = gpa.map_or_else(|| "none".to_owned(), |gpa| format!("{gpa:#x}"));
                of(
                    "device-window-moved",
                    id,
                    &[("bar", &bar.to_string()), ("gpa", &gpa)],
                )
            }
            Self::DeviceExposed {
                id,
                function,
                reason,
            } => of(
                "device-exposed",
                id,
                &[("function", function), ("reason", reason)],
            ),
            Self::DeviceEventsSuppressed { id, count } => of(
                "device-events-suppressed",
                id,
                &[("count", &count.to_string())],
            ),
            Self::DeviceError { id, reason } => of("device-error", id, &[("reason", reason)]),
        }
    }
}

/// The `reason` property of `device-removed`.
fn reason(departure: Departure) -> &'static str {
    match departure {
        Departure::Requested => "asked",
        Departure::GuestInitiated => "unasked",
        Departure::Forced => "forced",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_cloud_hypervisors_format() {
        let event = Event::DeviceRemoved {
            id: "nvme0".into(),
            bdf: "0000:02:00.0".into(),
            departure: Departure::GuestInitiated,
        };
        let record = event.record(Duration::new(3, 5));
        assert_eq!(
            serde_json::to_string(&record).unwrap(),
            r#"{"timestamp":{"secs":3,"nanos":5},"source":"vm","event":"device-removed","properties":{"bdf":"0000:02:00.0","id":"nvme0","reason":"unasked"}}"#
        );
    }

    #[test]
    fn an_event_without_properties_has_null() {
        let record = Event::VmBooted.record(Duration::ZERO);
        let json = serde_json::to_string(&record).unwrap();
        assert!(
            json.ends_with(r#""event":"booted","properties":null}"#),
            "{json}"
        );
    }
}
