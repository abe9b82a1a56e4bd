//! A host whose kernel assigns devices although their interrupts may not be isolated.

use std::fs;

use test_machine::hosts;

use crate::run::{OnDisk, Run, p2pctl};

const SET: &str = "allow_unsafe_interrupts of vfio_iommu_type1 is set";

/// A machine whose kernel has that parameter.
fn machine(value: &str) -> OnDisk {
    let machine = OnDisk::new(&hosts::named("switch-four-nvme"));
    let parameters = machine.sys().join("module/vfio_iommu_type1/parameters");
    fs::create_dir_all(&parameters).unwrap();
    fs::write(parameters.join("allow_unsafe_interrupts"), value).unwrap();
    machine
}

/// What `launch` says of a VM with one device.
fn launch(machine: &OnDisk, flags: &[&str]) -> Run {
    let sys = machine.sys();
    let device = sys.join("bus/pci/devices/0000:03:00.0");
    let device = format!("path={}", device.display());
    let fixed = ["launch", "--dry-run", "--sysfs", sys.to_str().unwrap()];
    let command = ["--", "/bin/true", "--device", &device];
    p2pctl(fixed.iter().chain(flags).chain(&command))
}

#[test]
fn invariant_3_no_vm_is_started_with_devices_unless_it_is_accepted() {
    let machine = machine("Y\n");
    let run = launch(&machine, &[]);
    assert_eq!(run.status, 2, "{run:?}");
    assert!(run.stderr.contains(SET), "{run:?}");
    let policy = machine.sys().join("policy.toml");
    fs::write(&policy, "[unsafe-interrupts]\nwhy = 'one tenant'\n").unwrap();
    let run = launch(&machine, &["--policy-file", policy.to_str().unwrap()]);
    assert_eq!(run.status, 0, "{run:?}");
    let words: Vec<&str> = [run.stdout.as_str(), &run.stderr]
        .iter()
        .flat_map(|text| text.split_whitespace())
        .collect();
    let accepted = format!("{SET}; accepted: one tenant (rule at");
    assert!(words.join(" ").contains(&accepted), "{run:?}");
    let run = launch(&self::machine("N\n"), &[]);
    assert_eq!(run.status, 0, "{run:?}");
}

#[test]
fn who_looks_at_the_host_is_told_also_from_a_dump() {
    let machine = machine("Y\n");
    for command in [&["topology"][..], &["matrix"], &["groups"]] {
        let run = machine.run(command);
        assert!(run.stderr.contains(SET), "{run:?}");
    }
    let dump = machine.run(&["dump"]);
    let file = machine.sys().join("dump.json");
    fs::write(&file, &dump.stdout).unwrap();
    let run = p2pctl(["topology", "--from", file.to_str().unwrap()]);
    assert!(run.stderr.contains(SET), "{run:?}");
    let run = self::machine("N\n").run(&["topology"]);
    assert!(!run.stderr.contains(SET), "{run:?}");
}
