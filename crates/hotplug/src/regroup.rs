//! Changing groups and routes on a live host: a plan is carried out as one transaction.
//!
//! ```text
//! unplug ─ unbind ─ keep awake ─ words ─ remove ─ open ─ rescan ─ restore ─ check ─ routes ─┃─ bind ─ check ─ plug
//!                                                                                           ┃
//!          a failure or a crash on this side is undone                                      ┃ a crash on this side is
//!                                                                                           ┃ continued, a failure undone
//! ```
//!
//! Every action is written to a journal before it is done, and its result after. What to do next follows from the
//! records alone, whether the process that wrote them is still there or not. Undoing does not play the actions
//! backwards: it compares the host with what it was and does what is missing, so that it copes with a host that was
//! changed by somebody else meanwhile, has lost a device or has other bus numbers. A reboot undoes everything by itself.
//! Nothing is written to a function whose place or ids are not the recorded ones.
//!
//! The kernel is reached through [`Host`], virtual machines through [`Vmm`].

mod acs_register;
mod action;
mod baseline;
mod blocker;
mod compile;
#[cfg(feature = "contract")]
pub mod contract;
mod course;
mod difference;
mod disk;
mod drive;
mod error;
mod exposure;
mod forecast;
mod held;
mod holdings;
mod host;
mod identity;
mod journal;
mod machine;
mod peers;
mod perform;
mod place;
mod preflight;
mod record;
mod recover;
mod remote;
mod reset;
mod restore;
mod sealed;
mod state_dir;
mod stock;
mod transaction;
mod usage;
mod vmm;
mod withheld;

pub use acs_register::AcsRegister;
pub use action::Action;
pub use blocker::{Blocker, Refusal};
pub use difference::Difference;
pub use disk::Disk;
pub use error::{RegroupError, StateError};
pub use exposure::{GuestExposure, exposures};
pub use forecast::Forecast;
pub use host::{Host, HostError, LinuxHost};
pub use place::{Place, PlaceError};
pub use preflight::obstacle;
pub use record::{Outcome, Record};
pub use recover::Recovered;
pub use remote::RemoteVmm;
pub use reset::{ResetDone, ResetOrder};
pub use state_dir::{Finished, HeldPort, StateDir, Status, Unfinished};
pub use stock::StockVmm;
pub use transaction::{Progress, Regroup, Report};
pub use vmm::{Assigned, Prospect, VmAddress, Vmm, VmmError, VmmKind, Windows};
pub use withheld::{DeviceFacts, WithheldDevice};
