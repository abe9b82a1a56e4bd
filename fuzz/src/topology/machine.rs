//! Machines from arbitrary bytes: valid enough to parse, and broken enough to reach unusual cases.

use iommu_group::{Firmware, GroupModel, Kernel, PortType, Topology};
use serde_json::{Map, Value, json};
use test_machine::config::{Space, text};

use crate::bytes::Bytes;

/// Maximum number of functions of a machine, because pairs of them are checked.
const MOST_FUNCTIONS: usize = 14;

/// Vendor and device IDs for which Linux has quirks, and some without.
const IDS: [(u16, u16); 16] = [
    (0x1234, 0x11e8),
    (0x1b36, 0x000c),
    (0x8086, 0x3420),
    (0x8086, 0x10fb), // functions are isolated without ACS
    (0x8086, 0xa110), // ACS registers in doublewords
    (0x8086, 0x9c10), // chipset port with isolation by other means than ACS
    (0x8086, 0x2030),
    (0x8086, 0x0b25),
    (0x1022, 0x7809),
    (0x1022, 0x1480), // root complex that p2pdma trusts
    (0x1b4b, 0x9230), // sends requests with the ID of another function
    (0x1283, 0x8892), // bridge that Linux treats as PCI Express
    (0x111d, 0x80b5), // broken source validation
    (0x1a03, 0x1150), // bridge without aliases
    (0x11f8, 0x8531), // non-transparent bridge
    (0x10de, 0x2330),
];

const ACS_BITS: [u16; 8] = [0x00, 0x1d, 0x5f, 0x7f, 0x11, 0x15, 0x3d, 0x1f];

/// The text of a topology file for a machine that the bytes describe.
pub(crate) fn machine(bytes: &[u8]) -> String {
    document(bytes).to_string()
}

/// The same with the groups that Linux assigns at boot.
pub(crate) fn machine_with_groups(bytes: &[u8]) -> String {
    let mut document = document(bytes);
    if let Some(functions) = document["functions"].as_object_mut() {
        for function in functions.values_mut().filter_map(Value::as_object_mut) {
            function.remove("iommu_group");
        }
    }
    let bare = Topology::from_fixture(&document.to_string()).expect("it is a machine");
    // Most functions could not be where they are. Functions that can only be on a root bus are moved there.
    for function in bare.functions() {
        let (sbdf, port_type) = (function.sbdf(), function.port_type());
        if matches!(port_type, PortType::RootPort | PortType::RcEndpoint) {
            let root = format!("pci{:04x}:00", sbdf.domain());
            document["functions"][sbdf.to_string()]["parent"] = json!(root);
        }
    }
    let bare = Topology::from_fixture(&document.to_string()).expect("it is a machine");
    let model = GroupModel::booted(&bare, &Kernel::of(&bare), Firmware::AsFound);
    for (number, group) in model.groups().groups().iter().enumerate() {
        for member in group {
            document["functions"][member.to_string()]["iommu_group"] = json!(number);
        }
    }
    document.to_string()
}

fn document(bytes: &[u8]) -> Value {
    let mut bytes = Bytes::new(bytes);
    let host = host(&mut bytes);
    let mut behind = Map::new();
    let mut names: Vec<String> = Vec::new();
    let mut functions = Map::new();
    while names.len() < MOST_FUNCTIONS && !bytes.is_empty() {
        let name = address(&mut bytes);
        let function = function(&mut bytes, &names, &mut behind);
        functions.insert(name.clone(), function);
        names.push(name);
    }
    json!({
        "format": "pci-topology",
        "version": 1,
        "host": host,
        "root_buses_behind": behind,
        "functions": functions,
    })
}

fn host(bytes: &mut Bytes<'_>) -> Value {
    let release = bytes.pick(&["7.2.12", "6.12.95", "7.3.4", ""]);
    let argument = bytes.pick(&[
        "quiet",
        "pci=disable_acs_redir=0000:01:00.0",
        "pci=config_acs=10111x0@pci:8086:0",
        "pcie_acs_override=downstream,multifunction",
        "pci=config_acs=x1x0@0000:00:01.0;disable_acs_redir=pci:0:0",
    ]);
    let vendor = bytes.pick(&["GenuineIntel", "AuthenticAMD"]);
    json!({
        "kernel_release": release,
        "kernel_arguments": [argument],
        "cpu": { "vendor": vendor, "family": bytes.next() },
        "iommu": bytes.pick(&["unknown", "none", "intel", "amd", "other"]),
    })
}

fn address(bytes: &mut Bytes<'_>) -> String {
    let domain = bytes.pick(&[0_u32, 0, 0, 1, 0x1_0000]);
    let (bus, devfn) = (bytes.next() % 8, bytes.next());
    format!("{domain:04x}:{bus:02x}:{:02x}.{}", devfn >> 3, devfn & 7)
}

