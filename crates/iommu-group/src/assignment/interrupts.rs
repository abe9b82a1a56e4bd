//! Interrupts that may not be isolated.

use std::fmt;

use crate::Topology;
use crate::policy::{Consent, Policy};

/// The kernel is set to assign devices whether or not their interrupts are isolated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsafeInterrupts {
    /// The kernel modules whose parameter `allow_unsafe_interrupts` is set.
    pub modules: Vec<String>,
    /// The operator's consent.
    pub consent: Option<Consent>,
}

impl UnsafeInterrupts {
    /// The setting of a host, with the operator's consent; `None` if the kernel assigns only devices with isolated
    /// interrupts.
    #[must_use]
    pub fn of(topology: &Topology, policy: &Policy) -> Option<Self> {
        let modules = topology.host().unsafe_interrupts.clone();
        (!modules.is_empty()).then(|| Self {
            modules,
            consent: policy.unsafe_interrupts().cloned(),
        })
    }
}

impl fmt::Display for UnsafeInterrupts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "interrupts may not be isolated, so a device could raise any interrupt of the host: \
             allow_unsafe_interrupts of {} is set",
            self.modules.join(" and ")
        )?;
        match &self.consent {
            Some(consent) => write!(f, "; {consent}"),
            None => Ok(()),
        }
    }
}
