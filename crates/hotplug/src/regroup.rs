//! Changes IOMMU groups and routes on a live host. A plan is carried out as one transaction.
//!
//! ```text
//! unplug ─ unbind ─ keep awake ─ ACS ─── remove ─ open ─ rescan ─ restore ─ check ─ routes ─┃─ bind ─ check ─ plug
//!                                                                                           ┃
//!          a failure or a crash on this side is undone                                      ┃ a crash on this side is
//!                                                                                           ┃ continued, a failure undone
//! ```
//!
//! Every action is written to the journal before it is done, and its result afterwards. The records alone determine the
//! next action, in the process that wrote them and in one that recovers. Undo does not reverse the actions: it compares
//! the host with the recorded snapshot and restores what differs. So it also works if other programs changed the host
//! meanwhile, if a device is gone, or if bus numbers changed. A reboot undoes a transaction by itself. A function is
//! written to only if its topology path and its IDs are the recorded ones.
//!
//! [`Host`] is the interface to the kernel, [`Vmm`] the interface to virtual machines.

mod acs_register;
mod action;
mod blocker;
mod cloud_hypervisor;
#[cfg(feature = "conformance")]
pub mod conformance;
mod difference;
mod disk;
mod drive;
mod error;
mod executor;
mod forecast;
mod held;
mod holdings;
mod host;
mod identity;
mod journal;
mod lowering;
mod peers;
mod preflight;
mod preview;
mod record;
mod recover;
mod remote;
mod reset;
mod restore;
mod saga_state;
mod sealed;
mod snapshot;
mod state_dir;
mod sysfs_ops;
mod topology_path;
mod transaction;
mod usage;
mod vmm;
mod withheld;

pub use acs_register::AcsRegister;
pub use action::Action;
pub use blocker::{Blocker, Refusal};
pub use cloud_hypervisor::CloudHypervisorVmm;
pub use difference::Difference;
pub use disk::Disk;
pub use error::{RegroupError, StateError};
pub use forecast::Forecast;
pub use host::{Host, HostError, LinuxHost};
pub use preflight::obstacle;
pub use record::{Outcome, Record};
pub use recover::Recovered;
pub use remote::RemoteVmm;
pub use reset::{ResetDone, ResetOrder};
pub use state_dir::{Finished, HeldPort, StateDir, Status, Unfinished};
pub use topology_path::{TopologyPath, TopologyPathError};
pub use transaction::{Progress, Regroup, Report};
pub use vmm::{PeerMappings, ProposedDevices, VmAddress, VmDevice, Vmm, VmmError, VmmKind};
pub use withheld::{DeviceFacts, WithheldDevice};
