//! What the operator says of an exposure.

use std::collections::BTreeSet;
use std::fmt;

use iommu_group::{AcsBits, Exposure, Fabric, Function, Partition, Reach, Sbdf, is_vfio_driver};

use super::{Candidate, HostView};
use crate::policy::Consent;

/// A function that devices reach without the IOMMU, and who accepts that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    /// Who is reached by whom, and where.
    pub exposure: Exposure,
    /// The device of the VM that reaches or is reached.
    pub device: Sbdf,
    /// The driver of the function that is reached.
    pub driver: Option<String>,
    /// Whether all ports that requests go straight through could redirect them.
    pub closable: bool,
    /// Who accepts it.
    pub consent: Option<Consent>,
}

impl Exposed {
    /// Whether the devices may not be given to the VM because of it.
    pub fn is_refused(&self) -> bool {
        self.exposure.needs_consent() && self.consent.is_none()
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

impl HostView {
    /// The exposures of a VM with these devices. `named` are functions whose exposure a request accepts; the policy may
    /// accept others.
    pub fn exposures(&self, devices: &BTreeSet<Sbdf>, named: &BTreeSet<Sbdf>) -> Vec<Exposed> {
        let groups = Partition::found(&self.topology);
        let exposures = Fabric::found(&self.topology).exposures(&groups, devices);
        let own = |function: &Sbdf| {
            let mut devices = devices.iter();
            devices.find(|device| *device == function || groups.together(**device, *function))
        };
        let exposed = |exposure: Exposure| {
            let mut ends = std::iter::once(&exposure.function).chain(&exposure.to);
            let function = self.topology.get(exposure.function);
            let consent = self.policy.consent(exposure.function).cloned();
            Exposed {
                device: ends.find_map(own).copied().unwrap_or(exposure.function),
                driver: function.and_then(Function::driver).map(str::to_owned),
                closable: exposure.reach != Reach::Unknown
                    && exposure.through.iter().all(|port| self.can_redirect(*port)),
                consent: consent
                    .or_else(|| named.contains(&exposure.function).then_some(Consent::Named)),
                exposure,
            }
        };
        exposures.into_iter().map(exposed).collect()
    }

    /// The exposures that a device brings which comes to a VM that has `others`: those in which its group takes part.
    /// What has changed around the others is no reason to keep it out. What has `departed` from the VM is still the
    /// VM's own unless a driver of the host has it: devices that go for a moment come back one by one.
    pub fn exposures_of_newcomer(
        &self,
        newcomer: &Candidate,
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
        let function = self.topology.get(function);
        function.is_some_and(|function| function.driver().is_none_or(is_vfio_driver))
    }

    fn can_redirect(&self, port: Sbdf) -> bool {
        let registers = self.topology.get(port).and_then(|f| f.acs().registers());
        registers.is_some_and(|acs| acs.capability.contains(AcsBits::RR))
    }
}
