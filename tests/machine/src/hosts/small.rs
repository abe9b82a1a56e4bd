//! Small machines, each for one thing, and one that is large for no reason.

use super::parts::{conventional_nic, leg, nvme_cmb, q35, qemu_port, switch};
use crate::{BarKind, Builder, Function, Group, Kind, Machine, downstream};

const UP: (u16, u16) = (0x104c, 0x8232);
const DOWN: (u16, u16) = (0x104c, 0x8233);

/// A switch whose downstream ports have no ACS: Linux puts the drives into two groups, the switch does not keep
/// them apart. Beside it a network card at a root port of its own.
pub(super) fn switch_without_acs() -> Machine {
    let mut machine = Builder::new();
    let root = q35(&mut machine);
    let port = machine.add(root, qemu_port().at(4, 0));
    let up = switch(&mut machine, port, UP, (1, 1));
    for device in 0..2 {
        let down = machine.add(up, downstream(DOWN).no_acs().at(device, 0).link(1, 1));
        let drive = nvme_cmb().group(Group::OfPort);
        machine.add(
            down,
            if device == 0 {
                drive
            } else {
                drive.driver("nvme")
            },
        );
    }
    let port = machine.add(root, qemu_port().at(4, 1));
    machine.add(
        port,
        Function::new(Kind::Endpoint, (0x8086, 0x10c9), 0x02_0000)
            .bar(0, BarKind::Memory32, 128 << 10)
            .link(1, 4)
            .flr()
            .driver("igb"),
    );
    machine.build()
}

/// A switch with ACS in its downstream ports and four drives: every function in a group of its own.
pub(super) fn switch_four_nvme() -> Machine {
    let mut machine = Builder::new();
    let root = q35(&mut machine);
    let port = machine.add(root, qemu_port().at(4, 0));
    let up = switch(&mut machine, port, UP, (1, 1));
    for device in 0..4 {
        let down = leg(&mut machine, up, DOWN, device, (1, 1));
        machine.add(down, nvme_cmb());
    }
    machine.build()
}

/// The same switch after two of its drives were joined: one group, redirect off between them.
pub(super) fn switch_joined() -> Machine {
    let mut machine = Builder::new();
    let root = q35(&mut machine);
    let port = machine.add(root, qemu_port().at(4, 0));
    let up = switch(&mut machine, port, UP, (1, 1));
    for device in 0..4 {
        let joined = device < 2;
        let leg = downstream(DOWN).at(device, 0).link(1, 1);
        let down = machine.add(
            up,
            if joined {
                leg.acs(0x5f, 0x11).group(Group::OfPort)
            } else {
                leg
            },
        );
        let group = if joined { Group::OfPort } else { Group::Own };
        machine.add(down, nvme_cmb().group(group));
    }
    machine.build()
}

/// Conventional network cards behind a PCIe-to-PCI bridge, two of them behind a second bridge.
pub(super) fn pcie_to_pci_bridge() -> Machine {
    let mut machine = Builder::new();
    let root = q35(&mut machine);
    let port = machine.add(root, qemu_port().at(4, 0));
    let bridge = machine.add(
        port,
        Function::new(Kind::PcieToPci, (0x1b36, 0x000e), 0x06_0400).link(1, 1),
    );
    machine.add(bridge, conventional_nic().at(1, 0));
    machine.add(bridge, conventional_nic().at(2, 0));
    let second = machine.add(
        bridge,
        Function::new(Kind::ConventionalBridge, (0x1b36, 0x0001), 0x06_0400)
            .at(3, 0)
            .group(Group::OfPort),
    );
    machine.add(second, conventional_nic().at(1, 0));
    let port = machine.add(root, qemu_port().at(5, 0));
    machine.add(port, nvme_cmb());
    machine.build()
}

/// The machine with the switch without ACS, as somebody without root sees it.
pub(super) fn unprivileged() -> Machine {
    switch_without_acs().unprivileged()
}

pub(super) fn many(functions: usize) -> Machine {
    let mut machine = Builder::new();
    let mut left = functions;
    let mut bus = 0;
    // 5 ports, 4 switches of 1 + 31 ports, 31 endpoints each: 250 buses in use per domain.
    for domain in 0.. {
        if left == 0 {
            break;
        }
        let root = machine.root(domain, bus, 0);
        bus = 0;
        for device in 1..=7 {
            if left == 0 {
                break;
            }
            let port = machine.add(root, qemu_port().at(device, 0));
            left -= 1;
            if left == 0 {
                break;
            }
            let up = switch(&mut machine, port, UP, (3, 16));
            left -= 1;
            for device in 0..32 {
                if left < 2 {
                    break;
                }
                let down = leg(&mut machine, up, DOWN, device, (3, 4));
                machine.add(down, nvme_cmb());
                left -= 2;
            }
            if left == 1 {
                machine.add(root, qemu_port().at(31, 0));
                left = 0;
            }
        }
    }
    machine.build()
}
