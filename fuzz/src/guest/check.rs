//! Properties that must hold after every access of a guest.

use std::collections::BTreeSet;

use iommu_group::{Address, AddressRange, Bar, Gpa};
use p2p_vfio::AssignedDevice;
use p2p_vfio::fuzzing::{FakeHost, FakeRegisters};

/// Offset of the base address registers in configuration space.
const BARS: u16 = 0x10;

/// An assigned device and its expected state.
pub(super) struct VmDevice<'a> {
    pub(super) device: &'a mut AssignedDevice,
    pub(super) registers: &'a FakeRegisters,
    /// P2P domain of the device.
    pub(super) domain: Option<usize>,
    /// Whether peers are currently denied access to it.
    pub(super) revoked: bool,
    /// Ranges that the bridges above forward.
    pub(super) reach: Vec<AddressRange<Gpa>>,
}

/// Checks that guest and peers see exactly the BARs that are decoded, each at the address in its register and within
/// the ranges that the bridges forward. A device outside a domain, or whose windows are closed, is in no context. Other
/// devices are in a context while another member of the domain is a bus master.
pub(super) fn check(host: &FakeHost, domains: usize, devices: &mut [VmDevice<'_>]) {
    let slots = host.slots();
    let masters: Vec<bool> = devices.iter().map(|d| d.registers.is_master()).collect();
    let members: Vec<Option<usize>> = devices.iter().map(|d| d.domain).collect();
    let mut claims = Vec::new();
    let mut mapped = vec![Vec::new(); domains];
    let (mut lines, mut vectors) = (0, 0);
    for (at, assigned) in devices.iter_mut().enumerate() {
        let live: Vec<(Bar, AddressRange<Gpa>)> = assigned
            .device
            .live_bars()
            .map(|(info, range)| (*info, range))
            .collect();
        for (info, range) in &live {
            let sbdf = assigned.device.sbdf();
            let what = format!("BAR {} of {sbdf} at {range}", info.index);
            assert!(assigned.registers.decodes(), "{what} with decode off");
            let inside = |window: &AddressRange<Gpa>| window.contains(range);
            assert!(assigned.reach.iter().any(inside), "{what}: out of reach");
            let register = register(assigned.device, info);
            assert_eq!(register, range.start().value(), "{what}");
            claims.push(*range);
        }
        let peers: BTreeSet<(u64, u64)> = assigned
            .device
            .peer_windows()
            .map(|(bar, range)| {
                let place = (range.start().value(), range.len_bytes());
                let at = AddressRange::new(Gpa::new(place.0), place.1).expect("a range");
                let in_bar = |(info, live): &(Bar, AddressRange<Gpa>)| {
                    info.index == bar && live.contains(&at)
                };
                assert!(live.iter().any(in_bar), "peers see {at}, no BAR is there");
                place
            })
            .collect();
        let shown: BTreeSet<(u64, u64)> = slots
            .iter()
            .filter(|slot| live.iter().any(|(_, range)| range.contains(slot)))
            .map(|slot| (slot.start().value(), slot.len_bytes()))
            .collect();
        match assigned.domain.and_then(|number| mapped.get_mut(number)) {
            None => assert!(peers.is_empty(), "mapped, and in no domain"),
            Some(_) if assigned.revoked => assert!(peers.is_empty(), "mapped, and revoked"),
            Some(mapped) => {
                assert_eq!(peers, shown, "peers and the guest see the same");
                let mut others = members.iter().zip(&masters).enumerate();
                if others.any(|(n, (member, on))| n != at && *member == assigned.domain && *on) {
                    mapped.extend(peers);
                }
            }
        }
        let reached = assigned.registers.peers_at_reset();
        assert!(reached.is_empty(), "reset while peers reach {reached:x?}");
        lines += usize::from(assigned.registers.has_line());
        vectors += assigned.registers.vectors();
    }
    claims.sort_unstable();
    assert_eq!(host.claims(), claims, "what is claimed is decoded");
    let claimed = |slot: &AddressRange<Gpa>| claims.iter().any(|range| range.contains(slot));
    assert!(slots.iter().all(claimed), "memory where no BAR is");
    for (number, mut expected) in mapped.into_iter().enumerate() {
        expected.sort_unstable();
        let found = host.mapped(number).into_iter();
        let found: Vec<_> = found.map(|r| (r.start().value(), r.len_bytes())).collect();
        assert_eq!(found, expected, "what domain {number} reaches");
    }
    assert_eq!(host.lines(), lines, "interrupt lines");
    assert!(host.routes() <= vectors, "messages without a vector");
}

/// Value that the guest reads from the register of a BAR.
fn register(device: &mut AssignedDevice, info: &Bar) -> u64 {
    let mut value = [0; 8];
    let end = if info.is_64bit() { 8 } else { 4 };
    if let Some(data) = value.get_mut(..end) {
        device.config_read(BARS + u16::from(info.index) * 4, data);
    }
    u64::from_le_bytes(value) & !0xf
}

/// Reads configuration space twice, in one access and byte by byte, and compares the results.
pub(super) fn check_read(offset: u16, count: usize, mut read: impl FnMut(u16, &mut [u8])) {
    let mut whole = vec![0xa5; count];
    read(offset, &mut whole);
    for (at, byte) in (offset..).zip(&whole) {
        let mut one = [0x5a];
        read(at, &mut one);
        assert_eq!(one, [*byte], "byte {at:#x} of {count} at {offset:#x}");
    }
}
