use super::*;

const LINK: Link = Link::at_most(3, 16);

fn port(kind: PortKind) -> VirtualPort {
    VirtualPort::new(kind, 5, LINK)
}

fn read32(port: &VirtualPort, offset: u16) -> u32 {
    let mut data = [0; 4];
    port.config_read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn range(start: u64, len_bytes: u64) -> AddressRange<Gpa> {
    AddressRange::new(Gpa::new(start), len_bytes).unwrap()
}

#[test]
fn kinds_are_told_apart_by_type_and_slot() {
    let flags = |kind| read32(&port(kind), 0x40) >> 16;
    assert_eq!(flags(PortKind::Root), 0x0142);
    assert_eq!(flags(PortKind::Upstream), 0x0052);
    assert_eq!(flags(PortKind::Downstream), 0x0162);
}

#[test]
fn capability_list_ends() {
    for kind in [PortKind::Root, PortKind::Upstream, PortKind::Downstream] {
        let port = port(kind);
        let mut ids = Vec::new();
        let mut next = read32(&port, 0x34) & 0xff;
        while next != 0 {
            let header = read32(&port, u16::try_from(next).unwrap());
            ids.push(header & 0xff);
            next = header >> 8 & 0xff;
        }
        assert_eq!(ids, [0x10, 0x01, 0x0d]);
    }
}

#[test]
fn there_is_no_extended_capability_and_so_no_acs() {
    let port = port(PortKind::Downstream);
    assert_eq!(read32(&port, 0x100), 0);
}

#[test]
fn only_the_bits_of_the_specification_are_written() {
    let mut port = port(PortKind::Downstream);
    for offset in (0..4096).step_by(4) {
        port.config_write(offset, &[0xff; 4]);
    }
    assert_eq!(read32(&port, 0x00), 0x8233_104c);
    assert_eq!(read32(&port, 0x04), 0x0010_0547);
    assert_eq!(read32(&port, 0x08) >> 8, 0x06_0400);
    assert_eq!(read32(&port, 0x10), 0, "no BAR");
    assert_eq!(read32(&port, 0x1c) & 0xffff, 0, "no I/O window");
    assert_eq!(read32(&port, 0x20), 0xfff0_fff0);
    assert_eq!(read32(&port, 0x24), 0xfff1_fff1);
}

#[test]
fn windows_are_what_was_programmed() {
    let mut port = port(PortKind::Root);
    assert_eq!(port.windows().count(), 0);
    let memory = range(0xc000_0000, 2 << 20);
    let prefetchable = range(0x41_0000_0000, 64 << 30);
    port.set_windows(Some(memory), Some(prefetchable));
    let open: Vec<_> = port.windows().collect();
    assert_eq!(open, [memory, prefetchable]);
    port.config_write(0x04, &[0x04, 0x00]);
    assert_eq!(port.windows().count(), 0, "decode is off");
}

/// The five writes of linux 7.2 `pci_setup_bridge()` for memory and prefetchable memory.
fn program(port: &mut VirtualPort, range: AddressRange<Gpa>) -> Vec<Option<AddressRange<Gpa>>> {
    let (base, limit) = (range.start().value(), range.end().value() - 1);
    let low = (base >> 16 & 0xfff0) | (limit & 0xfff0_0000);
    let dword = |value: u64| u32::try_from(value).unwrap().to_le_bytes();
    let writes = [
        (0x2c, dword(0)),
        (0x24, dword(low)),
        (0x28, dword(base >> 32)),
        (0x2c, dword(limit >> 32)),
    ];
    let step = |(offset, data): (u16, [u8; 4])| {
        port.config_write(offset, &data);
        port.windows().next()
    };
    writes.into_iter().map(step).collect()
}

#[test]
fn a_window_stays_open_while_it_is_programmed_anew() {
    let mut port = port(PortKind::Upstream);
    let old = range(0x41_0000_0000, 1 << 30);
    port.set_windows(None, Some(old));
    assert_eq!(program(&mut port, old), [Some(old); 4]);
    let new = range(0x40_c000_0000, 2 << 30);
    assert_eq!(
        program(&mut port, new),
        [Some(old), Some(old), Some(old), Some(new)]
    );
}

#[test]
fn a_window_that_is_closed_for_good_is_closed() {
    let mut port = port(PortKind::Upstream);
    port.set_windows(None, Some(range(0x41_0000_0000, 1 << 30)));
    // The values that Linux writes to close a window.
    port.config_write(0x2c, &[0; 4]);
    port.config_write(0x24, &[0xf0, 0xff, 0x00, 0x00]);
    port.config_write(0x28, &[0; 4]);
    port.config_write(0x2c, &[0; 4]);
    assert_eq!(port.windows().next(), None);
    let low = range(0xc000_0000, 1 << 20);
    assert_eq!(program(&mut port, low).last(), Some(&Some(low)));
}

#[test]
fn a_port_that_is_looked_at_keeps_what_it_had() {
    let mut port = port(PortKind::Root);
    let memory = range(0xc000_0000, 2 << 20);
    let prefetchable = range(0x41_0000_0000, 64 << 30);
    port.set_windows(Some(memory), Some(prefetchable));
    // The writes of linux 7.2 `pci_read_bases()` and then `pci_read_bridge_windows()`, and how many windows are open
    // after each.
    let writes: [(u16, &[u8], usize); 4] = [
        (0x04, &[0x04, 0x00], 0),
        (0x04, &[0x06, 0x00], 2),
        (0x28, &[0xff; 4], 1),
        (0x28, &[0x41, 0, 0, 0], 2),
    ];
    for (offset, data, open) in writes {
        port.config_write(offset, data);
        assert_eq!(port.windows().count(), open, "{offset:#x} {data:x?}");
        let last: Vec<_> = port.last_windows().collect();
        assert_eq!(last, [memory, prefetchable], "{offset:#x} {data:x?}");
    }
    // A moved window replaces the last one.
    port.config_write(0x20, &[0x00, 0xd0, 0x00, 0xd0]);
    let moved = range(0xd000_0000, 1 << 20);
    assert_eq!(port.last_windows().next(), Some(moved));
    port.set_windows(None, Some(prefetchable));
    assert_eq!(port.last_windows().collect::<Vec<_>>(), [prefetchable]);
}

#[test]
fn a_window_of_one_unit_is_open() {
    let mut port = port(PortKind::Root);
    port.set_windows(None, Some(range(0xfff0_0000, 1 << 20)));
    assert_eq!(port.windows().next(), Some(range(0xfff0_0000, 1 << 20)));
}

#[test]
fn bus_numbers_are_the_guests_to_change() {
    let mut port = port(PortKind::Upstream);
    let buses = BusNumbers {
        primary: 1,
        secondary: 2,
        subordinate: 9,
    };
    port.set_buses(buses);
    assert_eq!(port.buses(), buses);
    port.config_write(0x19, &[0x20, 0x2f]);
    assert_eq!(
        (port.buses().secondary, port.buses().subordinate),
        (0x20, 0x2f)
    );
}
