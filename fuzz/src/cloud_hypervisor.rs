//! Parsers of `p2pctl` for cloud-hypervisor's command line and API. `p2pctl` is a program, so its files are included in
//! this crate.

#[path = "../../crates/p2pctl/src/cloud_hypervisor/command_line.rs"]
pub(crate) mod command_line;
#[path = "../../crates/p2pctl/src/cloud_hypervisor/constraints.rs"]
pub(crate) mod constraints;
#[path = "../../crates/p2pctl/src/cloud_hypervisor/device.rs"]
pub(crate) mod device;
#[path = "../../crates/p2pctl/src/cloud_hypervisor/json.rs"]
pub(crate) mod json;
#[path = "../../crates/p2pctl/src/cloud_hypervisor/memory.rs"]
pub(crate) mod memory;
#[path = "../../crates/p2pctl/src/cloud_hypervisor/option_list.rs"]
pub(crate) mod option_list;
#[path = "../../crates/p2pctl/src/cloud_hypervisor/refusal.rs"]
pub(crate) mod refusal;
#[path = "../../crates/p2pctl/src/cloud_hypervisor/version.rs"]
pub(crate) mod version;

/// Checks the JSON types in a configuration.
pub(crate) fn well_formed(config: &serde_json::Value) -> Result<(), String> {
    json::well_formed(config)
}
