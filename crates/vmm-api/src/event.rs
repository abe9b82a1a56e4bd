//! What a VMM tells without being asked: the life of the VM and of its devices, in cloud-hypervisor's form.
//!
//! ```text
//! main thread ──publish──▶ EventLog ──▶ EventMonitor   a file or descriptor, for one reader
//!                          (the last   ──▶ API           server-sent events, for many
//!                           thousand)
//! ```
//! Nobody who reads slowly holds up the VM, and nothing is lost unsaid: a reader that fell too far behind gets an event
//! that says how many it missed.

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

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The VMM is up.
    VmmStarting,
    /// The VMM is about to end.
    VmmShutdown,
    /// The VM is being built.
    VmBooting,
    /// The VM runs its first instructions.
    VmBooted,
    /// The vCPUs are being stopped.
    VmPausing,
    /// No vCPU runs.
    VmPaused,
    /// The vCPUs are being started again.
    VmResuming,
    /// The vCPUs run again.
    VmResumed,
    /// The VM is being taken apart, to be built again.
    VmRebooting,
    /// The VM runs again from its beginning.
    VmRebooted,
    /// The VM was taken apart.
    VmShutdown,
    /// The VM's description was forgotten.
    VmDeleted,
    /// The guest has a new device.
    DeviceAdded {
        /// Its name.
        id: String,
        /// Where it is in the guest.
        bdf: String,
    },
    /// A device was not added; nothing of it is left.
    DeviceAddFailed {
        /// Its name.
        id: String,
        /// Why not.
        reason: String,
    },
    /// The guest was asked to let go of a device.
    DeviceUnplugRequested {
        /// Its name.
        id: String,
    },
    /// A device is gone from the guest and free for the host.
    DeviceRemoved {
        /// Its name.
        id: String,
        /// Where it was in the guest.
        bdf: String,
        /// How it left the guest.
        departure: Departure,
    },
    /// The guest did not let go in time; the device is still attached.
    DeviceUnplugTimeout {
        /// Its name.
        id: String,
    },
    /// Requests between peers take a longer way than they could.
    DeviceRouteDegraded {
        /// The device whose window is not where it should be.
        id: String,
        /// What happened to the route.
        reason: String,
    },
    /// The guest moved a window of a device.
    DeviceWindowMoved {
        /// Its name.
        id: String,
        /// Which BAR.
        bar: u8,
        /// Guest-physical address of its window; none while it has none.
        gpa: Option<u64>,
    },
    /// A device of the VM reaches a function without the IOMMU, or is reached so, and that was accepted.
    DeviceExposed {
        /// The device's name.
        id: String,
        /// The function that is reached.
        function: String,
        /// Who reaches it, where, and who accepts that.
        reason: String,
    },
    /// A device had more to tell than it may.
    DeviceEventsSuppressed {
        /// Its name.
        id: String,
        /// How many events were not told.
        count: u64,
    },
    /// Something is wrong with a device.
    DeviceError {
        /// Its name.
        id: String,
        /// What is wrong.
        reason: String,
    },
}

/// How a device left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Departure {
    /// The guest let go of it when it was asked.
    Asked,
    /// The guest let go of it unasked.
    Unasked,
    /// It was taken from the guest.
    Forced,
}

/// An event with its time, as clients see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Record {
    /// Time since the VMM started.
    pub timestamp: Duration,
    /// Whom it is about: `vmm` or `vm`.
    pub source: String,
    /// What happened.
    pub event: String,
    /// The particulars, if there are any.
    pub properties: Option<BTreeMap<String, String>>,
}

impl Event {
    /// The event as it is told at `timestamp`.
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
                let reason = word(*departure);
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

/// How clients are told of a departure.
fn word(departure: Departure) -> &'static str {
    match departure {
        Departure::Asked => "asked",
        Departure::Unasked => "unasked",
        Departure::Forced => "forced",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_cloud_hypervisors_form() {
        let event = Event::DeviceRemoved {
            id: "nvme0".into(),
            bdf: "0000:02:00.0".into(),
            departure: Departure::Unasked,
        };
        let record = event.record(Duration::new(3, 5));
        assert_eq!(
            serde_json::to_string(&record).unwrap(),
            r#"{"timestamp":{"secs":3,"nanos":5},"source":"vm","event":"device-removed","properties":{"bdf":"0000:02:00.0","id":"nvme0","reason":"unasked"}}"#
        );
    }

    #[test]
    fn an_event_without_particulars_has_null_properties() {
        let record = Event::VmBooted.record(Duration::ZERO);
        let json = serde_json::to_string(&record).unwrap();
        assert!(
            json.ends_with(r#""event":"booted","properties":null}"#),
            "{json}"
        );
    }
}
