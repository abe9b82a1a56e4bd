//! `p2pctl topology`.

use std::fs;

use serde_json::Value;
use test_machine::{Machine, hosts};

use crate::run::{OnDisk, on, p2pctl};

#[test]
fn a_switch_with_two_drives() {
    let run = on("switch-without-acs", &["topology"]);
    assert_eq!(
        run.stdout,
        "\
pci0000:00  not known to route P2P
├─ 00:00.0           host bridge 8086:29c0  g0
├─ 00:04.0           root port              g1           ACS SV RR CR UF
│  └─ 01:00.0        switch up              g3  gen1 x1
│     ├─ 02:00.0     switch down            g4           no ACS
│     │  └─ 03:00.0  NVMe 1b36:0010         g4  gen1 x1  vfio-pci  BAR4 16M
│     └─ 02:01.0     switch down            g5           no ACS
│        └─ 04:00.0  NVMe 1b36:0010         g5  gen1 x1  nvme  BAR4 16M
└─ 00:04.1           root port              g2           ACS SV RR CR UF
   └─ 05:00.0        NIC 8086:10c9          g6  gen1 x4  igb

! groups 4 and 5 are separate in Linux, but switch 01:00.0 routes between
  03:00.0 and 04:00.0 without the IOMMU.
  Do not give them to different tenants. p2pctl explain 03:00.0 04:00.0
"
    );
    assert_eq!((run.status, run.stderr.as_str()), (0, ""));
}

#[test]
fn exposures_that_the_policy_file_accepts_are_listed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    let text = "[[expose]]\nfunction = '0000:04:00.0'\nwhy = 'encrypted'\n\
                [[expose]]\nfunction = '0000:05:00.0'\nwhy = 'nobody reaches it'\n";
    fs::write(&file, text).unwrap();
    let machine = |command: &[&str]| {
        let flag = ["--policy-file", file.to_str().unwrap()];
        on("switch-without-acs", &[command, &flag].concat())
    };
    let words =
        "03:00.0 reaches 04:00.0 without the IOMMU, through 02:00.0; accepted: encrypted (rule at";
    for command in [
        &["topology"][..],
        &["matrix"],
        &["explain", "3:0.0", "4:0.0"],
    ] {
        let run = machine(command);
        let said: Vec<&str> = run.stdout.split_whitespace().collect();
        assert!(said.join(" ").contains(words), "{command:?}: {run:?}");
        assert!(!run.stdout.contains("nobody"), "{command:?}: {run:?}");
        let json = machine(&[command, &["--json"]].concat()).json();
        let [accepted] = &json["accepted"].as_array().unwrap()[..] else {
            panic!("{json}");
        };
        assert_eq!(accepted["function"], "0000:04:00.0");
        assert_eq!(accepted["to"][0], "0000:03:00.0");
    }
    let others = machine(&["topology", "00:04.1"]);
    assert!(!others.stdout.contains("accepted"), "{others:?}");
}

#[test]
fn only_what_is_below_a_port() {
    let run = on("switch-without-acs", &["topology", "2:1.0"]);
    assert!(
        run.stdout.starts_with(
            "\
02:01.0     switch down     g5           no ACS
└─ 04:00.0  NVMe 1b36:0010  g5  gen1 x1  nvme  BAR4 16M

! groups 4 and 5 are separate in Linux"
        ),
        "{}",
        run.stdout
    );
    let unconcerned = on("switch-without-acs", &["topology", "00:04.1"]);
    assert_eq!(unconcerned.stdout.lines().count(), 2);
    let json = on("switch-without-acs", &["topology", "02:01.0", "--json"]).json();
    assert_eq!(json["functions"].as_array().unwrap().len(), 2);
    assert_eq!(json["functions"][1]["parent"], "0000:02:01.0");
}

#[test]
fn a_thousand_virtual_functions_take_one_line_unless_asked_for() {
    let machine = OnDisk::new(&hosts::sriov_1000());
    let run = machine.run(&["topology"]);
    assert!(run.stdout.contains("1000 VFs 15b3:101e"), "{}", run.stdout);
    assert!(run.stdout.lines().count() < 10);
    let run = machine.run(&["topology", "--all"]);
    assert!(run.stdout.lines().count() > 1000);
}

