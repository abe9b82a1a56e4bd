//! The files in `resources/topologies` are dumps of the machines in `test_machine::hosts`.
//!
//! After a change of a machine or of the file format, `P2PCTL_UPDATE=1 cargo test -p p2pctl fixtures` writes them anew.

use std::fs;

use iommu_group::{Firmware, GroupModel, Groups, Kernel, Topology};
use test_machine::hosts;

use crate::run::{OnDisk, fixture};

#[test]
fn fixtures_are_what_dump_writes_of_their_machines() {
    let update = std::env::var_os("P2PCTL_UPDATE").is_some();
    for (name, machine) in hosts::all() {
        let dump = OnDisk::new(&machine).run(&["dump"]);
        assert_eq!(dump.status, 0, "{name}: {}", dump.stderr);
        let file = fixture(name);
        if update {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, &dump.stdout).unwrap();
        }
        let committed = fs::read_to_string(&file).unwrap_or_default();
        assert!(
            committed == dump.stdout,
            "{} is not what `p2pctl dump` writes of the machine: set P2PCTL_UPDATE=1 to write it anew",
            file.display()
        );
    }
}

/// The groups of a machine are part of its description. The model of Linux must find the same ones.
#[test]
fn the_groups_of_the_machines_are_those_that_linux_would_make() {
    let machines = hosts::all().into_iter();
    for (name, machine) in machines.chain([("sriov-1000", hosts::sriov_1000())]) {
        // Nothing is known of the one; the other was changed while it ran.
        if matches!(name, "unprivileged" | "switch-joined") {
            continue;
        }
        let topology = machine.topology();
        let kernel = Kernel::of(&topology);
        let booted = GroupModel::booted(&topology, &kernel, Firmware::Cleared).groups();
        let differences = Groups::found(&topology).differences(&booted);
        assert!(differences.is_empty(), "{name}: {differences:#?}");
    }
}

/// These were dumped from lab hosts: their groups are a kernel's.
#[test]
fn the_groups_of_lab_hosts_as_dumped_are_those_that_the_model_gives() {
    for name in ["edu-one-group", "edu-four-ports", "nvme-one-group"] {
        let text = fs::read_to_string(fixture(&format!("lab/{name}"))).unwrap();
        let topology = Topology::from_fixture(&text).unwrap();
        assert!(topology.has_groups(), "{name}");
        let kernel = Kernel::of(&topology);
        let booted = GroupModel::booted(&topology, &kernel, Firmware::Cleared).groups();
        let differences = Groups::found(&topology).differences(&booted);
        assert!(differences.is_empty(), "{name}: {differences:#?}");
    }
}
