//! Writing of a machine: for each function the files and links that sysfs has and that somebody here reads.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::Function;
use super::config::{self, Kind};

pub(super) fn write(root: &Path, functions: &[Function]) -> io::Result<()> {
    let list = root.join("bus/pci/devices");
    fs::create_dir_all(&list)?;
    fs::create_dir_all(root.join("bus/pci/slots"))?;
    fs::create_dir_all(root.join("class/iommu/dmar0"))?;
    let drivers: BTreeSet<&str> = functions.iter().map(|function| function.driver).collect();
    for driver in drivers.into_iter().filter(|driver| !driver.is_empty()) {
        fs::create_dir_all(root.join("bus/pci/drivers").join(driver))?;
    }
    let groups: BTreeSet<usize> = functions.iter().map(|function| function.group).collect();
    for group in groups {
        fs::create_dir_all(root.join(format!("kernel/iommu_groups/{group}/devices")))?;
    }
    for function in functions {
        write_function(root, function)?;
        symlink(
            format!("../../../devices/{}", function.dir),
            list.join(&function.name),
        )?;
    }
    Ok(())
}

fn write_function(root: &Path, function: &Function) -> io::Result<()> {
    let dir = root.join("devices").join(&function.dir);
    fs::create_dir_all(&dir)?;
    let (vendor, device) = function.ids;
    for (file, text) in [
        ("vendor", format!("0x{vendor:04x}\n")),
        ("device", format!("0x{device:04x}\n")),
        ("subsystem_vendor", format!("0x{vendor:04x}\n")),
        ("subsystem_device", "0x0001\n".to_owned()),
        ("revision", "0x01\n".to_owned()),
        ("class", format!("0x{:06x}\n", function.class)),
        ("irq", "16\n".to_owned()),
        ("numa_node", "0\n".to_owned()),
        ("resource", resource(function)),
        ("modalias", format!("pci:v{vendor:08X}d{device:08X}\n")),
    ] {
        fs::write(dir.join(file), text)?;
    }
    fs::write(dir.join("config"), config::bytes(function))?;
    if function.kind != Kind::HostBridge {
        fs::write(dir.join("reset_method"), "flr bus\n")?;
    }
    let up = "../".repeat(function.dir.split('/').count() + 1);
    let group = function.group;
    symlink(
        format!("{up}kernel/iommu_groups/{group}"),
        dir.join("iommu_group"),
    )?;
    if !function.driver.is_empty() {
        let driver = function.driver;
        symlink(format!("{up}bus/pci/drivers/{driver}"), dir.join("driver"))?;
    }
    if let Some(physical) = &function.physical {
        symlink(format!("../{physical}"), dir.join("physfn"))?;
    }
    Ok(())
}

/// The lines of `resource`: six BARs, the ROM, six BARs of virtual functions, and the windows of a bridge.
fn resource(function: &Function) -> String {
    let is_bridge = function.kind.is_bridge();
    (0..if is_bridge { 17 } else { 13 })
        .map(|line| {
            let (start, end, flags) = match (line, is_bridge) {
                (0, false) => (
                    function.first_bar,
                    function.first_bar + 0xffff,
                    0x0014_220c_u64,
                ),
                (14, true) => (0xf000_0000, 0xf7ff_ffff, 0x200),
                _ => (0, 0, 0),
            };
            format!("0x{start:016x} 0x{end:016x} 0x{flags:016x}\n")
        })
        .collect()
}
