//! The guest's I/O ports: PCI configuration, serial port, power.

use std::io::{self, Stdout};

use iommu_group::Sbdf;
use iommu_group::spec::HEADER_BYTES;
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::{PciFunctions, Result, Vm};

/// Ports and interrupt of the first serial port.
pub(crate) const COM1: u16 = 0x3f8;
pub(crate) const COM1_PIN: u32 = 4;
const COM1_LAST: u16 = COM1 + 7;
/// PCI configuration mechanism 1 (PCI r3.0 §3.2.2.3.2).
pub(crate) const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const CONFIG_DATA_LAST: u16 = 0xcff;
/// ACPI sleep control (ACPI 6.5 §4.8.3.7); the port number is ours.
pub(crate) const SLEEP_CONTROL: u16 = 0x600;
pub(crate) const SLEEP_TYPE_OFF: u8 = 5;
const SLEEP_ENABLE: u8 = 1 << 5;

const HOST_BRIDGE_AT: Sbdf = Sbdf::from_devfn(0, 0, 0);
/// The identity of the host bridge: vendor and device, command and status, class.
const HOST_BRIDGE: [u32; 3] = [0x0008_1b36, 0, 0x0600_0000];

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The ports of a VM.
pub(crate) struct Ports {
    serial: Serial<Interrupt, NoEvents, Stdout>,
    config_address: u32,
}

impl Ports {
    pub(crate) fn new(vm: &Vm) -> Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        vm.routes.connect_pin(&event, COM1_PIN)?;
        Ok(Self {
            serial: Serial::new(Interrupt(event), io::stdout()),
            config_address: 0,
        })
    }

    pub(crate) fn read(&mut self, port: u16, data: &mut [u8], functions: &mut dyn PciFunctions) {
        data.fill(0xff);
        match port {
            COM1..=COM1_LAST => {
                for byte in data {
                    *byte = self.serial.read(register(port));
                }
            }
            CONFIG_ADDRESS => {
                for (byte, value) in data.iter_mut().zip(self.config_address.to_le_bytes()) {
                    *byte = value;
                }
            }
            CONFIG_DATA..=CONFIG_DATA_LAST => match self.config_place(port, data.len()) {
                Some((HOST_BRIDGE_AT, offset)) => host_bridge(offset, data),
                Some((at, offset)) => functions.config_read(at, offset, data),
                None => {}
            },
            _ => {}
        }
    }

    /// Writes to a port. Returns whether the guest has powered off.
    pub(crate) fn write(
        &mut self,
        port: u16,
        data: &[u8],
        functions: &mut dyn PciFunctions,
    ) -> Result<bool> {
        match (port, data) {
            (COM1..=COM1_LAST, _) => {
                for byte in data {
                    self.serial
                        .write(register(port), *byte)
                        .map_err(|error| format!("serial port: {error:?}"))?;
                }
            }
            (CONFIG_ADDRESS, [a, b, c, d]) => {
                self.config_address = u32::from_le_bytes([*a, *b, *c, *d]);
            }
            (CONFIG_DATA..=CONFIG_DATA_LAST, _) => {
                if let Some((at, offset)) = self.config_place(port, data.len()) {
                    functions.config_write(at, offset, data);
                }
            }
            (SLEEP_CONTROL, [value]) => {
                return Ok(value & SLEEP_ENABLE != 0 && value >> 2 & 7 == SLEEP_TYPE_OFF);
            }
            _ => {}
        }
        Ok(false)
    }

    /// Function and register of an access to CONFIG_DATA.
    fn config_place(&self, port: u16, len: usize) -> Option<(Sbdf, u16)> {
        let byte = port - CONFIG_DATA;
        let [low, devfn, bus, high] = self.config_address.to_le_bytes();
        let inside = usize::from(byte).checked_add(len)? <= 4;
        let at = Sbdf::from_devfn(0, bus, devfn);
        (high & 0x80 != 0 && inside).then_some((at, u16::from(low & 0xfc) + byte))
    }
}

fn host_bridge(offset: u16, data: &mut [u8]) {
    let mut header = [0; HEADER_BYTES];
    let identity = HOST_BRIDGE.into_iter().flat_map(u32::to_le_bytes);
    for (byte, value) in header.iter_mut().zip(identity) {
        *byte = value;
    }
    let registers = header.iter().skip(offset.into());
    for (byte, value) in data.iter_mut().zip(registers.chain(std::iter::repeat(&0))) {
        *byte = *value;
    }
}

fn register(port: u16) -> u8 {
    let [low, _] = (port - COM1).to_le_bytes();
    low
}
