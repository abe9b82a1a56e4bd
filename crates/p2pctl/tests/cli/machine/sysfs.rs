//! Writing of the tree.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::function::BarKind;
use super::{Cpu, Machine, Placed, PlacedBar, config};

impl Machine {
    /// Writes the machine below `dir`: its `sys` and `proc`.
    pub(crate) fn write(&self, dir: &Path) {
        let root = &dir.join("sys");
        let proc = dir.join("proc");
        let (vendor, family, iommu) = match self.cpu {
            Cpu::Intel => ("GenuineIntel", 6, "dmar0"),
            Cpu::Zen => ("AuthenticAMD", 25, "ivhd0"),
        };
        fs::create_dir_all(proc.join("sys/kernel")).unwrap();
        fs::write(proc.join("sys/kernel/osrelease"), "7.2.12-amd64\n").unwrap();
        fs::write(
            proc.join("cmdline"),
            "root=/dev/vda1 intel_iommu=on iommu=pt\n",
        )
        .unwrap();
        let cpuinfo = format!("processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\n");
        fs::write(proc.join("cpuinfo"), cpuinfo).unwrap();
        fs::create_dir_all(root.join("class/iommu").join(iommu)).unwrap();
        fs::create_dir_all(root.join("bus/pci/devices")).unwrap();
        let placed = self.place();
        for function in &placed {
            self.write_function(root, function);
        }
        for function in &placed {
            if let Some(physical) = &function.physical {
                let dir = root.join("devices").join(&function.dir);
                symlink(
                    format!("../{physical}"),
                    dir.join(function.name()).join("physfn"),
                )
                .unwrap();
            }
        }
    }

    fn write_function(&self, root: &Path, placed: &Placed) {
        let name = placed.name();
        let below = format!("devices/{}/{name}", placed.dir);
        let dir = root.join(&below);
        fs::create_dir_all(&dir).unwrap();
        let write = |file: &str, text: String| fs::write(dir.join(file), text).unwrap();
        let mut bytes = config::bytes(placed);
        if self.unprivileged {
            bytes.truncate(64);
        }
        fs::write(dir.join("config"), bytes).unwrap();
        let function = &placed.function;
        write("resource", resource(placed));
        // What configuration space tells as well is left out: ten thousand functions are many files.
        if placed.is_virtual {
            write("vendor", format!("0x{:04x}\n", function.ids.0));
            write("device", format!("0x{:04x}\n", function.ids.1));
            write("class", format!("0x{:06x}\n", function.class));
        }
        if placed.numa >= 0 {
            write("numa_node", format!("{}\n", placed.numa));
        }
        if !function.resets.is_empty() {
            write("reset_method", format!("{}\n", function.resets));
        }
        let up = "../".repeat(below.split('/').count());
        symlink(
            format!("../../../{below}"),
            root.join("bus/pci/devices").join(&name),
        )
        .unwrap();
        if let Some(driver) = function.driver {
            let drivers = root.join("bus/pci/drivers").join(driver);
            fs::create_dir_all(drivers).unwrap();
            symlink(format!("{up}bus/pci/drivers/{driver}"), dir.join("driver")).unwrap();
        }
        if let Some(group) = placed.group {
            let members = root.join(format!("kernel/iommu_groups/{group}/devices"));
            fs::create_dir_all(&members).unwrap();
            symlink(format!("../../../../{below}"), members.join(&name)).unwrap();
            symlink(
                format!("{up}kernel/iommu_groups/{group}"),
                dir.join("iommu_group"),
            )
            .unwrap();
        }
        if function.slot.is_some() {
            let services = root.join("bus/pci_express/drivers/pciehp");
            fs::create_dir_all(&services).unwrap();
            fs::write(services.join(format!("{name}:pcie004")), "").unwrap();
        }
    }
}

/// The file `resource`: lines of start, end and flags.
fn resource(placed: &Placed) -> String {
    let lines = if placed.secondary.is_some() { 17 } else { 13 };
    let mut all = vec![(0, 0, 0); lines];
    let flags = |kind: BarKind| match kind {
        BarKind::Memory32 => 0x0004_0200_u64,
        BarKind::Memory64 => 0x0014_0204,
        BarKind::Prefetchable64 => 0x0014_220c,
    };
    for PlacedBar {
        index,
        kind,
        address,
        size,
    } in &placed.bars
    {
        all[usize::from(*index)] = (*address, address + size - 1, flags(*kind));
    }
    if let (Some(start), Some(virtual_functions)) =
        (placed.virtual_bars, placed.function.virtual_functions)
    {
        let size = virtual_functions.bar_size * u64::from(virtual_functions.count);
        all[7] = (start, start + size - 1, flags(BarKind::Prefetchable64));
    }
    if let Some((start, end)) = placed.window {
        all[14] = (start, end - 1, 0x0000_0200);
    }
    if let Some((start, end)) = placed.prefetch_window {
        all[15] = (start, end - 1, 0x0010_2201);
    }
    all.iter()
        .map(|(start, end, flags)| format!("0x{start:016x} 0x{end:016x} 0x{flags:016x}\n"))
        .collect()
}
