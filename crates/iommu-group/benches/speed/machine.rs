//! Machines of any size, on disk.

use std::path::PathBuf;

use tempfile::TempDir;
use test_machine::{
    BarKind, Builder, Function, Group, Kind, MIB, Machine, Node, Virtual, downstream, host_bridge,
    root_port, upstream,
};

/// Root ports of a root complex. With all that is below them it has fewer than 256 buses.
const PORTS: u8 = 28;
/// Functions of a root complex: a host bridge, and 34 at and below each root port.
const SEGMENT: usize = 1 + PORTS as usize * 34;

/// A machine in a directory.
pub(crate) struct OnDisk {
    dir: TempDir,
    /// Number of functions.
    pub(crate) functions: usize,
}

impl OnDisk {
    fn new(machine: &Machine) -> Self {
        Self {
            dir: machine.tree(),
            functions: machine.functions(),
        }
    }

    /// Servers full of switches with `count` functions. Below each root port is a switch with an accelerator, a drive, a
    /// network card with virtual functions, and a device of eight functions.
    pub(crate) fn of_functions(count: usize) -> Self {
        let mut builder = Builder::new();
        for segment in 0..u32::try_from(count.div_ceil(SEGMENT)).expect("few segments") {
            let root = builder.root(segment, 0, 0);
            builder.add(root, host_bridge((0x8086, 0x09a2)));
            for device in 1..=PORTS {
                let port = builder.add(root, port().at(device, 0));
                let legs = add_switch(&mut builder, port, 4);
                builder.add(legs[0], accelerator());
                builder.add(legs[0], accelerator().at(0, 1).group(Group::OfDevice));
                builder.add(legs[1], drive());
                builder.add(legs[2], network_card());
                for number in 0..8 {
                    builder.add(legs[3], drive().at(0, number).group(Group::OfDevice));
                }
            }
        }
        Self::new(&builder.build().first(count))
    }

    /// A host with 64 devices that may be peers: eight switches with eight accelerators each.
    pub(crate) fn of_64_peers() -> Self {
        let mut builder = Builder::new();
        let root = builder.root(0, 0, 0);
        builder.add(root, host_bridge((0x8086, 0x09a2)));
        for device in 1..=8 {
            let port = builder.add(root, port().at(device, 0));
            for leg in add_switch(&mut builder, port, 8) {
                builder.add(leg, accelerator());
            }
        }
        Self::new(&builder.build())
    }

    /// The directory that stands for `/sys`.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("sys")
    }
}

/// The downstream ports of a switch below a port.
fn add_switch(builder: &mut Builder, port: Node, legs: u8) -> Vec<Node> {
    const SWITCH: (u16, u16) = (0x1000, 0xc030);
    let up = builder.add(port, upstream(SWITCH).link(5, 16));
    let leg = |device| downstream(SWITCH).at(device, 0).link(5, 16);
    (0..legs)
        .map(|device| builder.add(up, leg(device)))
        .collect()
}

fn port() -> Function {
    root_port((0x8086, 0x352a)).link(5, 16)
}

fn endpoint(ids: (u16, u16), class: u32) -> Function {
    Function::new(Kind::Endpoint, ids, class)
        .bar(0, BarKind::Prefetchable64, MIB)
        .link(5, 16)
        .ats(true)
        .ari()
        .flr()
}

fn accelerator() -> Function {
    endpoint((0x10de, 0x2330), 0x03_0200).driver("vfio-pci")
}

fn drive() -> Function {
    endpoint((0x144d, 0xa80a), 0x01_0802).driver("nvme")
}

fn network_card() -> Function {
    let virtual_functions = Virtual {
        count: 16,
        device: 0x101e,
        bar_size: MIB,
        driver: Some("vfio-pci"),
        first: 0x80,
        stride: 1,
    };
    endpoint((0x15b3, 0x1021), 0x02_0700)
        .acs(0x5f, 0x1d)
        .driver("mlx5_core")
        .virtual_functions(virtual_functions)
}
