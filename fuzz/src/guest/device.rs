//! Assigned devices, under arbitrary register accesses of the guest and arbitrary events on the host.

use std::array;

use iommu_group::{Address, AddressRange, Gpa, Sbdf};
use p2p_vfio::AssignedDevice;
use p2p_vfio::fuzzing::{FakeHost, FakeRegisters};

use super::check::{VmDevice, check, check_read};
use super::function::function;
use super::{MMIO, MMIO_BYTES, address, data, range};
use crate::bytes::Bytes;

/// Domains of the devices: two peers, one alone in a domain, and one in no domain.
const DOMAINS: [Option<usize>; 4] = [Some(0), Some(0), Some(1), None];
/// Maximum number of steps of one run.
const MOST_STEPS: usize = 200;
/// Registers that have effects: command, BARs, and the control registers of the capabilities that `function` writes.
const REGISTERS: [u16; 16] = [
    0x04, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x05, 0x42, 0x44, 0x48, 0x4c, 0x62, 0x74, 0x88, 0x94,
];

/// A device and its expected state.
struct Slot {
    device: AssignedDevice,
    registers: FakeRegisters,
    domain: Option<usize>,
    revoked: bool,
    reach: Vec<AddressRange<Gpa>>,
}

/// Devices of one VM, and a host whose calls can fail.
struct Bench {
    host: FakeHost,
    slots: Vec<Slot>,
    /// Whether calls may fail. While they may, the state is not checked.
    failing: bool,
    /// Whether a device was unplugged or a call failed, so that some mappings may remain.
    faulty: bool,
}

/// Sets up devices, then makes accesses and events. Checks in each domain and after every step that the guest and the
/// peers see what the registers say, and that nothing is left when the devices are closed.
pub(crate) fn device(input: &[u8]) {
    let mut bytes = Bytes::new(input);
    let mut rig = Bench {
        host: FakeHost::new(2),
        slots: Vec::new(),
        failing: false,
        faulty: false,
    };
    for (number, domain) in DOMAINS.into_iter().enumerate() {
        let function = function(&mut bytes);
        let sbdf = Sbdf::from_devfn(0, u8::try_from(number).unwrap_or(0) + 3, 0);
        let reach = vec![range(MMIO, MMIO_BYTES)];
        match rig.host.attach(sbdf, &function, domain, reach.clone()) {
            Ok((device, registers)) => rig.slots.push(Slot {
                device,
                registers,
                domain,
                revoked: false,
                reach,
            }),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    rig.check();
    for _ in 0..MOST_STEPS {
        if bytes.is_empty() {
            break;
        }
        rig.step(&mut bytes);
        rig.check();
    }
    rig.end();
}

impl Bench {
    fn step(&mut self, bytes: &mut Bytes<'_>) {
        let op = bytes.next();
        let count = self.slots.len();
        let Some(slot) = self.slots.get_mut(usize::from(op >> 6) % count.max(1)) else {
            return;
        };
        let device = &mut slot.device;
        match op & 0x1f {
            0..=7 => {
                let offset = bytes.pick(&REGISTERS);
                device.config_write(offset, &data(bytes));
            }
            8 | 9 => device.config_write(offset(bytes), &data(bytes)),
            10 => {
                let (offset, count) = (offset(bytes), bytes.below(8) + 1);
                let mut read = |at: u16, data: &mut [u8]| device.config_read(at, data);
                // A failure that is to come may hit one of several reads, and not another.
                match self.faulty {
                    true => read(offset, &mut vec![0; count]),
                    false => check_read(offset, count, read),
                }
            }
            11 => {
                let gpa = Gpa::new(address(bytes));
                device.mmio_write(gpa, &data(bytes));
            }
            12 => {
                let mut data = data(bytes);
                device.mmio_read(Gpa::new(address(bytes)), &mut data);
            }
            13..=15 => Self::access(device, bytes),
            16 => {
                let start = MMIO + (u64::from(bytes.next()) << 20);
                slot.reach = match bytes.below(4) {
                    0 => Vec::new(),
                    n => vec![range(start, (u64::from(bytes.next()) + 1) << (16 + n))],
                };
                device.set_reach(&slot.reach);
            }
            17 => {
                slot.revoked = bytes.next() & 1 != 0;
                drop(device.set_revoked(slot.revoked));
            }
            18 => device.reset_by_guest(),
            19 => {
                slot.registers.signal(bytes.next() & 1 != 0);
                device.process_events();
            }
            20 => {
                device.memory_fault(Gpa::new(address(bytes)));
            }
            21..=24 => {
                let bars: Vec<_> = device.bars().to_vec();
                let index = bytes.below(bars.len());
                if let Some(info) = bars.get(index) {
                    drop(device.place_bar(info, Gpa::new(address(bytes))));
                }
            }
            25 => drop(device.enable_memory()),
            26 => {
                slot.registers.pull();
                self.faulty = true;
            }
            27 => {
                self.host.fail_after(bytes.next().into());
                self.failing = true;
                self.faulty = true;
            }
            _ => self.settle(),
        }
        self.host.take_events();
    }

    /// Makes an access of the guest to a BAR that is decoded.
    fn access(device: &mut AssignedDevice, bytes: &mut Bytes<'_>) {
        let live: Vec<AddressRange<Gpa>> = device.live_bars().map(|(_, range)| range).collect();
        let Some(range) = live.get(bytes.below(live.len())) else {
            return;
        };
        let offset = u64::from(u16::from_le_bytes(bytes.array())) << bytes.below(6);
        let gpa = Gpa::new(range.start().value() + offset % range.len_bytes());
        let mut data = data(bytes);
        let fits = range.offset_of(gpa).expect("inside") + data.len() as u64 <= range.len_bytes();
        let taken = match bytes.next() & 1 {
            0 => device.mmio_write(gpa, &data),
            _ => device.mmio_read(gpa, &mut data),
        };
        assert_eq!(taken, fits, "{gpa} of {range}");
    }

    /// Stops the failures and retries all mappings.
    fn settle(&mut self) {
        self.host.stop_failing();
        for slot in &mut self.slots {
            slot.device.retry_mappings();
        }
        self.failing = false;
    }

    fn check(&mut self) {
        if self.faulty {
            return;
        }
        let mut devices: Vec<VmDevice<'_>> = self
            .slots
            .iter_mut()
            .map(|slot| VmDevice {
                device: &mut slot.device,
                registers: &slot.registers,
                domain: slot.domain,
                revoked: slot.revoked,
                reach: slot.reach.clone(),
            })
            .collect();
        check(&self.host, DOMAINS.len(), &mut devices);
    }

    fn end(mut self) {
        self.settle();
        self.slots.clear();
        let mapped: [_; 2] = array::from_fn(|number| self.host.mapped(number));
        assert_eq!(mapped, [const { Vec::new() }; 2], "peers have something");
        assert_eq!(self.host.slots(), [], "the guest sees something");
        assert_eq!(self.host.claims(), [], "something is claimed");
        if !self.faulty {
            let interrupts = (self.host.routes(), self.host.lines());
            assert_eq!(interrupts, (0, 0), "interrupts");
        }
    }
}

/// Returns an offset in configuration space.
fn offset(bytes: &mut Bytes<'_>) -> u16 {
    u16::from_le_bytes(bytes.array()) & 0xfff
}
