//! Random machines, each determined by its seed.

use fastrand::Rng;
use iommu_group::AcsBits;
use lab::{
    Device, Iommu, PciBridge, PortAcs, Profile, Property, ROOT_BUS, RootComplex, RootPort,
    STANDARD_ACS, Switch,
};

/// Most switches in one machine: buses and boot time are limited.
const MOST_SWITCHES: usize = 5;
/// Most devices in one machine: with many more, the firmware's own walk over emulated buses takes minutes.
const MOST_DEVICES: usize = 24;
/// How many switches may hang below each other.
const MOST_LEVELS: u32 = 3;
/// First slot of the root bus that QEMU's chipset leaves to us, and one after the last.
const SLOTS: std::ops::Range<u8> = 4..0x1a;

/// The machine of a seed.
pub(crate) fn machine(seed: u64) -> Profile {
    let mut builder = Builder {
        rng: Rng::with_seed(seed),
        profile: Profile {
            description: format!("random machine {seed}"),
            machine: Default::default(),
            iommu: Some(Iommu::default()),
            root_complexes: Vec::new(),
            root_ports: Vec::new(),
            switches: Vec::new(),
            pci_bridges: Vec::new(),
            drives: Vec::new(),
            shared_memories: Vec::new(),
            devices: Vec::new(),
        },
        names: 0,
    };
    builder.roots();
    builder.command_line();
    builder.profile
}

struct Builder {
    rng: Rng,
    profile: Profile,
    names: u32,
}

impl Builder {
    fn name(&mut self, kind: &str) -> String {
        self.names += 1;
        format!("{kind}{}", self.names)
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.u32(0..100) < percent
    }

    /// ACS capability bits of a port: none, what the market has, egress control as well, or any.
    fn acs(&mut self) -> AcsBits {
        match self.rng.u32(0..100) {
            0..30 => AcsBits::default(),
            30..65 => STANDARD_ACS,
            65..80 => STANDARD_ACS | AcsBits::EC,
            _ => AcsBits::from_bits_retain(self.rng.u16(..) & 0x7f),
        }
    }

    fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.rng.usize(0..choices.len())]
    }

    fn roots(&mut self) {
        self.root_bus(ROOT_BUS, SLOTS);
        let further = if self.chance(40) {
            self.rng.u8(1..=2)
        } else {
            0
        };
        for number in 0..further {
            let id = self.name("rc");
            self.profile.root_complexes.push(RootComplex {
                id: id.clone(),
                bus_number: 0x40 * (number + 1),
            });
            self.root_bus(&id, 0..8);
        }
    }

    /// Root ports, alone or sharing a slot, and integrated endpoints.
    fn root_bus(&mut self, bus: &str, mut slots: std::ops::Range<u8>) {
        for _ in 0..self.rng.u32(1..=3) {
            let Some(slot) = slots.next() else { return };
            let functions = if self.chance(35) {
                self.rng.u8(2..=4)
            } else {
                1
            };
            for function in 0..functions {
                let id = self.name("rp");
                let port = RootPort {
                    id: id.clone(),
                    bus: bus.to_owned(),
                    addr: Some(format!("{slot:x}.{function}")),
                    multifunction: functions > 1 && (function == 0 || self.chance(70)),
                    acs: self.acs(),
                };
                self.profile.root_ports.push(port);
                self.below(&id, 1);
            }
        }
        if bus == ROOT_BUS {
            for _ in 0..self.rng.u32(0..=2) {
                let Some(slot) = slots.next() else { return };
                self.endpoints(bus, slot);
            }
        }
    }

    /// Whatever hangs below a port.
    fn below(&mut self, bus: &str, level: u32) {
        let room = level <= MOST_LEVELS && self.profile.switches.len() < MOST_SWITCHES;
        match self.rng.u32(0..100) {
            0..10 => {}
            10..45 if room => self.switch(bus, level),
            45..60 => self.bridge(bus),
            _ => self.endpoints(bus, 0),
        }
    }

    fn switch(&mut self, bus: &str, level: u32) {
        let id = self.name("sw");
        let ports = self.rng.u32(1..=4);
        let downstream: Vec<String> = (0..ports).map(|_| self.name("dp")).collect();
        let acs = self.acs();
        // Now and then a port is unlike its neighbours.
        let others = downstream.iter().filter(|_| self.rng.u32(0..100) < 30);
        let others: Vec<String> = others.cloned().collect();
        let port_acs = others.into_iter().map(|port| (port, PortAcs(self.acs())));
        let port_acs = port_acs.collect();
        self.profile.switches.push(Switch {
            id,
            bus: bus.to_owned(),
            downstream: downstream.clone(),
            acs,
            port_acs,
        });
        for port in downstream {
            self.below(&port, level + 1);
        }
    }

    /// A PCIe-to-PCI bridge with conventional devices.
    fn bridge(&mut self, bus: &str) {
        let id = self.name("br");
        self.profile.pci_bridges.push(PciBridge {
            id: id.clone(),
            bus: bus.to_owned(),
        });
        for slot in 1..=self.rng.u8(1..=2) {
            let model = self.pick(&["edu", "pci-testdev", "lab-conventional-endpoint"]);
            self.device(model, &id, format!("{slot:x}.0"), false);
        }
    }

    /// The functions of one slot.
    fn endpoints(&mut self, bus: &str, slot: u8) {
        if bus != ROOT_BUS && self.chance(15) {
            return self.device("igb", bus, format!("{slot:x}.0"), false);
        }
        let functions = if self.chance(40) {
            self.rng.u8(2..=3)
        } else {
            1
        };
        let engines = bus != ROOT_BUS && self.chance(60);
        for function in 0..functions {
            let model = match engines {
                true => "lab-endpoint",
                false => self.pick(&["virtio-rng-pci", "e1000e", "nvme", "edu"]),
            };
            let shared = functions > 1 && (function == 0 || self.chance(60));
            self.device(model, bus, format!("{slot:x}.{function}"), shared);
        }
    }

    fn device(&mut self, model: &str, bus: &str, addr: String, multifunction: bool) {
        if self.profile.devices.len() >= MOST_DEVICES {
            return;
        }
        let id = self.name("ep");
        let mut properties: std::collections::BTreeMap<String, Property> = Default::default();
        if multifunction {
            properties.insert("multifunction".to_owned(), Property::Switch(true));
        }
        if matches!(model, "e1000e" | "igb") {
            // No boot ROM: nothing boots from the network.
            properties.insert("romfile".to_owned(), Property::Text(String::new()));
        }
        let several = multifunction || !addr.ends_with(".0");
        if model == "lab-endpoint" && several && self.chance(60) {
            // It carries requests between its functions, so it has request redirect; egress control is up to it
            // (PCIe r6.0 §6.12.1.2).
            let bits = if self.chance(50) { 0x4c } else { 0x6c };
            properties.insert("acs-caps".to_owned(), Property::Number(bits));
            properties.insert("internal-p2p".to_owned(), Property::Switch(true));
        }
        if model == "nvme" {
            properties.insert("serial".to_owned(), Property::Text(id.clone()));
        }
        self.profile.devices.push(Device {
            id,
            model: model.to_owned(),
            bus: bus.to_owned(),
            addr: Some(addr),
            drive: None,
            properties,
        });
    }

    /// Arguments that change what Linux does with ACS at boot.
    fn command_line(&mut self) {
        let mut options = Vec::new();
        if self.chance(35) {
            let devices = self.device_specs();
            options.push(format!("disable_acs_redir={}", devices.join(";")));
        }
        if self.chance(35) {
            let mut entries = Vec::new();
            for device in self.device_specs() {
                entries.push(format!("{}@{device}", self.acs_flags()));
            }
            options.push(format!("config_acs={}", entries.join(";")));
        }
        if self.chance(10) {
            options.push("noats".to_owned());
        }
        let words = &mut self.profile.machine.cmdline;
        // BARs of functions with drivers are aimed at as well, and looked at by the processor.
        words.push("iomem=relaxed".to_owned());
        if !options.is_empty() {
            words.push(format!("pci={}", options.join(",")));
        }
    }

    /// One or two devices as the kernel's parameters name them.
    fn device_specs(&mut self) -> Vec<String> {
        let ports = self.profile.root_ports.iter();
        let mut known: Vec<String> = ports
            .filter(|port| port.bus == ROOT_BUS)
            .filter_map(|port| port.addr.as_ref())
            .map(|addr| format!("00:{addr:0>4}"))
            .collect();
        known.push("pci:1b36:000c".to_owned());
        known.push("pci:104c:8233".to_owned());
        if let Some(first) = known.first().cloned() {
            known.push(format!("{first}/00.0"));
        }
        (0..self.rng.u32(1..=2))
            .map(|_| known[self.rng.usize(0..known.len())].clone())
            .collect()
    }

    /// Up to seven of 0, 1 and x; the last is bit 0.
    fn acs_flags(&mut self) -> String {
        (0..self.rng.u32(1..=7))
            .map(|_| self.pick(&["0", "1", "x"]))
            .collect()
    }
}
