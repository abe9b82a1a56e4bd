//! ACS that somebody else has written is put back, at that port and at no other.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use hotplug::regroup::{AcsRegister, Host, HostError, Regroup, RegroupError};
use iommu_group::AcsSetting;

use crate::{Bench, sbdf};

const PORT: &str = "0000:02:00.0";

#[test]
fn a_port_is_put_back_unless_nobody_wants_that_any_more() {
    let bench = Bench::new();
    let topology = bench.machine.topology();
    let port = topology.get(sbdf(PORT)).unwrap();
    let (register, good) = (
        AcsRegister::of(port).unwrap(),
        port.acs().registers().unwrap().setting(),
    );
    let sysfs = bench.machine.sysfs();
    let regroup = Regroup::new(&bench.machine, &[], bench.state());
    let less = AcsSetting::new("0011".parse().unwrap(), None);
    assert!(regroup.write_acs(&register, &less, || true).unwrap());
    assert_eq!(register.read(sysfs), Some(less));
    assert!(!regroup.write_acs(&register, &good, || false).unwrap());
    assert_eq!(register.read(sysfs), Some(less));
    assert!(regroup.write_acs(&register, &good, || true).unwrap());
    assert_eq!(register.read(sysfs), Some(good));
}

#[test]
fn another_device_in_the_place_of_a_port_is_not_written_to() {
    let bench = Bench::new();
    let topology = bench.machine.topology();
    let register = AcsRegister::of(topology.get(sbdf(PORT)).unwrap()).unwrap();
    let config = bench.machine.dir(sbdf(PORT)).join("config");
    let config = OpenOptions::new().write(true).open(config).unwrap();
    config.write_all_at(&[0xde, 0xad], 0).unwrap();
    let regroup = Regroup::new(&bench.machine, &[], bench.state());
    let less = AcsSetting::new("0011".parse().unwrap(), None);
    let written = regroup.write_acs(&register, &less, || true);
    let gone = matches!(written, Err(RegroupError::Host(HostError::Gone { .. })));
    assert!(gone, "{written:?}");
    assert_eq!(bench.machine.written(), 0);
}
