//! Parts that machines are built of.

use crate::{
    BarKind, Builder, Function, GIB, Group, Kind, MIB, Node, Root, downstream, host_bridge,
    root_port, upstream,
};

pub(super) fn gpu() -> Function {
    Function::new(Kind::Endpoint, (0x10de, 0x2330), 0x03_0200)
        .bar(0, BarKind::Prefetchable64, 16 * MIB)
        .bar(2, BarKind::Prefetchable64, 128 * GIB)
        .bar(4, BarKind::Prefetchable64, 32 * MIB)
        .link(5, 16)
        .flr()
        .driver("vfio-pci")
}

pub(super) fn rdma_nic() -> Function {
    Function::new(Kind::Endpoint, (0x15b3, 0x1021), 0x02_0700)
        .bar(0, BarKind::Prefetchable64, 32 * MIB)
        .link(5, 16)
        .ats(true)
        .ari()
        .flr()
        .driver("mlx5_core")
}

pub(super) fn nvme(ids: (u16, u16)) -> Function {
    Function::new(Kind::Endpoint, ids, 0x01_0802)
        .bar(0, BarKind::Memory64, 16 << 10)
        .link(4, 4)
        .flr()
        .driver("nvme")
}

/// A drive with a controller memory buffer in BAR 4.
pub(super) fn nvme_cmb() -> Function {
    nvme((0x1b36, 0x0010))
        .bar(4, BarKind::Prefetchable64, 16 * MIB)
        .link(1, 1)
        .driver("vfio-pci")
}

pub(super) fn conventional_nic() -> Function {
    Function::new(Kind::Conventional, (0x8086, 0x100e), 0x02_0000)
        .bar(0, BarKind::Memory32, 128 << 10)
        .driver("e1000")
        .group(Group::OfPort)
}

/// A part of the chipset: one function of a device without ACS.
pub(super) fn chipset(device: u8, number: u8, id: u16, class: u32) -> Function {
    Function::new(Kind::Conventional, (0x8086, id), class)
        .at(device, number)
        .group(Group::OfDevice)
}

/// QEMU's machine: a root bus with a host bridge on which ports of our choice go.
pub(super) fn q35(machine: &mut Builder) -> Root {
    let root = machine.root(0, 0, -1);
    machine.add(root, host_bridge((0x8086, 0x29c0)));
    root
}

pub(super) fn qemu_port() -> Function {
    root_port((0x1b36, 0x000c)).link(1, 1).slot(1)
}

/// A switch below `port`; gives its upstream port.
pub(super) fn switch(machine: &mut Builder, port: Node, ids: (u16, u16), link: (u16, u16)) -> Node {
    machine.add(port, upstream(ids).link(link.0, link.1))
}

/// A downstream port `device` of the switch, with ACS.
pub(super) fn leg(
    machine: &mut Builder,
    up: Node,
    ids: (u16, u16),
    device: u8,
    link: (u16, u16),
) -> Node {
    machine.add(
        up,
        downstream(ids)
            .at(device, 0)
            .link(link.0, link.1)
            .slot(u32::from(device) + 1),
    )
}
