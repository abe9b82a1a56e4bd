//! cloud-hypervisor's command line and JSON, as `p2pctl` parses and changes them.

use std::ffi::OsString;
use std::str;

use serde_json::Value;

use crate::cloud_hypervisor::command_line::CommandLine;
use crate::cloud_hypervisor::constraints::{Host, VmOptions, required_settings};
use crate::cloud_hypervisor::device::RequestedDevice;
use crate::cloud_hypervisor::json::{strip, vm_options};
use crate::cloud_hypervisor::memory::GuestMemory;
use crate::cloud_hypervisor::option_list::OptionList;
use crate::cloud_hypervisor::version::Version;
use crate::cloud_hypervisor::well_formed;

/// Keys that only this project uses; cloud-hypervisor refuses them.
const OURS: [&str; 3] = ["p2p", "p2p_domain", "expose"];

/// The words of a command line, one per line, or the JSON of a VM. Checks that a list has the same meaning after it is
/// written again, that a key that is set has its value, and that none of this project's keys is left for
/// cloud-hypervisor.
pub(crate) fn launch(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else {
        return;
    };
    match serde_json::from_str::<Value>(text) {
        Ok(config) => json(config),
        Err(_) => command_line(text),
    }
    let _ = Version::find(text);
}

fn command_line(text: &str) {
    let line = CommandLine::new(text.split('\n').map(OsString::from).collect());
    let mut requested = Vec::new();
    for value in line.values("--device") {
        option_list(&value.text);
        match RequestedDevice::parse(&value.text) {
            Ok(device) => {
                for key in OURS {
                    assert_eq!(device.options.get(key), None, "{key} of {}", value.text);
                }
                requested.push(device);
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        let mut changed = line.clone();
        changed.replace(&value, &value.text);
        assert_eq!(changed, line, "replaced by itself");
    }
    let memory = GuestMemory::from_command_line(&line);
    places(memory);
    let vm_options = VmOptions {
        memory,
        ..VmOptions::default()
    };
    constraints(&requested, &vm_options);
}

fn option_list(text: &str) {
    let Ok(mut list) = OptionList::parse(text) else {
        return;
    };
    let written = list.to_string();
    let again = OptionList::parse(&written).expect("what was written is a list");
    assert_eq!(again, list, "{written}");
    list.set("path", "/x");
    assert_eq!(list.get("path").as_deref(), Some("/x"), "{written}");
    list.take("path");
    assert_eq!(list.get("path"), None, "{written}");
}

/// Checks that the parts of memory do not overlap each other or the range for BARs.
fn places(memory: Option<GuestMemory>) {
    let Some(memory) = memory else {
        return;
    };
    let ranges = memory.ranges();
    assert!(
        ranges.is_sorted_by(|a, b| a.end() < b.start()),
        "{ranges:?}"
    );
    for bits in 0..=u8::MAX {
        if let (Some(bars), Some(last)) = (memory.bars_64(bits), ranges.last()) {
            assert!(last.end() < bars.start(), "{last:?} {bars:?}");
        }
    }
}

fn json(mut config: Value) {
    let shape = well_formed(&config);
    let vm_options = vm_options(&config);
    places(vm_options.memory);
    let mut requested = Vec::new();
    if let Some(devices) = config.get_mut("devices").and_then(Value::as_array_mut) {
        for device in devices {
            match RequestedDevice::of_json(device, false) {
                Ok(device) => requested.push(device),
                Err(why) => assert!(!why.is_empty()),
            }
            strip(device);
            for key in OURS {
                assert!(device.get(key).is_none(), "{key} of {device}");
            }
            assert!(device.is_object() || shape.is_err(), "{device}");
        }
    }
    constraints(&requested, &vm_options);
}

/// Checks that the constraints give settings or reasons for a refusal.
fn constraints(requested: &[RequestedDevice], vm_options: &VmOptions) {
    let host = Host {
        devices: vec![None; requested.len()],
        by_bus_address: None,
        hidden: Vec::new(),
        iommu_bits: Some(39),
        cpu_bits: Some(46),
        accepts_any_p2pdma: false,
        version: None,
        exposures: Vec::new(),
        unsafe_interrupts: None,
    };
    match required_settings(requested, vm_options, &host) {
        Ok(settings) => assert!(settings.cliques.iter().all(|at| *at < requested.len())),
        Err(limits) => assert!(!limits.is_empty()),
    }
}
