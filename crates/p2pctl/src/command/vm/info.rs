//! `p2pctl vm info`: the VM and its devices.
//!
//! Unknown fields are ignored, because cloud-hypervisor's configuration has more fields than that of this project.

use serde_json::Value;
use vmm_api::Client;

use super::CallError;
use crate::answer::Answer;
use crate::describe::size;
use crate::show::{Line, Table, Text, Tone};

pub(super) fn run(client: &Client, json: bool, width: usize) -> Result<Answer, CallError> {
    let info: Value = client.get("vm.info")?;
    if json {
        return Ok(Answer::json(&info)?);
    }
    let text_at = |pointer: &str| info.pointer(pointer).and_then(Value::as_str);
    let number_at = |pointer: &str| info.pointer(pointer).and_then(Value::as_u64);
    let mut text = Text::new();
    let state = text_at("/state").unwrap_or("unknown").to_lowercase();
    let vcpus = number_at("/config/cpus/boot_vcpus").unwrap_or(0);
    let memory = size(number_at("/memory_actual_size").unwrap_or(0));
    text.push(
        Line::new()
            .strong(&state)
            .plain(format_args!(", {vcpus} vCPUs, {memory} memory")),
    );
    let mut table = Table::new(["device", "in the guest", "P2P", "BARs", "on the host"]);
    let configured = info.pointer("/config/devices").and_then(Value::as_array);
    for device in configured.into_iter().flatten() {
        table.row(row(device, info.get("device_tree")));
    }
    if configured.is_none_or(Vec::is_empty) {
        text.push(Line::new().plain("no devices are assigned"));
    } else {
        text.extend(table.render(width));
    }
    for line in configured.into_iter().flatten().filter_map(accepted) {
        text.push_wrapped(&line, width, 2);
    }
    Ok(Answer::text(text))
}

/// The exposures that were accepted for a device.
fn accepted(device: &Value) -> Option<Line> {
    let functions = device.get("expose")?.as_array()?.iter();
    let functions: Vec<&str> = functions.filter_map(Value::as_str).collect();
    let id = device.get("id").and_then(Value::as_str).unwrap_or_default();
    (!functions.is_empty()).then(|| {
        Line::new()
            .plain(format_args!("accepted with {id}: "))
            .toned(
                Tone::Warn,
                format_args!("{} reachable without the IOMMU", functions.join(" ")),
            )
    })
}

fn row(device: &Value, tree: Option<&Value>) -> Vec<Line> {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let id = text(device.get("id")).unwrap_or_default();
    let node = tree.and_then(|tree| tree.get(&id));
    let bdf = text(node.and_then(|node| node.get("pci_bdf")));
    let p2p = match device.get("p2p").and_then(Value::as_bool) {
        Some(true) => text(device.get("p2p_domain")).unwrap_or_else(|| "on".to_owned()),
        Some(false) | None => "off".to_owned(),
    };
    let resources = node.and_then(|node| node.get("resources"));
    let bars = resources.and_then(Value::as_array).into_iter().flatten();
    let bars: Vec<String> = bars.filter_map(|bar| bar.get("PciBar")).map(bar).collect();
    let path = text(device.get("path")).unwrap_or_default();
    let host = path.rsplit('/').next().unwrap_or_default().to_owned();
    [
        id,
        bdf.unwrap_or_else(|| "–".to_owned()),
        p2p,
        bars.join(" "),
        host,
    ]
    .map(|cell| Line::new().plain(cell))
    .into()
}

/// `0:16K@0xc0000000`
fn bar(bar: &Value) -> String {
    let number = |key: &str| bar.get(key).and_then(Value::as_u64).unwrap_or(0);
    format!(
        "{}:{}@{:#x}",
        number("index"),
        size(number("size")),
        number("base")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_accepted_with_a_device_is_said() {
        let device = |expose: Value| serde_json::json!({"id": "nvme0", "expose": expose});
        let line = accepted(&device(serde_json::json!(["0000:04:00.0"])));
        assert_eq!(
            line.map(|line| line.to_string()).as_deref(),
            Some("accepted with nvme0: 0000:04:00.0 reachable without the IOMMU")
        );
        assert!(accepted(&device(serde_json::json!([]))).is_none());
        assert!(accepted(&device(Value::Null)).is_none());
    }
}
