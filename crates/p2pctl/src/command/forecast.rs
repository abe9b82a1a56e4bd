//! The effects of a plan on the users of the devices, as text.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use hotplug::regroup::{Blocker, Forecast, Regroup, StateDir, VmDevice};
use iommu_group::{Plan, Sbdf};

use super::plan::View;
use super::remote::Daemon;
use crate::cli::{Global, PlaceArgs};
use crate::host;
use crate::names::few;
use crate::progress::seconds;
use crate::show::{Line, Tone};
use crate::source::Source;

/// The current effects of a plan; `None` if they are unknown: for a file of a machine, or without root.
pub(super) fn forecast(
    global: &Global,
    source: &Source,
    plan: &Plan,
    at: &PlaceArgs,
) -> Result<Option<Forecast>> {
    if global.from.is_some() || source.topology().needs_privilege() {
        return Ok(None);
    }
    // The daemon serves its own host only.
    let elsewhere = global
        .sysfs
        .as_deref()
        .is_some_and(|sysfs| sysfs != Path::new("/sys"));
    if !elsewhere && let Some(daemon) = Daemon::at(&at.daemon.socket)? {
        return Ok(Some(daemon.check(plan)?));
    }
    let host = host::live(global)?;
    let regroup = Regroup::new(&host, &[], StateDir::new(&at.state.state_dir));
    Ok(Some(regroup.check(plan)?))
}

/// Devices by virtual machine, in the order of their addresses.
pub(super) fn by_guest(devices: &[VmDevice]) -> BTreeMap<&str, Vec<&VmDevice>> {
    let mut guests: BTreeMap<&str, Vec<&VmDevice>> = BTreeMap::new();
    for device in devices {
        guests.entry(&device.vm).or_default().push(device);
    }
    for devices in guests.values_mut() {
        devices.sort_by_key(|device| device.function);
    }
    guests
}

/// Role of a device when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Back {
    Peer,
    NoPeer,
    AsBefore,
}

impl Back {
    fn of(was: &VmDevice, is: &VmDevice) -> Self {
        match (was.p2p, is.p2p) {
            (true, false) => Self::NoPeer,
            (false, true) => Self::Peer,
            _ if was.domain != is.domain => Self::Peer,
            _ => Self::AsBefore,
        }
    }

    fn words(self, several: bool) -> &'static str {
        match (self, several) {
            (Self::Peer, true) => "as peers below one virtual switch",
            (Self::Peer, false) => "as a peer",
            (Self::NoPeer, _) => "without P2P",
            (Self::AsBefore, true) => "as they were",
            (Self::AsBefore, false) => "as it was",
        }
    }
}

impl View<'_> {
    /// The blockers that must be resolved before the plan can be applied. The plan's own warnings are separate.
    pub(super) fn blocked(&self) -> Vec<Line> {
        self.blockers()
            .map(|blocker| Line::new().toned(Tone::Bad, self.names.shorten(&blocker.to_string())))
            .collect()
    }

    /// Whether the current state of the host blocks the plan.
    pub(super) fn is_blocked(&self) -> bool {
        self.blockers().next().is_some()
    }

    fn blockers(&self) -> impl Iterator<Item = &Blocker> {
        let forecast = self.forecast.iter();
        forecast
            .flat_map(|forecast| &forecast.blockers)
            .filter(|blocker| !matches!(blocker, Blocker::Warning { .. }))
    }

    /// The devices that virtual machines lose and for how long, and the devices nearby that keep running.
    pub(super) fn guests(&self) -> Vec<Line> {
        let Some(forecast) = &self.forecast else {
            return Vec::new();
        };
        let mut lines: Vec<Line> = by_guest(&forecast.unplug)
            .into_iter()
            .map(|(vm, devices)| {
                Line::new().strong(vm).plain(format_args!(
                    " loses {} during the change, and gets {} back {}",
                    self.devices(&devices),
                    if devices.len() == 1 { "it" } else { "them" },
                    self.coming_back(&devices, &forecast.plug)
                ))
            })
            .collect();
        if lines.is_empty() {
            return lines;
        }
        lines.push(match forecast.last_away_ms {
            Some(ms) => format!(
                "for the duration of the change: {} the last time",
                seconds(Duration::from_millis(ms))
            )
            .into(),
            None => {
                "for the duration of the change, which is unknown: no earlier change is recorded"
                    .into()
            }
        });
        let near = self.near(forecast);
        let staying = by_guest(&near);
        lines.extend(staying.into_iter().map(|(vm, devices)| {
            Line::new().strong(vm).plain(format_args!(
                " keeps {} during the change",
                self.devices(&devices)
            ))
        }));
        lines
    }

    /// `one (03:00.0), two (04:00.0)`.
    pub(super) fn devices(&self, devices: &[&VmDevice]) -> String {
        let devices = devices.iter();
        let names: Vec<String> = devices
            .map(|device| format!("{} ({})", device.id, self.names.of(device.function)))
            .collect();
        names.join(", ")
    }

    /// Functions, with the virtual machines that have them.
    pub(super) fn whose<'f>(&self, functions: impl IntoIterator<Item = &'f Sbdf>) -> String {
        let owner = |function: Sbdf| {
            let mut devices = self
                .forecast
                .iter()
                .flat_map(|f| f.unplug.iter().chain(&f.staying));
            devices.find(|device| device.function == function)
        };
        let name = |function: &Sbdf| match owner(*function) {
            Some(device) => format!("{} ({})", self.names.of(*function), device.vm),
            None => self.names.of(*function),
        };
        few(&functions.into_iter().map(name).collect::<Vec<_>>(), 16)
    }

    fn coming_back(&self, devices: &[&VmDevice], plug: &[VmDevice]) -> String {
        let mut ways: BTreeMap<Back, Vec<&VmDevice>> = BTreeMap::new();
        for was in devices {
            let is = plug.iter().find(|is| is.vm == was.vm && is.id == was.id);
            let back = is.map_or(Back::AsBefore, |is| Back::of(was, is));
            ways.entry(back).or_default().push(was);
        }
        let only = ways.len() == 1;
        let ways = ways.into_iter();
        let words: Vec<String> = ways
            .map(|(back, devices)| {
                let words = back.words(devices.len() > 1);
                if only {
                    return words.to_owned();
                }
                let ids: Vec<&str> = devices.iter().map(|device| device.id.as_str()).collect();
                format!("{} {words}", ids.join(", "))
            })
            .collect();
        words.join("; ")
    }

    /// The devices that stay, below the same root ports as unplugged ones.
    fn near(&self, forecast: &Forecast) -> Vec<VmDevice> {
        let root = |device: &VmDevice| {
            let above = self.topology.ancestors(device.function);
            above.last().map(|port| port.sbdf())
        };
        let roots: Vec<_> = forecast.unplug.iter().filter_map(root).collect();
        let staying = forecast.staying.iter();
        staying
            .filter(|device| root(device).is_some_and(|root| roots.contains(&root)))
            .cloned()
            .collect()
    }
}
