//! What `p2pctl`, which is a program, reads of cloud-hypervisor's command line and API: its files are part of this crate
//! too.

#[path = "../../crates/p2pctl/src/cloud_hypervisor/command_line.rs"]
pub(crate) mod command_line;
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
#[path = "../../crates/p2pctl/src/cloud_hypervisor/rules.rs"]
pub(crate) mod rules;
#[path = "../../crates/p2pctl/src/cloud_hypervisor/version.rs"]
pub(crate) mod version;

/// What is not in the form that the rest reads.
pub(crate) fn misshapen(config: &serde_json::Value) -> Option<String> {
    json::misshapen(config)
}
