//! Tests of the segment with fake functions that record calls.

use iommu_group::Address;

use super::*;

/// A function with one byte of memory at `bar`.
struct OneByte {
    bar: Gpa,
    value: u8,
}

impl PciFunction for OneByte {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        data.fill(u8::try_from(offset).unwrap());
    }

    fn config_write(&mut self, _offset: u16, data: &[u8]) {
        self.value = data[0];
    }

    fn mmio_read(&mut self, gpa: Gpa, data: &mut [u8]) -> bool {
        data.fill(self.value);
        gpa == self.bar
    }

    fn mmio_write(&mut self, gpa: Gpa, data: &[u8]) -> bool {
        let here = gpa == self.bar;
        if here {
            self.value = data[0];
        }
        here
    }
}

fn function(bar: u64) -> SharedFunction {
    Arc::new(Mutex::new(OneByte {
        bar: Gpa::new(bar),
        value: 0,
    }))
}

fn slot(device: u8) -> Sbdf {
    Sbdf::new(0, 0, device, 0).unwrap()
}

#[test]
fn absent_function_reads_all_ones() {
    let bus = PciBus::default();
    let mut data = [0; 4];
    bus.config_read(slot(1), 0, &mut data);
    assert_eq!(data, [0xff; 4]);
    bus.config_write(slot(1), 0, &data);
}

#[test]
fn configuration_reaches_the_addressed_function_only() {
    let bus = PciBus::default();
    bus.add(slot(1), function(0x1000)).unwrap();
    bus.add(slot(2), function(0x2000)).unwrap();
    bus.config_write(slot(2), 0, &[7]);

    let mut one = [9];
    bus.mmio_read(Gpa::new(0x1000), &mut one);
    let mut two = [9];
    bus.mmio_read(Gpa::new(0x2000), &mut two);

    assert_eq!((one, two), ([0], [7]));
}

#[test]
fn memory_access_goes_to_the_function_with_the_bar() {
    let bus = PciBus::default();
    bus.add(slot(1), function(0x1000)).unwrap();
    bus.add(slot(2), function(0x2000)).unwrap();
    bus.mmio_write(Gpa::new(0x2000), &[5]);

    let mut data = [0];
    bus.mmio_read(Gpa::new(0x2000), &mut data);
    assert_eq!(data, [5]);
    bus.mmio_read(Gpa::new(0x3000), &mut data);
    assert_eq!(data, [0xff], "nothing is there");
}

#[test]
fn a_second_function_at_an_address_is_refused() {
    let bus = PciBus::default();
    bus.add(slot(1), function(0x1000)).unwrap();
    assert_eq!(
        bus.add(slot(1), function(0x2000)),
        Err(PciError::Occupied(slot(1)))
    );
}

/// A bridge with two bus numbers, which a write to configuration space sets.
struct Bridge(u8, u8);

impl PciFunction for Bridge {
    fn config_read(&mut self, _offset: u16, data: &mut [u8]) {
        data.fill(0);
    }

    fn config_write(&mut self, _offset: u16, data: &[u8]) {
        (self.0, self.1) = (data[0], data[1]);
    }

    fn buses_below(&self) -> Option<RangeInclusive<u8>> {
        Some(self.0..=self.1)
    }
}

fn bridge(secondary: u8, subordinate: u8) -> SharedFunction {
    Arc::new(Mutex::new(Bridge(secondary, subordinate)))
}

fn at(bus: u8, device: u8) -> Sbdf {
    Sbdf::new(0, bus, device, 0).unwrap()
}

fn is_there(bus: &PciBus, sbdf: Sbdf) -> bool {
    let mut data = [0xff];
    bus.config_read(sbdf, 0x40, &mut data);
    data != [0xff]
}

fn switch() -> PciBus {
    let bus = PciBus::default();
    bus.add(at(0, 1), bridge(1, 3)).unwrap();
    bus.add(at(1, 0), bridge(2, 3)).unwrap();
    bus.add(at(2, 4), bridge(3, 3)).unwrap();
    bus.add(at(3, 0), function(0x1000)).unwrap();
    bus
}

