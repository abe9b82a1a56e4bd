//! Port I/O of the guest: dispatch to the devices.

use std::sync::{Arc, Mutex};

use hotplug::Register;
use p2p_vfio::DeviceSet;

use crate::lock::lock;
use crate::pci::ConfigAddressPort;
use crate::power::{
    KEYBOARD_COMMAND_PORT, PowerRegisters, RESET_PORT, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT,
};
use crate::serial::{COM1_LAST_PORT, COM1_PORT, SerialPort};
use crate::slot_control::{SLOT_PORT, SlotControl};

/// CONFIG_ADDRESS of PCI configuration mechanism 1.
const CONFIG_ADDRESS_PORT: u16 = 0xcf8;
/// First and last port of CONFIG_DATA.
const CONFIG_DATA_PORT: u16 = 0xcfc;
const CONFIG_DATA_LAST_PORT: u16 = 0xcff;
/// Last port of the slot registers.
const SLOT_LAST_PORT: u16 = SLOT_PORT + Register::LEN_BYTES as u16 - 1;

/// The guest's I/O space.
pub(crate) struct Ports {
    serial: Option<Arc<SerialPort>>,
    power: PowerRegisters,
    config_address: Mutex<ConfigAddressPort>,
    devices: Arc<DeviceSet>,
    slots: Arc<SlotControl>,
}

impl Ports {
    pub(crate) fn new(
        serial: Option<Arc<SerialPort>>,
        power: PowerRegisters,
        devices: Arc<DeviceSet>,
        slots: Arc<SlotControl>,
    ) -> Self {
        Self {
            serial,
            power,
            config_address: Mutex::default(),
            devices,
            slots,
        }
    }

    /// Reads from a port; all ones for unclaimed ports.
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        match (port, &self.serial) {
            (COM1_PORT..=COM1_LAST_PORT, Some(serial)) => serial.read(port - COM1_PORT, data),
            // A one-byte access at this port is to the reset control register.
            (RESET_PORT, _) if data.len() == 1 => self.power.read(data),
            (CONFIG_ADDRESS_PORT, _) => lock(&self.config_address).read(data),
            (CONFIG_DATA_PORT..=CONFIG_DATA_LAST_PORT, _) => {
                let address = *lock(&self.config_address);
                match address.decode(port - CONFIG_DATA_PORT, data.len()) {
                    Some((sbdf, offset)) => self.devices.config_read(sbdf, offset, data),
                    None => data.fill(0xff),
                }
            }
            (KEYBOARD_COMMAND_PORT | SLEEP_CONTROL_PORT | SLEEP_STATUS_PORT, _) => {
                self.power.read(data);
            }
            (SLOT_PORT..=SLOT_LAST_PORT, _) => self.slots.read(port - SLOT_PORT, data),
            _ => {
                log::trace!("guest reads unclaimed port {port:#x}");
                data.fill(0xff);
            }
        }
    }

    /// Writes to a port; ignored for unclaimed ports.
    pub(crate) fn write(&self, port: u16, data: &[u8]) {
        match (port, &self.serial) {
            (COM1_PORT..=COM1_LAST_PORT, Some(serial)) => serial.write(port - COM1_PORT, data),
            (RESET_PORT, _) if data.len() == 1 => self.power.write(port, data),
            (CONFIG_ADDRESS_PORT, _) => lock(&self.config_address).write(data),
            (CONFIG_DATA_PORT..=CONFIG_DATA_LAST_PORT, _) => {
                let address = *lock(&self.config_address);
                if let Some((sbdf, offset)) = address.decode(port - CONFIG_DATA_PORT, data.len()) {
                    self.devices.config_write(sbdf, offset, data);
                }
            }
            (KEYBOARD_COMMAND_PORT | SLEEP_CONTROL_PORT | SLEEP_STATUS_PORT, _) => {
                self.power.write(port, data);
            }
            (SLOT_PORT..=SLOT_LAST_PORT, _) => self.slots.write(port - SLOT_PORT, data),
            _ => log::trace!("guest writes unclaimed port {port:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::empty_set;
    use crate::exit::{ExitRequest, VmExit};
    use crate::pci::{HOST_BRIDGE, HostBridge};

    fn ports() -> (Ports, Arc<ExitRequest>) {
        let exit = Arc::new(ExitRequest::new().unwrap());
        let devices = Arc::new(empty_set());
        let bridge = Arc::new(Mutex::new(HostBridge::new()));
        devices.add_function(HOST_BRIDGE, bridge).unwrap();
        let power = PowerRegisters::new(Arc::clone(&exit));
        let slots = Arc::new(SlotControl::new(Arc::clone(&devices)).unwrap());
        (Ports::new(None, power, devices, slots), exit)
    }

    #[test]
    fn configuration_mechanism_reaches_the_host_bridge() {
        let (ports, _) = ports();
        ports.write(0xcf8, &0x8000_0000u32.to_le_bytes());
        let mut device_id = [0; 2];
        ports.read(0xcfe, &mut device_id);
        assert_eq!(device_id, [0x08, 0x00]);

        ports.write(0xcf8, &0x8000_0800u32.to_le_bytes());
        ports.read(0xcfe, &mut device_id);
        assert_eq!(device_id, [0xff, 0xff], "no device 1");
    }

    #[test]
    fn byte_at_cf9_is_the_reset_register() {
        let (ports, exit) = ports();
        ports.write(0xcf9, &[0x06]);
        assert!(matches!(exit.requested(), Some(VmExit::Reset(_))));
    }

    #[test]
    fn empty_port_reads_all_ones() {
        let (ports, _) = ports();
        let mut data = [0; 4];
        ports.read(0x3f8, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
