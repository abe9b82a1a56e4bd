//! PCI bus with virtual ports and assigned devices, under arbitrary accesses of the guest through ECAM, ports and
//! memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_topology::{BusNumbers, PortKind, Slot, SlotBus, VirtualPort};
use iommu_group::{Address, AddressRange, Gpa, Link, Sbdf};
use p2p_vfio::fuzzing::{FakeHost, FakeRegisters, read_usage};
use p2p_vfio::{AssignedDevice, PciBus, SharedFunction};

use super::check::{VmDevice, check};
use super::function::function;
use super::{MMIO, MMIO_BYTES, address, data, range};
use crate::bytes::Bytes;
use crate::pci::{ConfigAddressPort, HOST_BRIDGE, HostBridge, decode_ecam};

/// Maximum number of steps of one run.
const MOST_STEPS: usize = 160;
/// Initial size of a bridge window in bytes.
const WINDOW_BYTES: u64 = 16 << 20;
const LINK: Link = Link::at_most(4, 16);
/// Device numbers on the root bus: the root port of the switch, and the root port of the device that is not below the
/// switch.
const SWITCH: u8 = 1;
const ALONE: u8 = 2;
/// Registers of endpoints and bridges that have effects.
const REGISTERS: [u16; 15] = [
    0x04, 0x10, 0x14, 0x18, 0x19, 0x1a, 0x1c, 0x20, 0x22, 0x24, 0x26, 0x28, 0x2c, 0x3e, 0x74,
];

type Port = Arc<Mutex<VirtualPort>>;

/// An endpoint and the ports above it.
struct Endpoint {
    device: Arc<Mutex<AssignedDevice>>,
    registers: FakeRegisters,
    domain: Option<usize>,
    above: Vec<Port>,
    /// Whether it is on the bus.
    plugged: bool,
    slot: Slot,
}

struct Bench {
    host: FakeHost,
    bus: PciBus,
    endpoints: Vec<Endpoint>,
    address_port: ConfigAddressPort,
    /// Whether a device was unplugged.
    faulty: bool,
}

