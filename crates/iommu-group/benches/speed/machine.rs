//! Machines of any size, as a directory in the shape of sysfs.

mod config;
mod sysfs;

use std::path::PathBuf;

use config::Kind;
use tempfile::TempDir;

/// Root ports of a root complex; with all that is below them it stays within the 256 buses of a domain.
const PORTS: u8 = 28;

/// One PCI function.
pub(crate) struct Function {
    /// Its address, as sysfs has it.
    pub(crate) name: String,
    /// Its directory, below `devices`.
    pub(crate) dir: String,
    kind: Kind,
    ids: (u16, u16),
    class: u32,
    /// The numbers of its own bus and of the bus below it.
    buses: (u8, u8),
    first_bar: u64,
    group: usize,
    driver: &'static str,
    /// The directory name of the physical function of a virtual one.
    physical: Option<String>,
}

/// A machine in a directory of its own, which goes when it is dropped.
pub(crate) struct Machine {
    dir: TempDir,
    pub(crate) functions: Vec<Function>,
}

impl Machine {
    /// Servers full of switches, one domain after the other, until there are `count` functions: below each root port
    /// a switch with an accelerator, a drive, a network card with virtual functions, and a device of eight functions.
    pub(crate) fn of_functions(count: usize) -> Self {
        let mut builder = Builder::default();
        for domain in 0.. {
            let root = builder.root_complex(domain);
            for device in 1..=PORTS {
                if builder.functions.len() >= count {
                    builder.functions.truncate(count);
                    return builder.write();
                }
                let port = builder.port(&root, device, Kind::RootPort);
                let upstream = builder.upstream(&port);
                let leg = builder.port(&upstream, 0, Kind::Downstream);
                builder.device(&leg, 2, Kind::Accelerator);
                let leg = builder.port(&upstream, 1, Kind::Downstream);
                builder.device(&leg, 1, Kind::Drive);
                let leg = builder.port(&upstream, 2, Kind::Downstream);
                builder.network_card(&leg, 16);
                let leg = builder.port(&upstream, 3, Kind::Downstream);
                builder.device(&leg, 8, Kind::Drive);
            }
        }
        builder.write()
    }

    /// A host with 64 devices that may be peers: eight switches with eight accelerators each.
    pub(crate) fn of_64_peers() -> Self {
        let mut builder = Builder::default();
        let root = builder.root_complex(0);
        for device in 1..=8 {
            let port = builder.port(&root, device, Kind::RootPort);
            let upstream = builder.upstream(&port);
            for device in 0..8 {
                let leg = builder.port(&upstream, device, Kind::Downstream);
                builder.device(&leg, 1, Kind::Accelerator);
            }
        }
        builder.write()
    }

    /// The directory that stands for `/sys`.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("sys")
    }
}

/// A place that functions can be put in: a directory and the bus that it stands for.
struct Place {
    dir: String,
    domain: u32,
    bus: u8,
}

#[derive(Default)]
struct Builder {
    functions: Vec<Function>,
    next_bus: u8,
    groups: usize,
    next_bar: u64,
}

impl Builder {
    fn root_complex(&mut self, domain: u32) -> Place {
        self.next_bus = 1;
        self.next_bar = 0x1000_0000_0000;
        let root = Place {
            dir: format!("pci{domain:04x}:00"),
            domain,
            bus: 0,
        };
        self.groups += 1;
        self.add(&root, 0, Kind::HostBridge, 0);
        root
    }

    fn add(&mut self, place: &Place, devfn: u8, kind: Kind, secondary: u8) -> &mut Function {
        let name = format!(
            "{:04x}:{:02x}:{:02x}.{}",
            place.domain,
            place.bus,
            devfn >> 3,
            devfn & 7
        );
        let (ids, class, driver) = kind.identity();
        self.next_bar += 1 << 32;
        self.functions.push(Function {
            dir: format!("{}/{name}", place.dir),
            name,
            kind,
            ids,
            class,
            buses: (place.bus, secondary),
            first_bar: self.next_bar,
            group: self.groups,
            driver,
            physical: None,
        });
        self.functions.last_mut().expect("it was just added")
    }

    fn port(&mut self, place: &Place, device: u8, kind: Kind) -> Place {
        let bus = self.next_bus;
        self.next_bus += 1;
        self.groups += 1;
        let dir = self.add(place, device << 3, kind, bus).dir.clone();
        Place {
            dir,
            domain: place.domain,
            bus,
        }
    }

    fn upstream(&mut self, place: &Place) -> Place {
        self.port(place, 0, Kind::Upstream)
    }

    fn device(&mut self, place: &Place, functions: u8, kind: Kind) {
        self.groups += 1;
        for devfn in 0..functions {
            self.add(place, devfn, kind, 0);
        }
    }

    fn network_card(&mut self, place: &Place, virtual_functions: u8) {
        self.groups += 1;
        let physical = self.add(place, 0, Kind::NetworkCard, 0).name.clone();
        for index in 0..virtual_functions {
            self.groups += 1;
            self.add(place, 0x80 + index, Kind::VirtualFunction, 0)
                .physical = Some(physical.clone());
        }
    }

    fn write(self) -> Machine {
        let dir = tempfile::tempdir().expect("a directory for the machine");
        sysfs::write(&dir.path().join("sys"), &self.functions).expect("writing the machine");
        Machine {
            dir,
            functions: self.functions,
        }
    }
}