#[test]
fn functions_behind_bridges_are_found_by_bus_number() {
    let bus = switch();
    assert!(is_there(&bus, at(3, 0)));
    assert!(!is_there(&bus, at(3, 1)) && !is_there(&bus, at(4, 0)));
}

#[test]
fn a_guest_may_renumber_buses() {
    let bus = switch();
    bus.config_write(at(2, 4), 0x19, &[9, 9]);
    assert!(!is_there(&bus, at(3, 0)) && !is_there(&bus, at(9, 0)));
    bus.config_write(at(1, 0), 0x19, &[2, 9]);
    bus.config_write(at(0, 1), 0x19, &[1, 9]);
    assert!(is_there(&bus, at(9, 0)));
}

fn slot_at(bus: SlotBus, device: u8) -> Slot {
    Slot::new(bus, device).unwrap()
}

#[test]
fn unplug_removes_everything_below_a_slot_after_renumbering() {
    let bus = switch();
    bus.config_write(at(2, 4), 0x19, &[9, 9]);
    assert_eq!(bus.unplug(slot_at(SlotBus::Switch(1), 4)).len(), 2);
    assert!(!is_there(&bus, at(2, 4)) && is_there(&bus, at(1, 0)));
    assert_eq!(bus.unplug(slot_at(SlotBus::Switch(1), 4)).len(), 0);
    assert_eq!(bus.unplug(slot_at(SlotBus::Root, 1)).len(), 2);
    assert!(!is_there(&bus, at(0, 1)));
}

#[test]
fn plug_adds_all_functions_or_none() {
    let bus = switch();
    let member = slot_at(SlotBus::Switch(1), 5);
    let port_and_endpoint = |endpoint| vec![(at(2, 5), bridge(3, 3)), (endpoint, function(0x2000))];
    let no_bus = bus.plug(&[member], port_and_endpoint(at(7, 0)));
    assert_eq!(no_bus, Err(PciError::NoSuchBus(at(7, 0))));
    assert!(!is_there(&bus, at(2, 5)));
    let no_slot = bus.plug(&[slot_at(SlotBus::Root, 5)], port_and_endpoint(at(2, 6)));
    assert_eq!(
        no_slot,
        Err(PciError::NoSuchSlot(slot_at(SlotBus::Root, 5)))
    );
    assert!(!is_there(&bus, at(2, 5)));
    assert_eq!(bus.plug(&[member], port_and_endpoint(at(2, 6))), Ok(()));
    assert!(is_there(&bus, at(2, 5)));
}

#[test]
fn usage_follows_what_the_guest_has_programmed() {
    let bus = switch();
    bus.config_write(at(1, 0), 0x19, &[2, 9]);
    let usage = bus.bus_usage(SlotBus::Switch(1)).unwrap();
    assert_eq!(usage.buses, (2, 9));
    assert_eq!(usage.devices, [4].into());
    assert_eq!(usage.taken_buses, [3].into());
    assert_eq!(bus.bus_usage(SlotBus::Switch(2)), None);
}

#[test]
fn a_function_on_an_unknown_bus_is_refused() {
    let bus = switch();
    assert_eq!(
        bus.add(at(7, 0), function(0x2000)),
        Err(PciError::NoSuchBus(at(7, 0)))
    );
}

/// The calls that a fake function has received.
#[derive(Default)]
struct Observed {
    forwarded: Vec<AddressRange<Gpa>>,
    resets: u32,
    retries: u32,
}

struct Observer(Arc<Mutex<Observed>>);

impl PciFunction for Observer {
    fn config_read(&mut self, _offset: u16, data: &mut [u8]) {
        data.fill(0);
    }

    fn config_write(&mut self, _offset: u16, _data: &[u8]) {}

    fn set_forwarded(&mut self, ranges: &[AddressRange<Gpa>]) {
        lock(&self.0).forwarded = ranges.to_vec();
    }

    fn reset(&mut self) {
        lock(&self.0).resets += 1;
    }

