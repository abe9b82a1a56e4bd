//! Translates a profile into QEMU arguments.

use std::path::Path;

use iommu_group::AcsBits;

use super::{Profile, STANDARD_ACS};

impl Profile {
    /// QEMU arguments for everything in the profile. Drives and shared memory are files in `files`.
    ///
    /// The profile must have passed [`Profile::check`].
    #[must_use]
    pub fn device_args(&self, files: &Path) -> Vec<String> {
        let mut args = Args::default();
        args.option("-smp", self.machine.cpus.to_string());
        args.option("-m", format!("{}M", self.machine.memory_mib));
        if let Some(iommu) = &self.iommu {
            let mut option = format!("intel-iommu,intremap=on,aw-bits={}", iommu.address_bits);
            if iommu.device_iotlb {
                option.push_str(",device-iotlb=on");
            }
            args.option("-device", option);
        }
        for memory in &self.shared_memories {
            let path = escape(&files.join(self.memory_file(&memory.id)));
            let (id, size) = (&memory.id, memory.size_mib);
            args.option(
                "-object",
                format!("memory-backend-file,id={id},size={size}M,share=on,mem-path={path}"),
            );
        }
        for drive in &self.drives {
            let path = escape(&files.join(self.drive_file(&drive.id)));
            let id = &drive.id;
            args.option(
                "-drive",
                format!("file={path},if=none,id={id},format=raw,cache=unsafe"),
            );
        }
        self.bus_args(&mut args);
        for device in &self.devices {
            let mut option = format!("{},id={},bus={}", device.model, device.id, device.bus);
            if let Some(addr) = &device.addr {
                option.push_str(&format!(",addr={addr}"));
            }
            if let Some(drive) = &device.drive {
                option.push_str(&format!(",drive={drive}"));
            }
            for (key, value) in &device.properties {
                option.push_str(&format!(",{key}={value}"));
            }
            args.option("-device", option);
        }
        args.words
    }

    /// File name of a drive's image.
    pub(crate) fn drive_file(&self, id: &str) -> String {
        format!("{id}.img")
    }

    /// File name of a shared memory.
    pub(crate) fn memory_file(&self, id: &str) -> String {
        format!("{id}.mem")
    }

    /// Adds the buses in an order in which QEMU finds the parent of each.
    fn bus_args(&self, args: &mut Args) {
        for part in &self.root_complexes {
            args.option(
                "-device",
                format!(
                    "pxb-pcie,id={},bus=pcie.0,bus_nr={}",
                    part.id, part.bus_number
                ),
            );
        }
        for port in &self.root_ports {
            let chassis = args.next_chassis();
            let model = match port.acs {
                acs if acs == AcsBits::default() || acs == STANDARD_ACS => "pcie-root-port",
                _ => "lab-root-port",
            };
            let mut option = format!("{model},id={},bus={},chassis={chassis}", port.id, port.bus);
            if let Some(addr) = &port.addr {
                option.push_str(&format!(",addr={addr}"));
            }
            if port.multifunction {
                option.push_str(",multifunction=on");
            }
            if port.acs == AcsBits::default() {
                option.push_str(",disable-acs=on");
            } else if model == "lab-root-port" {
                option.push_str(&format!(",acs-caps={:#x}", port.acs));
            }
            args.option("-device", option);
        }
        // A bus below a switch or a bridge comes after it; `check` ensures that this loop ends.
        let mut switches: Vec<_> = self.switches.iter().collect();
        let mut bridges: Vec<_> = self.pci_bridges.iter().collect();
        while !(switches.is_empty() && bridges.is_empty()) {
            let waiting: Vec<&str> = switches
                .iter()
                .flat_map(|switch| switch.downstream.iter().map(String::as_str))
                .chain(bridges.iter().map(|bridge| bridge.id.as_str()))
                .collect();
            let ready = |bus: &str| !waiting.contains(&bus);
            let before = switches.len() + bridges.len();
            switches.retain(|switch| {
                if ready(&switch.bus) {
                    args.switch(switch);
                }
                !ready(&switch.bus)
            });
            bridges.retain(|bridge| {
                if ready(&bridge.bus) {
                    args.option(
                        "-device",
                        format!("pcie-pci-bridge,id={},bus={}", bridge.id, bridge.bus),
                    );
                }
                !ready(&bridge.bus)
            });
            assert!(
                switches.len() + bridges.len() < before,
                "a checked profile has no circle"
            );
        }
    }
}

#[derive(Default)]
struct Args {
    words: Vec<String>,
    chassis: u8,
}

