//! A virtual port, under arbitrary writes of the guest.

use guest_topology::{PortKind, VirtualPort};
use iommu_group::{Address, Link};

use super::check::check_read;
use super::data;
use crate::bytes::Bytes;

/// Registers that a guest cannot change: identity, class, and the capabilities with their types.
const CONSTANT: [(u16, usize); 7] = [
    (0x00, 4),
    (0x08, 4),
    (0x0e, 1),
    (0x34, 1),
    (0x40, 8),
    (0x80, 4),
    (0x88, 8),
];
/// Registers whose writes have effects.
const REGISTERS: [u16; 10] = [0x04, 0x18, 0x19, 0x1a, 0x20, 0x22, 0x24, 0x26, 0x28, 0x2c];
/// Unit of bridge windows in bytes.
const UNIT: u64 = 1 << 20;

/// Creates a port of an arbitrary kind, then makes accesses. Checks that its identity is constant, that reads are
/// consistent, and that windows consist of whole units and are open only while memory decode is on.
pub(crate) fn port(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let kind = bytes.pick(&[PortKind::Root, PortKind::Upstream, PortKind::Downstream]);
    let link = Link::at_most(bytes.next(), bytes.next());
    let mut port = VirtualPort::new(kind, bytes.next(), link);
    let constant = |port: &VirtualPort| {
        CONSTANT.map(|(at, count)| {
            let mut data = vec![0; count];
            port.config_read(at, &mut data);
            data
        })
    };
    let before = constant(&port);
    while !bytes.is_empty() {
        let offset = match bytes.next() {
            byte @ 0..0xc0 => REGISTERS[usize::from(byte) % REGISTERS.len()],
            _ => u16::from_le_bytes(bytes.array()) & 0xfff,
        };
        let data = data(&mut bytes);
        port.config_write(offset, &data);
        check_read(offset, data.len(), |at, data| port.config_read(at, data));
        assert_eq!(constant(&port), before, "{offset:#x} {data:x?}");
        let mut command = [0];
        port.config_read(4, &mut command);
        let open: Vec<_> = port.windows().collect();
        assert!(
            command[0] & 2 != 0 || open.is_empty(),
            "open without decode"
        );
        for window in &open {
            assert!(window.start().value().is_multiple_of(UNIT), "{window}");
            assert!(window.len_bytes().is_multiple_of(UNIT), "{window}");
            assert!(port.last_windows().any(|last| last == *window), "{window}");
        }
        let mut numbers = [0; 3];
        port.config_read(0x18, &mut numbers);
        let buses = port.buses();
        assert_eq!(numbers, [buses.primary, buses.secondary, buses.subordinate]);
    }
}
