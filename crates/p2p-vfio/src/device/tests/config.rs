//! What the guest reads and writes in configuration space.

use super::*;

#[test]
fn a_write_across_registers_reaches_each() {
    let mut rig = rig(false);
    rig.write32(0x3c, 0xffff_ff0b);
    let hardware = rig.hardware();
    assert_eq!(hardware.config[0x3c], 0x0b);
    assert_eq!(hardware.config[0x3d], 1, "the pin is not the guest's");
}

#[test]
fn the_space_ends_where_the_hardwares_does() {
    let mut rig = rig(false);
    assert_eq!(rig.read32(0x100), u32::MAX);
    assert_eq!(rig.read32(0xffc), u32::MAX);
}

#[test]
fn an_access_across_the_end_reaches_the_bytes_that_exist() {
    let mut rig = rig(false);
    let mut data = [0; 8];
    rig.device.config_read(0xfc, &mut data);
    assert_eq!(data, [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    rig.device.config_write(0xfc, &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(rig.hardware().config[0xfc..], [1, 2, 3, 4]);
    rig.device.config_write(0x100, &[5]);
    assert_eq!(rig.vm.told(), [""; 0], "no call of the host failed");
}

#[test]
fn the_command_register_reads_as_written_and_io_stays_off() {
    let mut rig = placed(false);
    rig.write32(0x04, 0x0000_0407);
    assert_eq!(rig.read32(0x04) & 0xffff, 0x0406);
    assert_eq!(rig.hardware().config[4..6], [0x06, 0x04]);
}

#[test]
fn reads_of_any_size_and_place_are_whole() {
    let mut rig = placed(false);
    let mut all = vec![0; 256];
    rig.device.config_read(0, &mut all);
    for offset in 0..253_u16 {
        let mut data = [0; 4];
        rig.device.config_read(offset, &mut data);
        let at = usize::from(offset);
        assert_eq!(data, all[at..at + 4], "at {offset:#x}");
    }
}
