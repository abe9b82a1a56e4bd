//! NVIDIA's P2P clique capability. A hypervisor adds it to tell the guest's GPU driver which GPUs can use peer-to-peer:
//! those with the same clique number.
//!
//! It is a vendor-specific capability (PCI r3.0 §6.7) of eight bytes: length 8, the signature `P2P`, then the version
//! in bits 2:0 (0) and the clique in bits 6:3. The driver searches the capability list for it, so any free offset is
//! valid.

use iommu_group::spec::{self, cap, header};

use super::capability::{self, Capability};
use super::config_mask::ConfigMask;

const NVIDIA: [u8; 2] = [0xde, 0x10];
const LEN: u8 = 8;

/// Number of a clique, 0–15.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Clique(u8);

impl Clique {
    /// The clique of the P2P domain with this number; `None` above 15, which the capability cannot express.
    pub fn of_domain(domain: usize) -> Option<Self> {
        u8::try_from(domain).ok().filter(|n| *n < 16).map(Self)
    }

    /// Adds the capability at the head of the list if the function is an NVIDIA GPU.
    pub(super) fn show(self, config: &[u8], mask: &mut ConfigMask) -> Result<(), &'static str> {
        let is_nvidia = config.starts_with(&NVIDIA);
        let class = config.get(usize::from(header::BASE_CLASS));
        if !is_nvidia || class != Some(&header::BASE_CLASS_DISPLAY) {
            return Ok(());
        }
        let list = capability::standard(config);
        let (Some(first), Some(place)) = (list.first(), gap(config, &list)) else {
            return Err("its list of capabilities has no room");
        };
        let (Ok(at), Ok(next)) = (u8::try_from(place), u8::try_from(first.offset)) else {
            return Err("its list of capabilities is not in the first 256 bytes");
        };
        let bytes = [
            cap::VENDOR_SPECIFIC,
            next,
            LEN,
            b'P',
            b'2',
            b'P',
            self.0 << 3,
            0,
        ];
        mask.replace(header::CAPABILITIES, &[at]);
        mask.replace(place, &bytes);
        Ok(())
    }
}

/// The last offset with room for the capability: outside of all listed capabilities, and all zeros in hardware.
fn gap(config: &[u8], list: &[Capability<u8>]) -> Option<u16> {
    let len = u16::from(LEN);
    // The space between header and extended space holds only capabilities (PCIe r6.0 §7.2.1).
    let first = u16::try_from(spec::HEADER_BYTES).ok()?;
    let mut candidates = (first..=spec::LEGACY_BYTES - len)
        .rev()
        .filter(|at| at % 4 == 0);
    let is_free = |at: &u16| {
        let own = |c: &Capability<u8>| {
            let end = c.offset.saturating_add(capability::len_bytes(config, *c));
            c.offset < *at + len && *at < end
        };
        let start = usize::from(*at);
        let bytes = config.get(start..start + usize::from(len));
        bytes.is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0)) && !list.iter().any(own)
    };
    candidates.find(is_free)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu() -> Vec<u8> {
        let mut bytes = vec![0; 256];
        let mut put = |at: usize, data: &[u8]| bytes[at..at + data.len()].copy_from_slice(data);
        put(0x00, &[0xde, 0x10, 0x30, 0x23, 0, 0, 0x10, 0]);
        put(0x09, &[0x00, 0x02, 0x03]);
        put(0x34, &[0x60]);
        put(0x60, &[0x01, 0x68]);
        put(0x68, &[0x05, 0x78, 0x80, 0x00]);
        put(0x78, &[0x10, 0x00, 0x02, 0x00]);
        bytes
    }

    fn seen(config: &[u8], clique: Clique) -> Vec<u8> {
        let mut mask = ConfigMask::default();
        clique.show(config, &mut mask).unwrap();
        let mut bytes = config.to_vec();
        mask.apply(0, &mut bytes);
        bytes
    }

    #[test]
    fn a_gpu_shows_its_clique_first_and_all_else_after() {
        let bytes = seen(&gpu(), Clique::of_domain(3).unwrap());
        let list = capability::standard(&bytes);
        let ids: Vec<_> = list.iter().map(|c| c.id).collect();
        assert_eq!(ids, [0x09, 0x01, 0x05, 0x10]);
        let at = usize::from(list[0].offset);
        assert_eq!(bytes[at..at + 8], [9, 0x60, 8, b'P', b'2', b'P', 0x18, 0]);
    }

    #[test]
    fn weakness_14_only_gpus_of_nvidia_have_a_clique_and_it_lies_on_nothing() {
        let mut nic = gpu();
        nic[0x0b] = 0x02;
        let mut amd = gpu();
        amd[0] = 0x02;
        for config in [nic, amd] {
            assert_eq!(seen(&config, Clique::of_domain(0).unwrap()), config);
        }
        let mut taken = gpu();
        taken[0xc8..0x100].fill(0x5a);
        let bytes = seen(&taken, Clique::of_domain(0).unwrap());
        let at = capability::standard(&bytes)[0].offset;
        assert_eq!(at, 0xc0);
        assert_eq!(bytes[0xc8..], taken[0xc8..]);
    }

    #[test]
    fn weakness_14_numbers_that_do_not_fit_do_not_exist() {
        assert!(Clique::of_domain(15).is_some());
        assert!(Clique::of_domain(16).is_none());
    }

    #[test]
    fn without_room_there_is_an_error() {
        let mut full = gpu();
        full[0x40..0x60].fill(1);
        full[0x7c..].fill(1);
        let mut mask = ConfigMask::default();
        let clique = Clique::of_domain(0).unwrap();
        assert!(clique.show(&full, &mut mask).is_err());
    }
}
