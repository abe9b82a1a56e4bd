//! The effects that a plan would have on the users of devices now.

use serde::{Deserialize, Serialize};

use super::blocker::Blocker;
use super::vmm::VmDevice;

/// The effects that a plan would have now.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Forecast {
    /// Reasons for a refusal. The plan can be carried out if there are none.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<serde_json::Value>"))]
    pub blockers: Vec<Blocker>,
    /// The devices that are unplugged, in their present form.
    pub unplug: Vec<VmDevice>,
    /// The same devices in the form in which they come back.
    pub plug: Vec<VmDevice>,
    /// The other devices of virtual machines.
    pub staying: Vec<VmDevice>,
    /// How long virtual machines were without their devices in the latest transaction that unplugged some, in
    /// milliseconds; none if there was no such transaction.
    pub last_away_ms: Option<u64>,
}
