//! Configuration spaces with the capabilities that such devices have.

use super::Function;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    HostBridge,
    RootPort,
    Upstream,
    Downstream,
    Accelerator,
    Drive,
    NetworkCard,
    VirtualFunction,
}

impl Kind {
    /// Vendor and device, class, and driver.
    pub(super) fn identity(self) -> ((u16, u16), u32, &'static str) {
        match self {
            Self::HostBridge => ((0x8086, 0x09a2), 0x06_0000, ""),
            Self::RootPort => ((0x8086, 0x352a), 0x06_0400, "pcieport"),
            Self::Upstream | Self::Downstream => ((0x1000, 0xc030), 0x06_0400, "pcieport"),
            Self::Accelerator => ((0x10de, 0x2330), 0x03_0200, "vfio-pci"),
            Self::Drive => ((0x144d, 0xa80a), 0x01_0802, "nvme"),
            Self::NetworkCard => ((0x15b3, 0x1021), 0x02_0700, "mlx5_core"),
            Self::VirtualFunction => ((0x15b3, 0x101e), 0x02_0700, "vfio-pci"),
        }
    }

    /// The number in the PCI Express capability; `None` for what is not PCI Express.
    fn port_type(self) -> Option<u16> {
        match self {
            Self::HostBridge => None,
            Self::RootPort => Some(4),
            Self::Upstream => Some(5),
            Self::Downstream => Some(6),
            _ => Some(0),
        }
    }

    pub(super) fn is_bridge(self) -> bool {
        matches!(self, Self::RootPort | Self::Upstream | Self::Downstream)
    }

    fn has_acs(self) -> bool {
        matches!(self, Self::RootPort | Self::Downstream | Self::NetworkCard)
    }
}

struct Space(Vec<u8>);

impl Space {
    fn u8(&mut self, at: usize, value: u8) {
        self.0[at] = value;
    }

    fn u16(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

/// The bytes of the file `config`.
pub(super) fn bytes(function: &Function) -> Vec<u8> {
    let kind = function.kind;
    let Some(port_type) = kind.port_type() else {
        let mut space = Space(vec![0; 256]);
        header(&mut space, function);
        return space.0;
    };
    let mut space = Space(vec![0; 4096]);
    header(&mut space, function);
    // Power management, MSI, MSI-X, PCI Express.
    space.u8(0x34, 0x40);
    space.u16(0x40, 0x5001);
    space.u16(0x42, 0x0003);
    space.u16(0x50, 0x7005);
    space.u16(0x52, 0x0080);
    space.u16(0x70, 0x8011);
    space.u16(0x72, 0x003f);
    space.u16(0x80, 0x0010);
    space.u16(0x82, port_type << 4 | 2);
    space.u32(0x84, 0x1000_8fe2);
    space.u32(0x8c, 0x0047_5105);
    space.u16(0x92, 0x1105);
    space.u32(
        0xa4,
        if kind.is_bridge() {
            0x0007_1bb7
        } else {
            0x0007_0b9f
        },
    );
    extended(&mut space, kind);
    space.0
}

fn header(space: &mut Space, function: &Function) {
    let (vendor, device) = match function.kind {
        Kind::VirtualFunction => (0xffff, 0xffff),
        _ => function.ids,
    };
    space.u16(0x00, vendor);
    space.u16(0x02, device);
    space.u16(0x04, 0x0546);
    space.u16(
        0x06,
        if function.kind == Kind::HostBridge {
            0
        } else {
            0x0010
        },
    );
    space.u32(0x08, function.class << 8);
    if function.kind.is_bridge() {
        let (primary, secondary) = function.buses;
        space.u8(0x0e, 0x01);
        space.u32(0x18, u32::from_le_bytes([primary, secondary, secondary, 0]));
        space.u32(0x20, 0xf7f0_f000);
        space.u32(0x24, 0x0001_fff1);
    } else {
        space.u8(
            0x0e,
            if function.name.ends_with(".0") {
                0x80
            } else {
                0
            },
        );
        space.u16(0x2c, vendor);
        space.u16(0x2e, 0x0001);
        if function.kind != Kind::VirtualFunction {
            space.u32(0x10, 0x0000_000c);
            space.u32(0x14, u32::try_from(function.first_bar >> 32).unwrap_or(0));
        }
    }
}

/// Identifier, length in bytes, and words at offsets.
type Capability = (u16, usize, Vec<(usize, u32)>);

/// The extended capabilities: each a number, its length and what is in it beyond zeros.
fn extended(space: &mut Space, kind: Kind) {
    // Error reporting, serial number, latency tolerance, secondary PCI Express, power states of the link.
    let mut list: Vec<Capability> = vec![
        (0x0001, 0x48, vec![(0x08, 0x0046_2030), (0x14, 0x0000_2000)]),
        (0x0003, 0x10, vec![(0x04, 0x1234_5678)]),
    ];
    if kind.has_acs() {
        list.push((0x000d, 0x10, vec![(0x04, 0x001d_005f)]));
    }
    match kind {
        Kind::Accelerator | Kind::Drive => {
            list.push((0x000e, 0x10, vec![]));
            list.push((0x000f, 0x10, vec![(0x04, 0x8000_0020)]));
        }
        Kind::NetworkCard => {
            list.push((0x000e, 0x10, vec![]));
            // 16 virtual functions from 0x80 on, one after the other.
            list.push((
                0x0010,
                0x40,
                vec![
                    (0x08, 0x0000_0019),
                    (0x0c, 0x0010_0010),
                    (0x10, 0x0000_0010),
                    (0x14, 0x0001_0080),
                    (0x18, 0x101e_0000),
                ],
            ));
        }
        _ => {}
    }
    list.push((0x0018, 0x10, vec![]));
    list.push((0x0019, 0x30, vec![]));
    list.push((0x001e, 0x10, vec![(0x04, 0x0028_281f)]));
    let mut at = 0x100;
    for (index, (id, length, words)) in list.iter().enumerate() {
        let next = if index + 1 < list.len() {
            at + length
        } else {
            0
        };
        let pointer = u32::try_from(next).unwrap_or(0) << 20;
        space.u32(at, pointer | 0x1_0000 | u32::from(*id));
        for (offset, word) in words {
            space.u32(at + offset, *word);
        }
        at += length;
    }
}
