//! Exposures of a VM, with the operator's consent.

use std::collections::BTreeSet;
use std::fmt;

use super::{DeviceInfo, HostSnapshot};
use crate::policy::Consent;
use crate::{
    AcsBits, DriverKind, Exposure, Function, Groups, RoutingModel, Sbdf, Topology,
    UntranslatedReach,
};

/// A function that devices reach without the IOMMU, with the operator's consent if it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// Which function is reached, by which devices, through which ports.
    pub exposure: Exposure,
    /// The device of the VM that is an initiator or the target.
    pub device: Sbdf,
    /// The driver of the function that is reached.
    pub driver: Option<String>,
    /// Whether all ports through which requests go directly could redirect them.
    pub closable: bool,
    /// The consent to the exposure.
    pub consent: Option<Consent>,
}

impl Exposed {
    /// Whether the exposure prevents the assignment of the devices to the VM.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.exposure.needs_consent() && self.consent.is_none()
    }

    /// The kind of driver of the function that is reached.
    pub(super) fn driver_kind(&self) -> DriverKind {
        DriverKind::of(self.driver.as_deref())
    }
}

impl fmt::Display for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.exposure)?;
        match &self.consent {
            Some(consent) => write!(f, "; {consent}"),
            None => Ok(()),
        }
    }
}

/// The exposures of a VM with these devices, for the present groups or for predicted ones. `consent` returns the
/// consent to the exposure of a function.
#[must_use]
pub fn exposures(
    routing: &RoutingModel<'_>,
    groups: &Groups,
    devices: &BTreeSet<Sbdf>,
    consent: impl Fn(Sbdf) -> Option<Consent>,
) -> Vec<Exposed> {
    let topology = routing.topology();
    let own = |function: &Sbdf| {
        let mut devices = devices.iter();
        devices.find(|device| *device == function || groups.together(**device, *function))
    };
    let exposed = |exposure: Exposure| {
        let mut ends = std::iter::once(&exposure.function).chain(&exposure.to);
        let function = topology.get(exposure.function);
        let mut through = exposure.through.iter();
        Exposed {
            device: ends.find_map(own).copied().unwrap_or(exposure.function),
            driver: function.and_then(Function::driver).map(str::to_owned),
            closable: exposure.reach != UntranslatedReach::Unknown
                && through.all(|port| can_redirect(topology, *port)),
            consent: consent(exposure.function),
            exposure,
        }
    };
    let exposures = routing.exposures(groups, devices);
    exposures.into_iter().map(exposed).collect()
}

fn can_redirect(topology: &Topology, port: Sbdf) -> bool {
    let registers = topology.get(port).and_then(|f| f.acs().registers());
    registers.is_some_and(|acs| acs.capability.contains(AcsBits::RR))
}

impl HostSnapshot {
    /// The exposures of a VM with these devices. `named` lists functions whose exposure a request accepts; the policy
    /// may accept others.
    #[must_use]
    pub fn exposures(&self, devices: &BTreeSet<Sbdf>, named: &BTreeSet<Sbdf>) -> Vec<Exposed> {
        let topology = self.topology();
        let (routing, groups) = (RoutingModel::found(topology), Groups::found(topology));
        let consent = |function| {
            let consent = self.policy().consent(function).cloned();
            consent.or_else(|| named.contains(&function).then_some(Consent::Named))
        };
        exposures(&routing, &groups, devices, consent)
    }

    /// The exposures that a new device causes in a VM with the devices `others`: those that involve a member of its
    /// group. Other changes on the host are not a reason to refuse the device. Functions in `departed`, which the VM
    /// had before, count as the VM's own unless they are bound to a host driver: devices that are removed temporarily
    /// come back one at a time.
    #[must_use]
    pub fn exposures_of_newcomer(
        &self,
        newcomer: &DeviceInfo,
        others: &BTreeSet<Sbdf>,
        departed: &BTreeSet<Sbdf>,
        named: &BTreeSet<Sbdf>,
    ) -> Vec<Exposed> {
        let idle = departed.iter().filter(|function| self.is_idle(**function));
        let mut own: BTreeSet<Sbdf> = others.iter().chain(idle).copied().collect();
        own.insert(newcomer.sbdf);
        let group = newcomer.members.iter().filter_map(|member| member.sbdf);
        let group: BTreeSet<Sbdf> = group.collect();
        let mut exposures = self.exposures(&own, named);
        exposures.retain(|exposed| exposed.exposure.involves(&group));
        exposures
    }

    fn is_idle(&self, function: Sbdf) -> bool {
        let function = self.topology().get(function);
        function.is_some_and(|function| {
            matches!(
                function.driver_kind(),
                DriverKind::Unbound | DriverKind::Vfio
            )
        })
    }
}
