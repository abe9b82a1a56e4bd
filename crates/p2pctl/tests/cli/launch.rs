//! `p2pctl launch`, with a program that says what it was given in the place of cloud-hypervisor.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tempfile::TempDir;
use test_machine::hosts;

use crate::run::{OnDisk, Run, p2pctl};

/// A machine and a program.
struct Stage {
    machine: OnDisk,
    dir: TempDir,
}

impl Stage {
    fn new(machine: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("cloud-hypervisor");
        // It ends as nothing else here does, so that its own end can be told.
        let script = "#!/bin/sh\n[ \"$1\" = --version ] && echo cloud-hypervisor v53.0 && exit\n\
                      printf '%s\\n' \"$@\"\nexec 2>&1\necho pid $$ stdin $(cat)\nexit 42\n";
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            machine: OnDisk::new(&hosts::named(machine)),
            dir,
        }
    }

    fn program(&self) -> PathBuf {
        self.dir.path().join("cloud-hypervisor")
    }

    fn path(&self, sbdf: &str) -> String {
        let device = self.machine.sys().join("bus/pci/devices").join(sbdf);
        format!("path={}", device.display())
    }

    fn launch(&self, flags: &[&str], arguments: &[&str]) -> Run {
        let (sys, program) = (self.machine.sys(), self.program());
        let fixed = ["launch", "--sysfs", sys.to_str().unwrap()];
        let words = fixed.iter().chain(flags).chain(&["--"]).copied();
        p2pctl(
            words
                .chain([program.to_str().unwrap()])
                .chain(arguments.iter().copied()),
        )
    }
}

#[test]
fn the_vmm_ends_as_if_started_directly() {
    let stage = Stage::new("switch-four-nvme");
    let device = stage.path("0000:03:00.0");
    let run = stage.launch(
        &[],
        &["--kernel", "/k", "--device", &device, "--cmdline", "a b"],
    );
    assert_eq!(run.status, 42, "{run:?}");
    let given: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(
        given[..8],
        [
            "--kernel",
            "/k",
            "--device",
            &device,
            "--cmdline",
            "a b",
            "--platform",
            "vfio_p2p_dma=off"
        ],
        "{run:?}"
    );
    assert_eq!(run.stderr, "");
}

#[test]
fn without_devices_nothing_is_touched() {
    let stage = Stage::new("switch-four-nvme");
    let run = stage.launch(&[], &["--api-socket=fd=9", "--kernel=/k"]);
    assert!(
        run.stdout
            .starts_with("--api-socket=fd=9\n--kernel=/k\npid"),
        "{run:?}"
    );
}

#[test]
fn invariant_1_peers_of_two_groups_are_refused() {
    let stage = Stage::new("switch-without-acs");
    let devices = ["0000:03:00.0", "0000:04:00.0"].map(|sbdf| stage.path(sbdf) + ",p2p=on");
    let run = stage.launch(&[], &["--device", &devices[0], &devices[1]]);
    assert_eq!((run.status, run.stdout.as_str()), (2, ""), "{run:?}");
    for words in ["error: ", "group 4 and group 5", "p2pctl plan --join"] {
        assert!(run.stderr.contains(words), "{words}: {run:?}");
    }
}

#[test]
fn invariant_3_a_device_that_reaches_the_hosts_drive_is_refused_unless_that_is_accepted() {
    let stage = Stage::new("switch-without-acs");
    let device = stage.path("0000:03:00.0");
    // Lines are wrapped.
    let said = |run: &Run| {
        let words: Vec<&str> = run.stderr.split_whitespace().collect();
        words.join(" ")
    };
    let run = stage.launch(&[], &["--device", &device]);
    assert_eq!((run.status, run.stdout.as_str()), (2, ""), "{run:?}");
    for words in [
        "error: 0000:03:00.0 reaches 0000:04:00.0 without the IOMMU, through 0000:02:00.0",
        "0000:04:00.0 is the host's (driver nvme)",
        "--expose 0000:04:00.0",
    ] {
        assert!(said(&run).contains(words), "{words}: {run:?}");
    }
    let flags = ["--dry-run", "--expose", "04:00.0"];
    let run = stage.launch(&flags, &["--device", &device]);
    assert_eq!(run.status, 0, "{run:?}");
    let words = "through 0000:02:00.0; accepted by name";
    assert!(said(&run).contains(words), "{run:?}");

    let file = stage.dir.path().join("policy.toml");
    let text = "[[expose]]\nfunction = '0000:04:00.0'\nwhy = 'encrypted'\n";
    fs::write(&file, text).unwrap();
    let flags = ["--dry-run", "--policy-file", file.to_str().unwrap()];
    let run = stage.launch(&flags, &["--device", &device]);
    assert_eq!(run.status, 0, "{run:?}");
    assert!(
        run.stderr.contains("accepted: encrypted (rule at "),
        "{run:?}"
    );

    let named = device + ",expose=04:00.0";
    let run = stage.launch(&[], &["--device", &named]);
    assert_eq!(run.status, 42, "{run:?}");
    assert!(!run.stdout.contains("expose"), "it is ours: {run:?}");
}