impl Args {
    fn option(&mut self, name: &str, value: String) {
        self.words.extend([name.to_owned(), value]);
    }

    /// QEMU distinguishes slots by chassis number, so every port gets its own.
    fn next_chassis(&mut self) -> u8 {
        self.chassis = self.chassis.saturating_add(1);
        self.chassis
    }

    fn switch(&mut self, switch: &super::Switch) {
        self.option(
            "-device",
            format!("x3130-upstream,id={},bus={}", switch.id, switch.bus),
        );
        for (slot, id) in switch.downstream.iter().enumerate() {
            let chassis = self.next_chassis();
            let place = format!(
                "id={id},bus={},addr={slot:x}.0,chassis={chassis}",
                switch.id
            );
            let acs = switch.acs_of(id);
            let port = match acs == AcsBits::default() {
                true => format!("xio3130-downstream,{place}"),
                // Egress control identifies ports by their numbers.
                false => format!("lab-downstream-port,{place},port={slot},acs-caps={acs:#x}"),
            };
            self.option("-device", port);
        }
    }
}

/// A comma in a value is written twice in QEMU's option syntax.
pub(crate) fn escape(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Vec<String> {
        let profile = Profile::parse(text).unwrap();
        let words = profile.device_args(Path::new("/lab,1"));
        let pairs = words.chunks(2).map(|pair| pair.join(" "));
        pairs.collect()
    }

    #[test]
    fn every_part_becomes_the_option_it_should() {
        let text = "description = 'x'
            [machine]
            memory_mib = 1024
            cpus = 1
            [iommu]
            address_bits = 39
            device_iotlb = true
            [[root_complex]]
            id = 'rc'
            bus_number = 128
            [[root_port]]
            id = 'rp'
            bus = 'rc'
            addr = '4.0'
            multifunction = true
            acs = 'none'
            [[switch]]
            id = 'sw'
            bus = 'rp'
            downstream = ['d0', 'd1']
            [[pci_bridge]]
            id = 'br'
            bus = 'd0'
            [[drive]]
            id = 'disk'
            size_mib = 8
            [[shared_memory]]
            id = 'mem'
            size_mib = 4
            [[device]]
            id = 'n'
            model = 'nvme'
            bus = 'd1'
            addr = '0.0'
            drive = 'disk'
            properties = { serial = 'n', cmb_size_mb = 16, 'use-intel-id' = false }";
        assert_eq!(
            args(text),
            [
                "-smp 1",
                "-m 1024M",
                "-device intel-iommu,intremap=on,aw-bits=39,device-iotlb=on",
                "-object memory-backend-file,id=mem,size=4M,share=on,mem-path=/lab,,1/mem.mem",
                "-drive file=/lab,,1/disk.img,if=none,id=disk,format=raw,cache=unsafe",
                "-device pxb-pcie,id=rc,bus=pcie.0,bus_nr=128",
                "-device pcie-root-port,id=rp,bus=rc,chassis=1,addr=4.0,multifunction=on,disable-acs=on",
                "-device x3130-upstream,id=sw,bus=rp",
                "-device xio3130-downstream,id=d0,bus=sw,addr=0.0,chassis=2",
                "-device xio3130-downstream,id=d1,bus=sw,addr=1.0,chassis=3",
                "-device pcie-pci-bridge,id=br,bus=d0",
                "-device nvme,id=n,bus=d1,addr=0.0,drive=disk,cmb_size_mb=16,serial=n,use-intel-id=off",
            ]
        );
    }

    #[test]
    fn a_switch_comes_after_the_one_it_hangs_below() {
        let text = "description = 'x'
            [[root_port]]
            id = 'rp'
            [[switch]]
            id = 'lower'
            bus = 'u0'
            downstream = ['l0']
            [[switch]]
            id = 'upper'
            bus = 'rp'
            downstream = ['u0']";
        let args = args(text);
        let place = |id: &str| args.iter().position(|arg| arg.contains(id)).unwrap();
        assert!(place("id=upper") < place("id=lower"));
    }

    #[test]
    fn the_profiles_of_the_project_are_good_and_survive_a_round_trip() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../resources/lab");
        let mut seen = 0;
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|ext| ext == "toml") {
                let text = std::fs::read_to_string(&path).unwrap();
                let profile = Profile::parse(&text).unwrap_or_else(|e| panic!("{path:?}: {e}"));
                let again = toml::to_string(&profile).unwrap();
                assert_eq!(Profile::parse(&again).unwrap(), profile, "{path:?}");
                seen += 1;
            }
        }
        assert!(seen >= 3, "only {seen} profiles found");
    }
}
