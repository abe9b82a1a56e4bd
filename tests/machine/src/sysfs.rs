//! The machine as the tree that Linux shows in `/sys` and `/proc`.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::{Machine, Placed};

impl Machine {
    /// Writes `sys` and `proc` of the machine into `dir`.
    ///
    /// # Errors
    ///
    /// If a file cannot be written.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let (sys, proc) = (dir.join("sys"), dir.join("proc"));
        let host = self.host();
        fs::create_dir_all(proc.join("sys/kernel"))?;
        let release = host.kernel_release.unwrap_or_default();
        fs::write(proc.join("sys/kernel/osrelease"), format!("{release}\n"))?;
        let arguments = host.kernel_arguments.join(" ");
        fs::write(proc.join("cmdline"), format!("{arguments}\n"))?;
        if let Some(cpu) = host.cpu {
            let (vendor, family) = (cpu.vendor, cpu.family);
            let text = format!("processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\n");
            fs::write(proc.join("cpuinfo"), text)?;
        }
        match self.host["iommu"].as_str() {
            Some("intel") => fs::create_dir_all(sys.join("class/iommu/dmar0"))?,
            Some("amd") => fs::create_dir_all(sys.join("class/iommu/ivhd0"))?,
            _ => fs::create_dir_all(sys.join("class/iommu"))?,
        }
        fs::create_dir_all(sys.join("bus/pci/devices"))?;
        fs::create_dir_all(sys.join("bus/pci/slots"))?;
        self.functions
            .iter()
            .try_for_each(|placed| function(&sys, placed))
    }
}

fn function(sys: &Path, placed: &Placed) -> io::Result<()> {
    let description = &placed.function;
    let name = placed.sbdf.to_string();
    let below = format!("devices/{}/{name}", placed.dir);
    let dir = sys.join(&below);
    fs::create_dir_all(&dir)?;
    let write = |file: &str, text: String| fs::write(dir.join(file), format!("{text}\n"));
    fs::write(dir.join("config"), placed.config())?;
    fs::write(dir.join("resource"), resource(placed))?;
    write("vendor", format!("{:#06x}", description.ids.0))?;
    write("device", format!("{:#06x}", description.ids.1))?;
    write(
        "subsystem_vendor",
        format!("{:#06x}", description.subsystem.0),
    )?;
    write(
        "subsystem_device",
        format!("{:#06x}", description.subsystem.1),
    )?;
    write("class", format!("{:#08x}", description.class))?;
    write("irq", "0".to_owned())?;
    write("numa_node", placed.numa.to_string())?;
    if !description.resets.is_empty() {
        write("reset_method", description.resets.clone())?;
    }
    let up = "../".repeat(below.split('/').count());
    let listed = sys.join("bus/pci/devices").join(&name);
    symlink(format!("../../../{below}"), listed)?;
    if let Some(driver) = &description.driver {
        fs::create_dir_all(sys.join("bus/pci/drivers").join(driver))?;
        symlink(format!("{up}bus/pci/drivers/{driver}"), dir.join("driver"))?;
    }
    if let Some(group) = placed.group {
        let group = format!("kernel/iommu_groups/{group}");
        let members = sys.join(&group).join("devices");
        fs::create_dir_all(&members)?;
        symlink(format!("../../../../{below}"), members.join(&name))?;
        symlink(format!("{up}{group}"), dir.join("iommu_group"))?;
    }
    if description.native_hotplug {
        let services = sys.join("bus/pci_express/drivers/pciehp");
        fs::create_dir_all(&services)?;
        fs::write(services.join(format!("{name}:pcie004")), "")?;
    }
    if let Some(physical) = placed.physical {
        symlink(format!("../{physical}"), dir.join("physfn"))?;
    }
    Ok(())
}

/// The file `resource`: lines of first address, last address and flags.
fn resource(placed: &Placed) -> String {
    let lines = if placed.buses.is_some() { 17 } else { 13 };
    let found = placed.resources();
    let line = |number| {
        let mut found = found.iter();
        let line = found.find(|line| line.0 == number);
        let (_, start, end, flags) = line.copied().unwrap_or_default();
        format!("{start:#018x} {end:#018x} {flags:#018x}\n")
    };
    (0..lines).map(line).collect()
}
