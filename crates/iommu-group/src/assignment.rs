//! Checks which devices a VM may have, and which of them may use peer-to-peer DMA.
//!
//! Reading ([`HostSnapshot::read`], [`DeviceInfo::read`]) and deciding ([`check_assignment`], [`HostSnapshot::pairs`])
//! are separate. Neither opens or changes anything.

mod check;
mod device;
mod exposed;
mod host;
mod interrupts;
mod pairs;
mod refusal;

#[cfg(test)]
mod tests;

pub use check::{Assignment, AssignmentRequest, check_assignment, has_unshared};
pub use device::{ContextKind, DeviceInfo, DomainName};
pub use exposed::{Exposed, exposures};
pub use host::HostSnapshot;
pub use interrupts::UnsafeInterrupts;
pub use pairs::PairRules;
pub use refusal::{Change, Reason, Refusal};