    fn retry_mappings(&mut self) {
        lock(&self.0).retries += 1;
    }
}

fn gpa_range(start: u64, len_bytes: u64) -> AddressRange<Gpa> {
    AddressRange::new(iommu_group::Address::new(start), len_bytes).unwrap()
}

/// A root port at 00:01.0, a downstream port below it, and an observer below that.
fn two_ports() -> (PciBus, Arc<Mutex<Observed>>) {
    use guest_topology::{BusNumbers, PortKind, VirtualPort};
    use iommu_group::Link;
    let link = Link::SLOWEST;
    let bus = PciBus::new(vec![gpa_range(0xc000_0000, 0x1000_0000)]);
    for (number, kind) in [(0, PortKind::Root), (1, PortKind::Downstream)] {
        let mut port = VirtualPort::new(kind, number, link);
        port.set_buses(BusNumbers {
            primary: number,
            secondary: number + 1,
            subordinate: 2,
        });
        port.set_windows(Some(gpa_range(0xc000_0000, 0x20_0000)), None);
        bus.add(at(number, 1), Arc::new(Mutex::new(port))).unwrap();
    }
    let observed = Arc::new(Mutex::new(Observed::default()));
    bus.add(
        at(2, 0),
        Arc::new(Mutex::new(Observer(Arc::clone(&observed)))),
    )
    .unwrap();
    (bus, observed)
}

#[test]
fn a_device_receives_the_intersection_of_the_windows_above() {
    let (bus, observed) = two_ports();
    // The lower port: base at its second MiB.
    bus.config_write(at(1, 1), 0x20, &[0x10, 0xc0]);
    assert_eq!(
        lock(&observed).forwarded,
        [gpa_range(0xc010_0000, 0x10_0000)]
    );
    // The upper port is closed: base above limit.
    bus.config_write(at(0, 1), 0x20, &[0xf0, 0xff]);
    assert_eq!(lock(&observed).forwarded, []);
    bus.config_write(at(0, 1), 0x20, &[0x00, 0xc0]);
    bus.config_write(at(0, 1), 0x04, &[0]);
    assert_eq!(
        lock(&observed).forwarded,
        [],
        "memory decode of the bridge is off"
    );
}

#[test]
fn a_window_that_the_guest_closes_while_sizing_stays_in_use() {
    let (bus, observed) = two_ports();
    let window = gpa_range(0xc000_0000, 0x20_0000);
    bus.config_write(at(0, 1), 0x04, &[0]);
    assert_eq!(lock(&observed).forwarded, []);
    assert_eq!(bus.bus_usage(SlotBus::Root).unwrap().windows, [window]);
    // A moved window replaces the old one.
    bus.config_write(at(0, 1), 0x20, &[0x10, 0xc0]);
    bus.config_write(at(0, 1), 0x04, &[2]);
    let moved = gpa_range(0xc010_0000, 0x10_0000);
    assert_eq!(bus.bus_usage(SlotBus::Root).unwrap().windows, [moved]);
}

#[test]
fn secondary_bus_reset_resets_everything_below_once() {
    let (bus, observed) = two_ports();
    bus.config_write(at(0, 1), 0x3e, &[0x40]);
    assert_eq!(lock(&observed).resets, 1);
    bus.config_write(at(0, 1), 0x3e, &[0x41]);
    bus.config_write(at(0, 1), 0x3e, &[0x00]);
    assert_eq!(lock(&observed).resets, 1);
    assert!(
        !is_there(&bus, at(2, 0)),
        "the lower port has forgotten its bus numbers"
    );
    assert_eq!(lock(&observed).forwarded, [], "and its windows");
}

#[test]
fn a_header_write_retries_the_mappings_of_all_functions() {
    let (bus, observed) = two_ports();
    bus.config_write(at(1, 1), 0x10, &[0]);
    assert_eq!(lock(&observed).retries, 1);
    bus.config_write(at(1, 1), 0x48, &[0]);
    assert_eq!(lock(&observed).retries, 1);
}
