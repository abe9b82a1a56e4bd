//! The contract of IOMMU contexts, on the kernel's VFIO container.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use lab::{Lab, Profile};

const DEVICE: &str = "0000:03:00.0";
const NEIGHBOUR: &str = "0000:04:00.0";

fn contract(profile: &Profile, name: &str) {
    let lab = Lab::boot(profile, name).unwrap();
    for bdf in [DEVICE, NEIGHBOUR] {
        lab.bind_vfio(bdf).unwrap();
    }
    let output = lab.run(["dma-contract", DEVICE]).unwrap();
    assert_eq!(output.code(), Some(0), "{output:#?}");
    let passed = output.stdout.lines().filter(|l| l.starts_with("ok "));
    assert!(passed.count() >= 15, "{output:#?}");
}

#[test]
fn type1_keeps_the_contract() {
    contract(&Profile::named("edu-one-group").unwrap(), "contract");
}

#[test]
fn type1_keeps_the_contract_on_an_iommu_of_39_bits() {
    let mut profile = Profile::named("edu-one-group").unwrap();
    profile.iommu.as_mut().unwrap().address_bits = 39;
    contract(&profile, "contract-39");
}