/// Sets up two peers below a switch and a device below its own root port, then makes accesses. Checks that the guest
/// and the peers see what the registers of devices say, within the windows of the bridges above.
pub(crate) fn bus(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let Some(mut rig) = Bench::new(&mut bytes) else {
        return;
    };
    rig.check();
    for _ in 0..MOST_STEPS {
        if bytes.is_empty() {
            break;
        }
        rig.step(&mut bytes);
        rig.host.take_events();
        rig.check();
    }
    let host = rig.end();
    assert_eq!(host.mapped(0), [], "peers have something");
    assert_eq!(host.slots(), [], "the guest sees something");
    assert_eq!(host.claims(), [], "something is claimed");
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sbdf(bus: u8, device: u8) -> Sbdf {
    Sbdf::from_devfn(0, bus, device << 3)
}

/// A port with the configuration that firmware leaves.
fn port(kind: PortKind, number: u8, buses: [u8; 3], window: AddressRange<Gpa>) -> Port {
    let mut port = VirtualPort::new(kind, number, LINK);
    let [primary, secondary, subordinate] = buses;
    port.set_buses(BusNumbers {
        primary,
        secondary,
        subordinate,
    });
    port.set_windows(Some(window), None);
    Arc::new(Mutex::new(port))
}

impl Bench {
    /// Sets up the bus; `None` if a function cannot be assigned.
    fn new(bytes: &mut Bytes<'_>) -> Option<Self> {
        let host = FakeHost::new(1);
        let bus = PciBus::new(vec![range(MMIO, MMIO_BYTES)]);
        let window = |number: u64| range(MMIO + number * WINDOW_BYTES, WINDOW_BYTES);
        let both = range(MMIO, 2 * WINDOW_BYTES);
        let root = port(PortKind::Root, SWITCH, [0, 1, 4], both);
        let up = port(PortKind::Upstream, 0, [1, 2, 4], both);
        let down = [3, 4].map(|n| {
            let window = window(u64::from(n) - 3);
            port(PortKind::Downstream, n - 3, [2, n, n], window)
        });
        let alone = port(PortKind::Root, ALONE, [0, 5, 5], window(2));
        let [left, right] = down;
        let member = |device| Slot::new(SlotBus::Switch(SWITCH), device);
        let above = [
            (
                Some(0),
                vec![root.clone(), up.clone(), left.clone()],
                member(0)?,
            ),
            (
                Some(0),
                vec![root.clone(), up.clone(), right.clone()],
                member(1)?,
            ),
            (None, vec![alone.clone()], Slot::new(SlotBus::Root, ALONE)?),
        ];
        let mut endpoints = Vec::new();
        for (number, (domain, above, slot)) in (3..).zip(above) {
            let sbdf = Sbdf::from_devfn(0, number, 0);
            let mmio = vec![range(MMIO, MMIO_BYTES)];
            let attached = host.attach(sbdf, &function(bytes), domain, mmio);
            let (device, registers) = attached.ok()?;
            endpoints.push(Endpoint {
                device: Arc::new(Mutex::new(device)),
                registers,
                domain,
                above,
                plugged: true,
                slot,
            });
        }
        let [first, second, third] = &endpoints[..] else {
            return None;
        };
        let bridge: SharedFunction = Arc::new(Mutex::new(HostBridge::new()));
        let functions: [(Sbdf, SharedFunction); 9] = [
            (HOST_BRIDGE, bridge),
            (sbdf(0, SWITCH), root),
            (sbdf(1, 0), up),
            (sbdf(2, 0), left),
            (sbdf(2, 1), right),
            (sbdf(3, 0), first.device.clone()),
            (sbdf(4, 0), second.device.clone()),
            (sbdf(0, ALONE), alone),
            (sbdf(5, 0), third.device.clone()),
        ];
        let slots = [Slot::new(SlotBus::Root, SWITCH)?];
        bus.plug(&slots, functions.into())
            .expect("all of it is free");
        Some(Self {
            host,
            bus,
            endpoints,
            address_port: ConfigAddressPort::default(),
            faulty: false,
        })
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.next() & 0x1f {
            op @ 0..=13 => {
                let (function, offset) = (self.place(bytes), bytes.pick(&REGISTERS));
                match op & 1 {
                    0 => self.bus.config_write(function, offset, &data(bytes)),
                    _ => self.bus.config_write(function, offset, &data(bytes)[..1]),
                }
            }
            14 | 15 => {
                let offset = u64::from(u32::from_le_bytes(bytes.array()));
                let mut data = data(bytes);
                if let Some((function, register)) = decode_ecam(offset, data.len()) {
                    match bytes.next() & 1 {
                        0 => self.bus.config_write(function, register, &data),
                        _ => self.bus.config_read(function, register, &mut data),
                    }
                }
            }
            16 => self.address_port.write(&data(bytes)),
            17 => {
                let byte = u16::from(bytes.next() & 3);
                let mut data = data(bytes);
                self.address_port.read(&mut [0; 4]);
                if let Some((function, register)) = self.address_port.decode(byte, data.len()) {
                    assert!(usize::from(register) + data.len() <= 256);
                    self.bus.config_write(function, register, &data);
                    self.bus.config_read(function, register, &mut data);
                }
            }
            18..=20 => {
                let gpa = Gpa::new(address(bytes));
                let mut data = data(bytes);
                self.bus.mmio_read(gpa, &mut data);
                self.bus.mmio_write(gpa, &data);
            }
            21 => drop(self.bus.memory_fault(Gpa::new(address(bytes)))),
            22 => {
                let index = bytes.below(self.endpoints.len());
                if let Some(endpoint) = self.endpoints.get(index) {
                    let slot = endpoint.slot;
                    self.unplug(slot);
                }
            }
            23 => {
                let index = bytes.below(self.endpoints.len());
                if let Some(endpoint) = self.endpoints.get(index) {
                    endpoint.registers.pull();
                    self.faulty = true;
                }
            }
            24 => {
                for bus in [
                    SlotBus::Root,
                    SlotBus::Switch(SWITCH),
                    SlotBus::Switch(ALONE),
                ] {
                    read_usage(&self.bus, bus);
                }
            }
            25..=28 => {
                let index = bytes.below(self.endpoints.len());
                if let Some(endpoint) = self.endpoints.get(index).filter(|e| e.plugged) {
                    let mut device = lock(&endpoint.device);
                    let bars = device.bars().to_vec();
                    if let Some(info) = bars.get(bytes.below(bars.len())) {
                        drop(device.place_bar(info, Gpa::new(address(bytes))));
                    }
                }
            }
            _ => {
                let index = bytes.below(self.endpoints.len());
                if let Some(endpoint) = self.endpoints.get(index).filter(|e| e.plugged) {
                    drop(lock(&endpoint.device).enable_memory());
                }
            }
        }
    }

    /// Address of a function of the guest, or an address without a function.
    fn place(&self, bytes: &mut Bytes<'_>) -> Sbdf {
        let places = [
            (0, SWITCH),
            (1, 0),
            (2, 0),
            (2, 1),
            (3, 0),
            (4, 0),
            (0, ALONE),
            (5, 0),
            (0, 0),
            (bytes.next(), bytes.next() & 0x1f),
        ];
        let (bus, device) = bytes.pick(&places);
        sbdf(bus, device)
    }

    /// Removes the device in a slot. The guest must find nothing there, whatever the bus numbers are.
    fn unplug(&mut self, slot: Slot) {
        let gone = self.bus.unplug(slot);
        for endpoint in self.endpoints.iter_mut().filter(|e| e.slot == slot) {
            assert_eq!(!gone.is_empty(), endpoint.plugged, "{slot}");
            endpoint.plugged = false;
        }
        for endpoint in self.endpoints.iter().filter(|e| e.slot == slot) {
            // The owner of the device detaches it.
            let detached = lock(&endpoint.device).detach();
            assert!(detached.is_ok() || self.faulty, "{detached:?}");
        }
    }

    fn check(&self) {
        if self.faulty {
            return;
        }
        let mut locked: Vec<(MutexGuard<'_, AssignedDevice>, &Endpoint)> = self
            .endpoints
            .iter()
            .map(|endpoint| (lock(&endpoint.device), endpoint))
            .collect();
        let mut devices: Vec<VmDevice<'_>> = locked
            .iter_mut()
            .map(|(device, endpoint)| VmDevice {
                device,
                registers: &endpoint.registers,
                domain: endpoint.domain,
                revoked: false,
                reach: reach(endpoint),
            })
            .collect();
        check(&self.host, 1, &mut devices);
    }

    fn end(self) -> FakeHost {
        drop((self.bus, self.endpoints));
        self.host
    }
}

/// Ranges that all bridges above forward, from their registers.
fn reach(endpoint: &Endpoint) -> Vec<AddressRange<Gpa>> {
    let mut reach = vec![range(MMIO, MMIO_BYTES)];
    for port in &endpoint.above {
        let windows: Vec<_> = lock(port).windows().collect();
        let both = |a: &AddressRange<Gpa>| {
            let a = *a;
            windows
                .iter()
                .filter_map(move |b| a.intersect(b))
                .collect::<Vec<_>>()
        };
        reach = reach.iter().flat_map(both).collect();
    }
    reach
}
