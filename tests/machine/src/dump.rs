//! The machine as a dump, in the format of `p2pctl dump`.

use serde_json::{Map, Value, json};

use super::config::text;
use super::{Machine, Placed};

impl Machine {
    /// The machine as the text of a dump.
    pub fn fixture(&self) -> String {
        let mut functions = Map::new();
        let mut behind = Map::new();
        for placed in &self.functions {
            let mut path = placed.dir.rsplit('/');
            let parent = path.next().unwrap_or_default();
            if let (true, Some(provider)) = (parent.starts_with("pci"), path.next()) {
                behind.insert(parent.to_owned(), json!(provider));
            }
            functions.insert(placed.sbdf.to_string(), function(placed, parent));
        }
        let document = json!({
            "format": "pci-topology",
            "version": 1,
            "host": self.host,
            "root_buses_behind": behind,
            "functions": functions,
        });
        format!("{document:#}")
    }
}

fn function(placed: &Placed, parent: &str) -> Value {
    let description = &placed.function;
    let config = placed.config();
    let resources = placed.resources().into_iter();
    let resources: Map<_, _> = resources
        .map(|(n, start, end, flags)| {
            (n.to_string(), json!(format!("{start:x}-{end:x} {flags:x}")))
        })
        .collect();
    let mut function = json!({
        "parent": parent,
        "config": text(&config, config.len()),
        "resources": resources,
    });
    if let Some(driver) = &description.driver {
        function["driver"] = json!(driver);
    }
    if !description.resets.is_empty() {
        function["reset_methods"] = json!(description.resets);
    }
    if let Some(group) = placed.group {
        function["iommu_group"] = json!(group);
    }
    if placed.numa >= 0 {
        function["numa_node"] = json!(placed.numa);
    }
    if description.native_hotplug {
        function["native_hotplug"] = json!(true);
    }
    if let Some(physical) = placed.physical {
        function["physical_function"] = json!(physical);
    }
    if placed.hides_ids() {
        let hex = |id: u16| format!("{id:04x}");
        function["known_as"] = json!({
            "vendor": hex(description.ids.0), "device": hex(description.ids.1),
            "subsystem_vendor": hex(description.subsystem.0),
            "subsystem_device": hex(description.subsystem.1),
            "class": format!("{:06x}", description.class),
        });
    }
    function
}
