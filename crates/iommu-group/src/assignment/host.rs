//! Snapshot of a host with its operator's policy.

use std::ops::RangeInclusive;
use std::path::Path;

use crate::policy::{Identity, Policy, PolicyMatch};
use crate::{Function, Host, PortType, Sbdf, Sysfs, SysfsError, Topology};

/// The functions of a host at one moment, and the policy of its operator.
pub struct HostSnapshot {
    topology: Topology,
    policy: Policy,
}

impl HostSnapshot {
    /// Reads the running host from sysfs.
    ///
    /// # Errors
    /// If sysfs cannot be read.
    pub fn read(policy: Policy) -> Result<Self, SysfsError> {
        let sysfs = Sysfs::default();
        let host = Host::read(Path::new("/proc"), &sysfs);
        Ok(Self::new(Topology::scan(&sysfs, host)?, policy))
    }

    /// Combines a topology that was read before with a policy.
    #[must_use]
    pub fn new(topology: Topology, policy: Policy) -> Self {
        Self { topology, policy }
    }

    /// Replaces the policy.
    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// Returns the topology without the policy.
    #[must_use]
    pub fn into_topology(self) -> Topology {
        self.topology
    }

    /// The functions of the host.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The policy of the operator.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Windows of all bridges on the root buses. They contain the bus addresses of every device of the host.
    #[must_use]
    pub fn bridge_windows(&self) -> Vec<RangeInclusive<u64>> {
        let roots = self.topology.root_buses().iter();
        let bridges = roots.flat_map(|root| self.topology.on_root_bus(root));
        bridges.flat_map(windows).collect()
    }

    /// The rule of the policy for a function.
    #[must_use]
    pub fn policy_match(&self, sbdf: Sbdf) -> PolicyMatch {
        let Some(function) = self.topology.get(sbdf) else {
            return PolicyMatch::default();
        };
        let ids = function.ids();
        self.policy.find(&Identity {
            vendor: ids.vendor,
            device: ids.device,
            class: function.class(),
            integrated: function.port_type() == PortType::RcEndpoint
                || self.topology.upstream(sbdf).is_none(),
        })
    }
}

/// The memory windows of a bridge.
pub(super) fn windows(bridge: &Function) -> Vec<RangeInclusive<u64>> {
    let windows = bridge.windows().into_iter();
    windows.flat_map(|w| w.memory_windows().cloned()).collect()
}