#[test]
fn what_root_would_see_is_unknown_and_not_off() {
    let run = on("unprivileged", &["topology"]);
    assert!(run.stdout.contains("ACS ?"), "{}", run.stdout);
    assert!(!run.stdout.contains("no ACS"), "{}", run.stdout);
    assert!(run.stderr.contains("read without root"), "{}", run.stderr);
    assert_eq!(run.status, 0);
    let json = on("unprivileged", &["topology", "--json"]).json();
    assert_eq!(json["functions"][1]["acs"]["state"], "unknown");
    assert_eq!(json["functions"][1]["acs"]["why"], "unprivileged");
}

#[test]
fn domains_show_where_there_are_several() {
    let run = on("vmd", &["topology"]);
    assert!(run.stdout.contains("10000:01:00.0"), "{}", run.stdout);
    assert!(run.stdout.contains("behind 0000:00:0e.0"), "{}", run.stdout);
}

#[test]
fn ten_thousand_functions() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), in_domains(&hosts::many(100), 100)).unwrap();
    let run = |args: &[&str]| {
        let from = ["--from", file.path().to_str().unwrap()];
        p2pctl(args.iter().copied().chain(from))
    };
    let json = run(&["topology", "--json"]).json();
    assert_eq!(json["functions"].as_array().unwrap().len(), 10_000);
    for command in ["topology", "groups"] {
        let run = run(&[command]);
        assert_eq!((run.status, run.stderr.as_str()), (0, ""), "{command}");
        assert!(run.stdout.lines().count() > 10_000, "{command}");
    }
    // Two neighbours below one switch.
    let join = run(&["plan", "--join", "32:03:00.0", "32:04:00.0"]);
    assert!(
        join.stdout.contains("--expose"),
        "{}{}",
        join.stdout,
        join.stderr
    );
    let matrix = run(&["matrix"]);
    assert_eq!(matrix.status, 1);
    assert!(
        matrix.stderr.contains("name some, or a port above them"),
        "{}",
        matrix.stderr
    );
}

/// The fixture of a machine that has `machine` in each of so many domains.
fn in_domains(machine: &Machine, domains: u32) -> String {
    let dump = OnDisk::new(machine).run(&["dump"]).stdout;
    let mut all: Value = serde_json::from_str(&dump).unwrap();
    let one = all["functions"].take();
    let one = one.as_object().unwrap();
    let mut functions = serde_json::Map::new();
    for domain in 0..domains {
        for (address, function) in one {
            let text = function
                .to_string()
                .replace("0000:", &format!("{domain:04x}:"));
            let mut function: Value = serde_json::from_str(&text).unwrap();
            let group = u32::try_from(function["iommu_group"].as_u64().unwrap()).unwrap();
            function["iommu_group"] = (group + 1000 * domain).into();
            functions.insert(
                address.replace("0000:", &format!("{domain:04x}:")),
                function,
            );
        }
    }
    all["functions"] = functions.into();
    all.to_string()
}

#[test]
fn configuration_space_that_was_cut_short() {
    let machine = OnDisk::new(&hosts::many(40));
    let device = machine.sys().join("bus/pci/devices/0000:00:01.0/config");
    let bytes = fs::read(&device).unwrap();
    for len in [0, 1, 3, 17, 63, 64, 100, 255, 256, 0x102, 0x153] {
        fs::write(&device, &bytes[..len]).unwrap();
        for args in [
            &["topology"][..],
            &["groups"],
            &["dump"],
            &["topology", "--json"],
        ] {
            let run = machine.run(args);
            assert_eq!(run.status, 0, "{len} bytes, {args:?}: {}", run.stderr);
        }
    }
    fs::write(&device, vec![0xff; 4096]).unwrap();
    let run = machine.run(&["topology"]);
    assert!(run.stdout.contains("unreachable"), "{}", run.stdout);
}
