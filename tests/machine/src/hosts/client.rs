//! Desktops and what hangs on their cables.

use super::parts::{chipset, nvme, qemu_port, switch};
use crate::{
    BarKind, Builder, Function, Group, Kind, MIB, Machine, downstream, host_bridge, root_port,
    upstream,
};

const DRIVE: (u16, u16) = (0x144d, 0xa80a);

fn graphics_card() -> (Function, Function) {
    let card = Function::new(Kind::LegacyEndpoint, (0x10de, 0x2684), 0x03_0000)
        .bar(0, BarKind::Memory32, 16 * MIB)
        .bar(1, BarKind::Prefetchable64, 256 * MIB)
        .link(4, 16)
        .degraded_to(1, 16)
        .driver("nouveau");
    let sound = Function::new(Kind::Endpoint, (0x10de, 0x22ba), 0x04_0300)
        .at(0, 1)
        .bar(0, BarKind::Memory32, 16 << 10)
        .link(4, 16)
        .driver("snd_hda_intel")
        .group(Group::OfDevice);
    (card.resets("bus"), sound)
}

/// A desktop with an Intel CPU: integrated devices without ACS share a group by slot.
pub(super) fn intel() -> Machine {
    let mut machine = Builder::new();
    let root = machine.root(0, 0, -1);
    machine.add(root, host_bridge((0x8086, 0xa700)));
    let port = machine.add(root, root_port((0x8086, 0xa70d)).at(1, 0).link(5, 16));
    let (card, sound) = graphics_card();
    machine.add(port, card);
    machine.add(port, sound);
    machine.add(
        root,
        Function::new(Kind::Integrated, (0x8086, 0xa780), 0x03_8000)
            .at(2, 0)
            .bar(0, BarKind::Memory64, 16 * MIB)
            .bar(2, BarKind::Prefetchable64, 256 * MIB)
            .driver("i915")
            .flr(),
    );
    let port = machine.add(root, root_port((0x8086, 0xa74d)).at(6, 0).link(4, 4));
    machine.add(port, nvme(DRIVE));
    for (device, number, id, class) in [
        (0x14, 0, 0x7a60, 0x0c_0330),
        (0x14, 2, 0x7a27, 0x05_0000),
        (0x1f, 0, 0x7a04, 0x06_0100),
        (0x1f, 3, 0x7a50, 0x04_0300),
        (0x1f, 4, 0x7a23, 0x0c_0500),
        (0x1f, 5, 0x7a24, 0x0c_8000),
    ] {
        machine.add(root, chipset(device, number, id, class));
    }
    let port = machine.add(root, root_port((0x8086, 0x7a38)).at(0x1c, 0).link(3, 1));
    machine.add(
        port,
        Function::new(Kind::Endpoint, (0x8086, 0x15f3), 0x02_0000)
            .bar(0, BarKind::Memory32, MIB)
            .link(2, 1)
            .flr()
            .driver("igc"),
    );
    machine.build()
}

/// A desktop with an AMD CPU whose chipset is a switch without ACS: all of it is one group.
pub(super) fn amd() -> Machine {
    let mut machine = Builder::new();
    let root = machine.root(0, 0, -1);
    machine.add(root, host_bridge((0x1022, 0x1480)));
    machine.add(
        root,
        Function::new(Kind::Conventional, (0x1022, 0x1481), 0x08_0600)
            .at(0, 2)
            .group(Group::None),
    );
    machine.add(root, host_bridge((0x1022, 0x1482)).at(1, 0));
    let port = machine.add(root, root_port((0x1022, 0x1483)).at(1, 1).link(4, 4));
    machine.add(port, nvme(DRIVE));
    let port = machine.add(root, root_port((0x1022, 0x1483)).at(1, 3).link(3, 4));
    for (number, id, class, driver) in [
        (0, 0x43d5, 0x0c_0330, "xhci_hcd"),
        (1, 0x43c8, 0x01_0601, "ahci"),
    ] {
        machine.add(
            port,
            Function::new(Kind::LegacyEndpoint, (0x1022, id), class)
                .at(0, number)
                .bar(0, BarKind::Memory64, 32 << 10)
                .link(3, 4)
                .driver(driver)
                .group(Group::OfDevice),
        );
    }
    let up = machine.add(
        port,
        upstream((0x1022, 0x43c6))
            .at(0, 2)
            .link(3, 4)
            .group(Group::OfDevice),
    );
    for (device, ids, class, driver) in [
        (0, (0x10ec, 0x8168), 0x02_0000, "r8169"),
        (1, (0x8086, 0x2723), 0x02_8000, "iwlwifi"),
        (4, (0x2646, 0x5013), 0x01_0802, "nvme"),
    ] {
        let down = machine.add(
            up,
            downstream((0x1022, 0x43c7))
                .no_acs()
                .at(device, 0)
                .link(2, 1)
                .group(Group::OfPort),
        );
        machine.add(
            down,
            Function::new(Kind::Endpoint, ids, class)
                .bar(0, BarKind::Memory64, 16 << 10)
                .link(2, 1)
                .driver(driver)
                .group(Group::OfPort),
        );
    }
    machine.add(root, host_bridge((0x1022, 0x1482)).at(3, 0));
    let port = machine.add(root, root_port((0x1022, 0x1483)).at(3, 1).link(4, 16));
    let (card, sound) = graphics_card();
    machine.add(port, card);
    machine.add(port, sound);
    machine.build().cpu("AuthenticAMD", 25).iommu("amd")
}

/// Six switches one below the other, as cables make it, with ACS in some of their ports; a drive at each.
pub(super) fn deep_bridges() -> Machine {
    let mut machine = Builder::new();
    let root = machine.root(0, 0, -1);
    machine.add(root, host_bridge((0x8086, 0x29c0)));
    let mut port = machine.add(root, qemu_port().at(7, 0).link(3, 4));
    // Below the first port without ACS nothing is isolated any more.
    let first_without = 3;
    for level in 0..6 {
        let shared = |group| {
            if level > first_without {
                Group::OfPort
            } else {
                group
            }
        };
        let up = if level > first_without {
            machine.add(
                port,
                upstream((0x8086, 0x15ef)).link(3, 4).group(Group::OfPort),
            )
        } else {
            switch(&mut machine, port, (0x8086, 0x15ef), (3, 4))
        };
        let leg = |device: u8| {
            let leg = downstream((0x8086, 0x15ef))
                .at(device, 0)
                .link(3, 4)
                .slot(u32::from(device) + 1);
            if level >= first_without {
                leg.no_acs().group(shared(Group::Own))
            } else {
                leg
            }
        };
        let down = machine.add(up, leg(0));
        let drive = nvme((0x1b36, 0x0010)).link(3, 4);
        machine.add(
            down,
            if level >= first_without {
                drive.group(Group::OfPort)
            } else {
                drive
            },
        );
        port = machine.add(up, leg(1));
    }
    machine.build()
}