fn function(bytes: &mut Bytes<'_>, names: &[String], behind: &mut Map<String, Value>) -> Value {
    let mut text = Map::new();
    match bytes.below(8) {
        0 => {
            let root = bytes.pick(&["pci0000:00", "pci0000:01", "pci10000:00"]);
            text.insert("parent".into(), json!(root));
            if let Some(name) = some_of(bytes, names) {
                behind.insert(root.into(), json!(name));
            }
        }
        // No parent is given: it follows from the bus numbers.
        1 => {}
        2 => {
            text.insert("parent".into(), json!("pci0000:00"));
        }
        _ => {
            let parent = match some_of(bytes, names) {
                Some(name) => name.clone(),
                None => address(bytes),
            };
            text.insert("parent".into(), json!(parent));
        }
    }
    let flags = bytes.next();
    if flags & 1 != 0
        && let Some(physical) = some_of(bytes, names)
    {
        text.insert("physical_function".into(), json!(physical));
        let (vendor, device) = bytes.pick(&IDS);
        text.insert(
            "known_as".into(),
            json!({
                "vendor": format!("{vendor:04x}"), "device": format!("{device:04x}"),
                "subsystem_vendor": "0", "subsystem_device": "0", "class": "020000",
            }),
        );
    }
    if flags & 2 != 0 {
        text.insert("iommu_group".into(), json!(bytes.next() % 8));
    }
    if flags & 4 != 0 {
        text.insert("native_hotplug".into(), json!(true));
    }
    if flags & 8 != 0 {
        let words = bytes.pick(&[
            "flr bus",
            "device_specific acpi pm",
            "cxl_bus",
            "af_flr bus pm",
        ]);
        text.insert("reset_methods".into(), json!(words));
    }
    if flags & 0x10 != 0 {
        let (line, start) = (bytes.next() % 17, u64::from(bytes.next()) << 20);
        let flags = bytes.pick(&["200", "14220c", "100", "10100200"]);
        let resource = format!("{start:x}-{:x} {flags}", start + 0xfffff);
        text.insert("resources".into(), json!({ line.to_string(): resource }));
    }
    text.insert("config".into(), config(bytes));
    Value::Object(text)
}

fn some_of<'a>(bytes: &mut Bytes<'_>, names: &'a [String]) -> Option<&'a String> {
    let index = bytes.below(names.len());
    names.get(index)
}

fn config(bytes: &mut Bytes<'_>) -> Value {
    let mut space = Space::new(0x300);
    let (vendor, device) = bytes.pick(&IDS);
    space.put(0, &vendor.to_le_bytes());
    space.put(2, &device.to_le_bytes());
    space.put(6, &[0x10]);
    // No PCI Express, then the existing types of PCI Express, and one that does not exist.
    let kind = bytes.below(13);
    let port_type = kind.checked_sub(1).and_then(|kind| u8::try_from(kind).ok());
    let flags = bytes.next();
    let is_bridge = matches!(port_type, Some(4..=8)) || flags & 1 != 0;
    let multifunction = if flags & 2 != 0 { 0x80 } else { 0 };
    space.put(0x0e, &[u8::from(is_bridge) | multifunction]);
    if is_bridge {
        space.put(9, &[0, 4, 6, 0]);
        let secondary = bytes.next() % 8;
        space.put(0x18, &[0, secondary, secondary]);
        let window = bytes.next();
        space.put(0x20, &[0, window, 0xf0, window.saturating_add(0x10)]);
    } else {
        space.put(9, &[0, bytes.pick(&[0, 1, 4]), 2, 0]);
        space.put(0x10, &[0x04, 0, bytes.next(), 0]);
    }
    if let Some(port_type) = port_type {
        let mut body = [0; 0x3a];
        body[0] = port_type << 4 | 2;
        body[5] = if flags & 4 != 0 { 0x10 } else { 0 };
        body[0x0d] = bytes.next();
        body[0x26] = if flags & 8 != 0 { 0x20 } else { 0 };
        space.capability(0x40, 0x10);
        space.put(0x42, &body);
    }
    let mut next = 0x100;
    let mut extended = |space: &mut Space, id, body: &[u8]| {
        space.extended(next, id, 1);
        space.put(next + 4, body);
        next += 4 + body.len();
    };
    if flags & 0x10 != 0 {
        let (capability, control) = (bytes.pick(&ACS_BITS), bytes.pick(&ACS_BITS));
        let mut body = [0; 12];
        body[..2].copy_from_slice(&capability.to_le_bytes());
        body[1] = bytes.pick(&[0, 8, 33, 0xff]);
        body[2..4].copy_from_slice(&control.to_le_bytes());
        body[4] = bytes.next();
        extended(&mut space, 0x0d, &body);
    }
    if flags & 0x20 != 0 {
        extended(&mut space, 0x0f, &[0x20, 0, 0, bytes.pick(&[0x80, 0])]);
    }
    if flags & 0x40 != 0 {
        extended(
            &mut space,
            0x0e,
            &[bytes.next(), bytes.next(), bytes.next(), 0],
        );
    }
    if flags & 0x80 != 0 {
        let mut body = [0; 60];
        body[8..].fill(bytes.next());
        extended(&mut space, 0x10, &body);
    }
    let visible = bytes.pick(&[4096, 4096, 4096, 4096, 256, 64, 0, 0x104]);
    match bytes.next() {
        0xff => space.bytes.fill(0xff),
        // Makes one byte wrong.
        0xf0..=0xfe => {
            let at = usize::from(bytes.next()) * 2 + usize::from(bytes.next() & 1);
            space.bytes[at] = bytes.next();
        }
        _ => {}
    }
    let shown = &space.bytes[..visible.min(space.bytes.len())];
    text(shown, visible)
}
