//! Servers.

use super::parts::{chipset, gpu, leg, nvme, rdma_nic, switch};
use crate::{
    BarKind, Builder, Function, Group, Kind, MIB, Machine, Root, Virtual, host_bridge, root_port,
};

const SWITCH: (u16, u16) = (0x1000, 0xc030);
const XEON_PORT: (u16, u16) = (0x8086, 0x352a);
const DRIVE: (u16, u16) = (0x144d, 0xa80a);

/// What every stack of a Xeon has at its first device; its id is one of those that p2pdma trusts.
fn xeon_stack(machine: &mut Builder, bus: u8, numa: i32) -> Root {
    let root = machine.root(0, bus, numa);
    machine.add(
        root,
        Function::new(Kind::Conventional, (0x8086, 0x09a2), 0x08_8000).group(Group::OfDevice),
    );
    machine.add(
        root,
        Function::new(Kind::Conventional, (0x8086, 0x09a4), 0x08_8000)
            .at(0, 1)
            .group(Group::OfDevice),
    );
    root
}

/// Two sockets; per socket two PCIe switches, each with two GPUs, two RDMA NICs and a drive; a drive to boot from
/// and a BMC.
pub(super) fn gpu_server() -> Machine {
    let mut machine = Builder::new();
    let root = xeon_stack(&mut machine, 0x00, 0);
    let port = machine.add(root, root_port((0x8086, 0x1bb8)).at(0x1c, 0).link(3, 1));
    let bridge = machine.add(
        port,
        Function::new(Kind::PcieToPci, (0x1a03, 0x1150), 0x06_0400).link(1, 1),
    );
    machine.add(
        bridge,
        Function::new(Kind::Conventional, (0x1a03, 0x2000), 0x03_0000)
            .bar(0, BarKind::Memory32, 16 * MIB)
            .driver("ast")
            .group(Group::OfPort),
    );
    for (number, id, class) in [
        (0, 0x1b81, 0x06_0100),
        (4, 0x1bc9, 0x0c_0500),
        (5, 0x1bca, 0x0c_8000),
    ] {
        machine.add(root, chipset(0x1f, number, id, class));
    }
    for (socket, buses) in [(0, [0x15, 0x37]), (1, [0x97, 0xb7])] {
        for bus in buses {
            let root = xeon_stack(&mut machine, bus, socket);
            let port = machine.add(root, root_port(XEON_PORT).at(1, 0).link(5, 16));
            let up = switch(&mut machine, port, SWITCH, (5, 16));
            for device in 0..5 {
                let lanes = if device == 4 { 4 } else { 16 };
                let down = leg(&mut machine, up, SWITCH, device, (5, lanes));
                let endpoint = match device {
                    0 | 2 => gpu(),
                    1 | 3 => rdma_nic(),
                    _ => nvme(DRIVE).link(5, 4).driver("vfio-pci"),
                };
                machine.add(down, endpoint);
            }
        }
        let root = xeon_stack(&mut machine, if socket == 0 { 0x59 } else { 0xd7 }, socket);
        let port = machine.add(root, root_port(XEON_PORT).at(3, 0).link(4, 4));
        machine.add(port, nvme(DRIVE));
    }
    machine.build()
}

/// One socket whose CPU routes between root ports; four GPUs and two NICs, each at a root port, no switch.
pub(super) fn epyc() -> Machine {
    let mut machine = Builder::new();
    for (index, bus) in [0x00, 0x40, 0x80, 0xc0].into_iter().enumerate() {
        let root = machine.root(0, bus, i32::try_from(index).unwrap());
        machine.add(root, host_bridge((0x1022, 0x14a4)));
        machine.add(
            root,
            Function::new(Kind::Conventional, (0x1022, 0x149e), 0x08_0600)
                .at(0, 2)
                .group(Group::None),
        );
        machine.add(root, host_bridge((0x1022, 0x149f)).at(1, 0));
        let port = machine.add(root, root_port((0x1022, 0x14ab)).at(1, 1).link(5, 16));
        let card = Function::new(Kind::Endpoint, (0x1002, 0x74a1), 0x12_0000)
            .bar(0, BarKind::Prefetchable64, 256 << 30)
            .link(5, 16)
            .flr()
            .ats(true)
            .driver("vfio-pci");
        machine.add(port, card);
        if index % 2 == 0 {
            let port = machine.add(root, root_port((0x1022, 0x14ab)).at(1, 2).link(5, 16));
            machine.add(port, rdma_nic().degraded_to(4, 8));
        }
    }
    machine.build().cpu("AuthenticAMD", 25).iommu("amd")
}

/// A network card with 1000 virtual functions.
pub(super) fn sriov_1000() -> Machine {
    let mut machine = Builder::new();
    let root = xeon_stack(&mut machine, 0x00, 0);
    let port = machine.add(root, root_port(XEON_PORT).at(1, 0).link(5, 16));
    machine.add(
        port,
        rdma_nic().virtual_functions(Virtual {
            count: 1000,
            device: 0x101e,
            bar_size: MIB,
            driver: Some("vfio-pci"),
            first: 2,
            stride: 1,
        }),
    );
    let port = machine.add(root, root_port(XEON_PORT).at(3, 0).link(4, 4));
    machine.add(port, nvme(DRIVE));
    machine.build()
}

/// Drives behind a Volume Management Device, in a domain above `0xffff`.
pub(super) fn vmd() -> Machine {
    let mut machine = Builder::new();
    let root = xeon_stack(&mut machine, 0x00, 0);
    let vmd = machine.add(
        root,
        Function::new(Kind::Integrated, (0x8086, 0x28c0), 0x01_0400)
            .at(0x0e, 0)
            .bar(0, BarKind::Prefetchable64, 32 * MIB)
            .bar(2, BarKind::Memory32, 32 * MIB)
            .driver("vmd"),
    );
    let port = machine.add(root, root_port(XEON_PORT).at(5, 0).link(5, 16));
    machine.add(port, gpu());
    let behind = machine.root_behind(0x1_0000, 0, vmd);
    for device in [2, 3] {
        let port = machine.add(
            behind,
            root_port((0x8086, 0x347a))
                .at(device, 0)
                .link(4, 4)
                .group(Group::OfPort),
        );
        machine.add(port, nvme(DRIVE).group(Group::OfPort));
    }
    machine.build()
}
