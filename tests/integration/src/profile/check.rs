//! Checks that a profile describes a machine that can be built.

use std::collections::BTreeMap;

use super::{Profile, ROOT_BUS};

/// Why a profile does not describe a machine that can be built.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Invalid TOML, or an unknown key.
    #[error("profile: {0}")]
    Syntax(#[from] toml::de::Error),
    /// Two parts have the same name.
    #[error("profile: {first} and {second} are both called {id:?}")]
    Duplicate {
        /// The name.
        id: String,
        /// Kind of the part that came first.
        first: &'static str,
        /// Kind of the part that came second.
        second: &'static str,
    },
    /// A name would break QEMU's option syntax.
    #[error("profile: {kind} {id:?}: only letters, digits, - and _ may be in a name")]
    BadName {
        /// Kind of the part.
        kind: &'static str,
        /// The name.
        id: String,
    },
    /// A part sits on a bus that does not exist.
    #[error(
        "profile: {kind} {id:?} sits on bus {bus:?}, which nothing provides (there are: {known})"
    )]
    UnknownBus {
        /// Kind of the part.
        kind: &'static str,
        /// Its name.
        id: String,
        /// The bus it names.
        bus: String,
        /// Buses that exist.
        known: String,
    },
    /// Switches or bridges form a cycle.
    #[error("profile: {kind} {id:?} sits below itself")]
    Circle {
        /// Kind of the part.
        kind: &'static str,
        /// Its name.
        id: String,
    },
    /// A device names a drive that does not exist.
    #[error("profile: device {device:?} uses drive {drive:?}, which the profile does not have")]
    UnknownDrive {
        /// The device.
        device: String,
        /// The drive it names.
        drive: String,
    },
    /// Two devices name the same drive.
    #[error("profile: drive {drive:?} is used by {first:?} and by {second:?}")]
    SharedDrive {
        /// The drive.
        drive: String,
        /// One device.
        first: String,
        /// The other device.
        second: String,
    },
    /// A property would break QEMU's option syntax.
    #[error("profile: device {device:?}: {text:?} cannot be part of a QEMU option")]
    BadProperty {
        /// The device.
        device: String,
        /// The invalid text.
        text: String,
    },
    /// VT-d does not support the IOMMU's address width.
    #[error("profile: the IOMMU's address width is {0} bits; QEMU has 39 and 48")]
    BadWidth(u8),
    /// No processor has physical addresses of this width.
    #[error("profile: {0} bits of physical address; 32 to 52 are possible")]
    BadAddressBits(u8),
    /// The machine has too little memory or no processors.
    #[error("profile: a machine with {cpus} processors and {memory_mib} MiB of memory cannot boot")]
    TooSmall {
        /// Number of processors in the profile.
        cpus: u32,
        /// Memory in the profile, in MiB.
        memory_mib: u32,
    },
}

/// Minimum memory for the lab host's kernel and initramfs, in MiB.
const MIN_MEMORY_MIB: u32 = 512;

impl Profile {
    /// Checks what the types cannot: that names are valid, and that every part sits on a bus that exists.
    ///
    /// # Errors
    /// The first error found, with the name of the part.
    pub fn check(&self) -> Result<(), ProfileError> {
        let machine = &self.machine;
        if machine.cpus == 0 || machine.memory_mib < MIN_MEMORY_MIB {
            return Err(ProfileError::TooSmall {
                cpus: machine.cpus,
                memory_mib: machine.memory_mib,
            });
        }
        if let Some(bits) = machine.address_bits
            && !(32..=52).contains(&bits)
        {
            return Err(ProfileError::BadAddressBits(bits));
        }
        if let Some(iommu) = &self.iommu
            && !matches!(iommu.address_bits, 39 | 48)
        {
            return Err(ProfileError::BadWidth(iommu.address_bits));
        }
        self.check_names()?;
        self.check_buses()?;
        self.check_devices()
    }

