//! Capabilities that the guest does not see: nothing of it reaches them.

use std::ops::Range;

use super::*;

const FILLING: u8 = 0x5a;
const FIRST: u16 = 0x100;
/// Room before, between and behind the hidden ones: a capability that the guest sees.
const VISIBLE_LEN: u16 = 0x10;

/// The hidden capabilities with their lengths in bytes (PCIe r6.0 §7.7.8, §7.7.11, §7.8.6, §7.8.8, §7.8.9, §9.3.3, §10.5).
const HIDDEN: [(u16, u16); 8] = [
    (0x000d, 8 + 4 * 2),
    (0x000e, 8),
    (0x000f, 8),
    (0x0010, 0x40),
    (0x0013, 0x10),
    (0x0015, 4 + 8 * 3),
    (0x001b, 8),
    (0x0024, 4 + 8 * 6),
];

/// A function with all of them, each between two capabilities that the guest sees, and where each hidden one is.
fn device_with_all() -> (TestDevice, Vec<Range<u16>>) {
    let mut bytes = config();
    bytes.resize(4096, FILLING);
    let mut places = Vec::new();
    let mut at = FIRST;
    for (id, len) in HIDDEN {
        let hidden = at + VISIBLE_LEN;
        put_header(&mut bytes, at, 0x000b, hidden);
        put_header(&mut bytes, hidden, id, hidden + len);
        places.push(hidden..hidden + len);
        at = hidden + len;
    }
    put_header(&mut bytes, at, 0x000b, 0);
    let mut put = |id: u16, offset: u16, value: u8| {
        let of = HIDDEN.iter().position(|(other, _)| *other == id).unwrap();
        bytes[usize::from(places[of].start + offset)] = value;
    };
    // ACS with egress control and a vector of 33 bits; three and six resizable BARs.
    put(0x000d, 4, 0x20);
    put(0x000d, 5, 33);
    put(0x0015, 8, 3 << 5);
    put(0x0024, 8, 6 << 5);
    let vm = Arc::new(FakeVm::default());
    (rig_of(FakePci::new(&vm, bytes, [0; 6]), &vm, false), places)
}

fn put_header(bytes: &mut [u8], at: u16, id: u16, next: u16) {
    let header = u32::from(id) | 1 << 16 | u32::from(next) << 20;
    let at = usize::from(at);
    bytes[at..at + 4].copy_from_slice(&header.to_le_bytes());
}

#[test]
fn no_write_of_any_size_and_place_reaches_a_hidden_capability() {
    let (mut rig, places) = device_with_all();
    let before = rig.hardware().config.clone();
    let is_hidden = |at: u16| places.iter().any(|place| place.contains(&at));
    for place in &places {
        for at in place.start - 9..place.end + 9 {
            for len in 1..=8 {
                rig.device.config_write(at, &vec![!FILLING; len]);
                let found = std::mem::replace(&mut rig.hardware().config, before.clone());
                for byte in at..at + u16::try_from(len).unwrap() {
                    let index = usize::from(byte);
                    let expected = match is_hidden(byte) {
                        true => before[index],
                        false => !FILLING,
                    };
                    assert_eq!(
                        found[index], expected,
                        "{len} bytes at {at:#x}, at {byte:#x}"
                    );
                }
            }
        }
    }
    assert!(rig.vm.told().is_empty());
}

#[test]
fn hidden_capabilities_read_as_null_and_the_chain_goes_on() {
    let (mut rig, places) = device_with_all();
    for place in &places {
        let header = rig.read32(place.start);
        assert_eq!(header & 0x000f_ffff, 0, "at {:#x}", place.start);
        assert_eq!(header >> 20, u32::from(place.end), "at {:#x}", place.start);
        for at in place.start + 4..place.end {
            let mut byte = [0xff];
            rig.device.config_read(at, &mut byte);
            assert_eq!(byte, [0], "at {at:#x}");
        }
        assert_eq!(rig.read32(place.end) & 0xffff, 0x000b);
    }
}

#[test]
fn a_hidden_capability_at_the_end_of_the_space_is_harmless() {
    let mut bytes = config();
    bytes.resize(4096, 0);
    put_header(&mut bytes, FIRST, 0x000b, 0xffc);
    put_header(&mut bytes, 0xffc, 0x0010, 0);
    let vm = Arc::new(FakeVm::default());
    let mut rig = rig_of(FakePci::new(&vm, bytes, [0; 6]), &vm, false);
    rig.write32(0xffc, u32::MAX);
    let found = rig.hardware().config[0xffc..].to_vec();
    assert_eq!(found, [0x10, 0, 1, 0]);
    assert_eq!(rig.read32(0xffc), 0);
}
