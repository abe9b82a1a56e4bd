//! ACS that another program changed is restored, at that port only.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use hotplug::regroup::{AcsRegister, Host, HostError, Regroup, RegroupError};
use iommu_group::AcsSetting;

use crate::{Bench, sbdf};

const PORT: &str = "0000:02:00.0";

#[test]
fn a_port_is_restored_unless_that_is_no_longer_wanted() {
    let bench = Bench::new();
    let topology = bench.host.topology();
    let port = topology.get(sbdf(PORT)).unwrap();
    let (register, good) = (
        AcsRegister::of(port).unwrap(),
        port.acs().registers().unwrap().setting(),
    );
    let sysfs = bench.host.sysfs();
    let regroup = Regroup::new(&bench.host, &[], bench.state());
    let less = AcsSetting::new("0011".parse().unwrap(), None);
    assert!(regroup.write_acs(&register, &less, || true).unwrap());
    assert_eq!(register.read(sysfs), Some(less));
    assert!(!regroup.write_acs(&register, &good, || false).unwrap());
    assert_eq!(register.read(sysfs), Some(less));
    assert!(regroup.write_acs(&register, &good, || true).unwrap());
    assert_eq!(register.read(sysfs), Some(good));
}

#[test]
fn a_device_that_replaced_a_port_is_not_written_to() {
    let bench = Bench::new();
    let topology = bench.host.topology();
    let register = AcsRegister::of(topology.get(sbdf(PORT)).unwrap()).unwrap();
    let config = bench.host.dir(sbdf(PORT)).join("config");
    let config = OpenOptions::new().write(true).open(config).unwrap();
    config.write_all_at(&[0xde, 0xad], 0).unwrap();
    let regroup = Regroup::new(&bench.host, &[], bench.state());
    let less = AcsSetting::new("0011".parse().unwrap(), None);
    let written = regroup.write_acs(&register, &less, || true);
    let gone = matches!(written, Err(RegroupError::Host(HostError::Gone { .. })));
    assert!(gone, "{written:?}");
    assert_eq!(bench.host.written(), 0);
}