    /// Every part with its name in QEMU.
    fn names(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.root_complexes
            .iter()
            .map(|part| ("root complex", part.id.as_str()))
            .chain(self.root_ports.iter().map(|p| ("root port", p.id.as_str())))
            .chain(self.switches.iter().flat_map(|switch| {
                std::iter::once(("switch", switch.id.as_str())).chain(
                    switch
                        .downstream
                        .iter()
                        .map(|id| ("downstream port", id.as_str())),
                )
            }))
            .chain(
                self.pci_bridges
                    .iter()
                    .map(|p| ("PCI bridge", p.id.as_str())),
            )
            .chain(self.drives.iter().map(|p| ("drive", p.id.as_str())))
            .chain(
                self.shared_memories
                    .iter()
                    .map(|p| ("shared memory", p.id.as_str())),
            )
            .chain(self.devices.iter().map(|p| ("device", p.id.as_str())))
    }

    fn check_names(&self) -> Result<(), ProfileError> {
        let mut seen = BTreeMap::new();
        for (kind, id) in self.names() {
            let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if id.is_empty() || !id.chars().all(good) {
                return Err(ProfileError::BadName {
                    kind,
                    id: id.to_owned(),
                });
            }
            if let Some(first) = seen.insert(id, kind) {
                return Err(ProfileError::Duplicate {
                    id: id.to_owned(),
                    first,
                    second: kind,
                });
            }
        }
        Ok(())
    }

    /// The parent of each bus; root buses have none.
    fn parents(&self) -> BTreeMap<&str, Option<&str>> {
        let mut parents = BTreeMap::from([(ROOT_BUS, None)]);
        parents.extend(self.root_complexes.iter().map(|p| (p.id.as_str(), None)));
        let ports = self.root_ports.iter();
        parents.extend(ports.map(|p| (p.id.as_str(), Some(p.bus.as_str()))));
        for switch in &self.switches {
            let below = switch.downstream.iter();
            parents.extend(below.map(|id| (id.as_str(), Some(switch.bus.as_str()))));
        }
        let bridges = self.pci_bridges.iter();
        parents.extend(bridges.map(|p| (p.id.as_str(), Some(p.bus.as_str()))));
        parents
    }

    fn check_buses(&self) -> Result<(), ProfileError> {
        let parents = self.parents();
        let roots: BTreeMap<_, _> = parents
            .iter()
            .filter(|(_, parent)| parent.is_none())
            .map(|(bus, parent)| (*bus, *parent))
            .collect();
        for port in &self.root_ports {
            known("root port", &port.id, &port.bus, &roots)?;
        }
        for switch in &self.switches {
            known("switch", &switch.id, &switch.bus, &parents)?;
        }
        for bridge in &self.pci_bridges {
            known("PCI bridge", &bridge.id, &bridge.bus, &parents)?;
        }
        for device in &self.devices {
            known("device", &device.id, &device.bus, &parents)?;
        }
        let switches = self.switches.iter().map(|p| ("switch", &p.id, &p.bus));
        let bridges = self
            .pci_bridges
            .iter()
            .map(|p| ("PCI bridge", &p.id, &p.bus));
        for (kind, id, bus) in switches.chain(bridges) {
            let mut above = Some(bus.as_str());
            // A path longer than the number of buses visits a bus twice.
            for _ in 0..=parents.len() {
                above = above.and_then(|bus| parents.get(bus).copied().flatten());
            }
            if above.is_some() {
                return Err(ProfileError::Circle {
                    kind,
                    id: id.clone(),
                });
            }
        }
        Ok(())
    }

    fn check_devices(&self) -> Result<(), ProfileError> {
        let mut users: BTreeMap<&str, &str> = BTreeMap::new();
        for device in &self.devices {
            let addr = device.addr.iter().cloned();
            let keys = device.properties.keys().cloned();
            let values = device.properties.values().map(ToString::to_string);
            let names = std::iter::once(device.model.clone())
                .chain(addr)
                .chain(keys);
            // A value may be empty: `romfile` with an empty value disables the option ROM.
            let texts = names
                .map(|text| (text, false))
                .chain(values.map(|text| (text, true)));
            for (text, may_be_empty) in texts {
                if text.is_empty() && !may_be_empty || text.contains([',', '\n']) {
                    return Err(ProfileError::BadProperty {
                        device: device.id.clone(),
                        text,
                    });
                }
            }
            let Some(drive) = &device.drive else { continue };
            if !self.drives.iter().any(|known| known.id == *drive) {
                return Err(ProfileError::UnknownDrive {
                    device: device.id.clone(),
                    drive: drive.clone(),
                });
            }
            if let Some(first) = users.insert(drive, &device.id) {
                return Err(ProfileError::SharedDrive {
                    drive: drive.clone(),
                    first: first.to_owned(),
                    second: device.id.clone(),
                });
            }
        }
        Ok(())
    }
}