#[test]
fn what_only_cloud_hypervisor_cannot_hold_is_refused_by_name() {
    let stage = Stage::new("switch-joined");
    let peers = ["0000:03:00.0", "0000:04:00.0"].map(|sbdf| stage.path(sbdf) + ",p2p=on");
    let flags = ["--dry-run", "--expose", "05:00.0,06:00.0"];
    let run = stage.launch(&flags, &["--device", &peers[0], &peers[1]]);
    assert_eq!((run.status, run.stdout.as_str()), (2, ""), "{run:?}");
    let said: Vec<&str> = run.stderr.split_whitespace().collect();
    let said = said.join(" ");
    assert!(said.contains("directly across a switch"), "{said}");
    assert!(said.contains("--route iommu"), "{said}");
}

#[test]
fn memory_in_the_window_of_a_switch_is_refused_though_its_ports_redirect() {
    let stage = Stage::new("switch-four-nvme");
    let device = stage.path("0000:03:00.0");
    let launch = |memory| {
        let arguments = ["--device", &device, "--memory", memory];
        stage.launch(&["--dry-run"], &arguments)
    };
    assert_eq!(launch("size=2G").status, 0);
    let run = launch("size=3G");
    assert_eq!(run.status, 2, "{run:?}");
    for words in [
        "0x80000000-0x803fffff, which the switch at 0000:01:00.0",
        "so that it ends below 0x80000000",
    ] {
        assert!(run.stderr.contains(words), "{words}: {run:?}");
    }
}

#[test]
fn a_refusal_is_a_document_too() {
    let stage = Stage::new("switch-without-acs");
    let devices = ["0000:03:00.0", "0000:04:00.0"].map(|sbdf| stage.path(sbdf) + ",p2p=on");
    let run = stage.launch(&["--json"], &["--device", &devices[0], &devices[1]]);
    assert_eq!(run.status, 2, "{run:?}");
    let document = run.json();
    assert_eq!(document["schema"], "p2pctl/launch/1");
    assert!(
        !document["refused"].as_array().unwrap().is_empty(),
        "{run:?}"
    );
}

#[test]
fn the_operators_policy_counts() {
    let stage = Stage::new("switch-joined");
    let peers = ["0000:03:00.0", "0000:04:00.0"].map(|sbdf| stage.path(sbdf) + ",p2p=on");
    let file = stage.dir.path().join("policy.toml");
    fs::write(
        &file,
        "[[device]]\nvendor = '1b36'\np2p = 'never'\nwhy = 'not here'\n",
    )
    .unwrap();
    let flags = ["--policy-file", file.to_str().unwrap()];
    let run = stage.launch(&flags, &["--device", &peers[0], &peers[1]]);
    assert_eq!(run.status, 2, "{run:?}");
    assert!(run.stderr.contains("not here"), "{run:?}");
}

#[test]
fn a_device_that_is_not_there_is_refused_with_the_way_out() {
    let stage = Stage::new("switch-joined");
    let run = stage.launch(&[], &["--device", "path=/nonexistent"]);
    assert_eq!(run.status, 2, "{run:?}");
    assert!(run.stderr.contains("lspci -D"), "{run:?}");
}

#[test]
fn what_would_be_run_is_shown_and_not_run() {
    let stage = Stage::new("switch-four-nvme");
    let device = stage.path("0000:03:00.0");
    let arguments = [
        "--api-socket",
        "/run/a",
        "--cmdline",
        "a b",
        "--device",
        &device,
    ];
    let run = stage.launch(&["--dry-run"], &arguments);
    assert_eq!(run.status, 0, "{run:?}");
    let first = run.stdout.lines().next().unwrap();
    assert!(first.contains("--cmdline 'a b' --device "), "{first}");
    assert!(
        first.contains("--platform vfio_p2p_dma=off --event-monitor path=/run/p2pctl/"),
        "{first}"
    );
    assert!(
        run.stderr.ends_with("note: nothing was started\n"),
        "{run:?}"
    );
    let json = stage.launch(&["--dry-run", "--json"], &arguments).json();
    assert_eq!(json["schema"], "p2pctl/launch/1");
    assert_eq!(json["command"][4], "a b");
    assert_eq!(json["changes"].as_array().unwrap().len(), 2);
}

#[test]
fn a_malformed_device_is_an_error() {
    let stage = Stage::new("switch-four-nvme");
    let run = stage.launch(&[], &["--device", "path=/a,p2p=perhaps"]);
    assert_eq!(run.status, 1, "{run:?}");
    assert!(run.stderr.contains("p2p must be on or off"), "{run:?}");
    let run = p2pctl([
        "launch",
        "--",
        "/nonexistent/cloud-hypervisor",
        "--device",
        "path=/a",
    ]);
    assert_eq!(run.status, 1, "{run:?}");
    assert!(
        run.stderr
            .contains("cannot start /nonexistent/cloud-hypervisor"),
        "{run:?}"
    );
}

#[test]
fn a_vdpa_device_without_a_function_behind_it_is_refused() {
    let stage = Stage::new("switch-four-nvme");
    let run = stage.launch(
        &[],
        &["--kernel", "/k", "--vdpa", "path=/dev/null,num_queues=1"],
    );
    assert_eq!(run.status, 2, "{run:?}");
    let words = "no PCI function is behind the vDPA device /dev/null";
    assert!(run.stderr.contains(words), "{run:?}");
}
