//! The host bridge at 00:00.0: identity only, no registers of its own.

use iommu_group::Sbdf;
use iommu_group::spec::{HEADER_BYTES, header};
use p2p_vfio::PciFunction;

/// Address of the host bridge.
pub(crate) const HOST_BRIDGE: Sbdf = Sbdf::from_devfn(0, 0, 0);

/// Writable bits of the command register.
const COMMAND_MASK: u16 = header::COMMAND_MEMORY | header::COMMAND_BUS_MASTER;

/// A generic PCIe host bridge, with Red Hat's identifiers for emulated bridges.
///
/// Linux has no special case for it. In particular it is not among the root complexes that Linux trusts to route
/// peer-to-peer requests (linux 7.2 drivers/pci/p2pdma.c: pci_p2pdma_whitelist), which is correct.
#[derive(Debug)]
pub(crate) struct HostBridge {
    /// The rest of configuration space reads as zero.
    header: [u8; HEADER_BYTES],
}

impl HostBridge {
    pub(crate) fn new() -> Self {
        let mut header = [0; HEADER_BYTES];
        header[0x00..0x04].copy_from_slice(&[0x36, 0x1b, 0x08, 0x00]);
        // Class 06: bridge, subclass 00: host bridge (PCI r3.0 appendix D).
        header[0x09..0x0c].copy_from_slice(&[0x00, 0x00, 0x06]);
        Self { header }
    }
}

impl PciFunction for HostBridge {
    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        let bytes = self.header.iter().skip(offset.into());
        for (to, from) in data
            .iter_mut()
            .zip(bytes.copied().chain(std::iter::repeat(0)))
        {
            *to = from;
        }
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) {
        for (register, value) in (usize::from(offset)..).zip(data) {
            let mask = register
                .checked_sub(usize::from(header::COMMAND))
                .and_then(|index| COMMAND_MASK.to_le_bytes().get(index).copied());
            if let (Some(mask), Some(byte)) = (mask, self.header.get_mut(register)) {
                *byte = *byte & !mask | value & mask;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bridge: &mut HostBridge, offset: u16) -> u32 {
        let mut data = [0xaa; 4];
        bridge.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn identity_and_class_are_read_only() {
        let mut bridge = HostBridge::new();
        for offset in (0..4096).step_by(4) {
            bridge.config_write(offset, &[0xff; 4]);
        }
        assert_eq!(read(&mut bridge, 0x00), 0x0008_1b36);
        assert_eq!(read(&mut bridge, 0x08), 0x0600_0000);
        assert_eq!(read(&mut bridge, 0x10), 0, "no BAR");
        assert_eq!(read(&mut bridge, 0x04), 0x0000_0006);
    }

    #[test]
    fn extended_space_is_empty() {
        let mut bridge = HostBridge::new();
        assert_eq!(read(&mut bridge, 0x3e), 0);
        assert_eq!(read(&mut bridge, 0x100), 0);
        assert_eq!(read(&mut bridge, 0xffc), 0);
    }
}