fn known(
    kind: &'static str,
    id: &str,
    bus: &str,
    buses: &BTreeMap<&str, Option<&str>>,
) -> Result<(), ProfileError> {
    if buses.contains_key(bus) {
        return Ok(());
    }
    Err(ProfileError::UnknownBus {
        kind,
        id: id.to_owned(),
        bus: bus.to_owned(),
        known: buses.keys().copied().collect::<Vec<_>>().join(", "),
    })
}

#[cfg(test)]
mod tests {
    use crate::profile::Profile;

    fn refusal(text: &str) -> String {
        Profile::parse(text).unwrap_err().to_string()
    }

    const HEAD: &str = "description = 'x'\n[[root_port]]\nid = 'rp'\n";

    #[test]
    fn an_unknown_key_is_named() {
        assert!(refusal("description = 'x'\ncolour = 1").contains("colour"));
        assert!(refusal(&format!("{HEAD}acs = true")).contains("acs"));
    }

    #[test]
    fn a_name_used_twice_is_named_with_both_uses() {
        let text = format!("{HEAD}[[device]]\nid = 'rp'\nmodel = 'edu'\nbus = 'rp'");
        assert_eq!(
            refusal(&text),
            "profile: root port and device are both called \"rp\""
        );
    }

    #[test]
    fn an_unknown_bus_is_named_with_those_that_exist() {
        let text = format!("{HEAD}[[device]]\nid = 'e'\nmodel = 'edu'\nbus = 'rp2'");
        assert_eq!(
            refusal(&text),
            "profile: device \"e\" sits on bus \"rp2\", which nothing provides (there are: pcie.0, rp)"
        );
    }

    #[test]
    fn a_root_port_sits_on_a_root_bus_only() {
        let text = format!("{HEAD}[[root_port]]\nid = 'rp2'\nbus = 'rp'");
        assert!(refusal(&text).contains("root port \"rp2\" sits on bus \"rp\""));
    }

    #[test]
    fn switches_in_a_circle_are_refused() {
        let text = "description = 'x'
            [[switch]]\nid = 'a'\nbus = 'b0'\ndownstream = ['a0']
            [[switch]]\nid = 'b'\nbus = 'a0'\ndownstream = ['b0']";
        assert_eq!(refusal(text), "profile: switch \"a\" sits below itself");
    }

    #[test]
    fn drives_are_there_and_have_one_user() {
        let device = "[[device]]\nmodel = 'nvme'\nbus = 'rp'\ndrive = 'd'\n";
        let missing = format!("{HEAD}{device}id = 'n0'");
        assert!(refusal(&missing).contains("device \"n0\" uses drive \"d\""));
        let shared = format!(
            "{HEAD}[[drive]]\nid = 'd'\nsize_mib = 1\n{device}id = 'n0'\n{device}id = 'n1'"
        );
        assert!(refusal(&shared).contains("used by \"n0\" and by \"n1\""));
    }

    #[test]
    fn what_would_break_an_option_is_refused() {
        let text = format!("{HEAD}[[device]]\nid = 'e'\nmodel = 'edu,x=y'\nbus = 'rp'");
        assert!(refusal(&text).contains("\"edu,x=y\" cannot be part of a QEMU option"));
        let text = format!("{HEAD}[[device]]\nid = 'e,f'\nmodel = 'edu'\nbus = 'rp'");
        assert!(refusal(&text).contains("only letters, digits"));
    }

    #[test]
    fn an_iommu_of_odd_width_and_a_machine_of_no_size_are_refused() {
        assert!(refusal("description = 'x'\n[iommu]\naddress_bits = 40").contains("40 bits"));
        assert!(refusal("description = 'x'\n[machine]\ncpus = 0").contains("0 processors"));
    }
}
