//! `p2pctl plan` and `p2pctl kernel-args`.

use std::fs;

use iommu_group::Plan;

use crate::run::on;

#[test]
fn a_plan_names_everything_it_does() {
    let run = on(
        "switch-without-acs",
        &["plan", "--join", "03:00.0", "04:00.0"],
    );
    assert_eq!(
        run.stdout,
        "join 03:00.0 04:00.0: can be done

  unplug     03:00.0  NVMe 1b36:0010  vfio-pci
             04:00.0  NVMe 1b36:0010  nvme: refused until it is bound to
             vfio-pci
  groups     03:00.0 04:00.0 together, with ports 01:00.0 02:00.0 02:01.0
  route      03:00.0 ↔ 04:00.0: direct in the switch, as it was
  isolation  unchanged or better: no function becomes reachable without the
             IOMMU
  meanwhile  00:04.0 is without CR during the rescan, nothing in use below it
  steps
    1  unplug 03:00.0 04:00.0
    2  keep 00:04.0 01:00.0 awake
    3  remove 02:00.0 02:01.0
    4  00:04.0  ACS 001d → 0015  CR off: so that Linux joins the groups
    5  rescan below 01:00.0
    6  00:04.0  ACS 0015 → 001d  CR on: as it was
    7  check the groups; undo if they are not as predicted
    8  replug 03:00.0 04:00.0
  at boot    pci=config_acs=0x10101@0000:00:04.0
  back       p2pctl plan --isolate 03:00.0 04:00.0

nothing was changed
"
    );
    assert_eq!((run.status, run.stderr.as_str()), (0, ""));
}

#[test]
fn what_nobody_asked_for_is_refused_until_it_is_accepted_by_name() {
    let join = ["plan", "--join", "03:00.0", "04:00.0"];
    let run = on("switch-four-nvme", &join);
    assert_eq!(run.status, 2);
    assert!(
        run.stdout
            .starts_with("join 03:00.0 04:00.0: refused unless --expose 05:00.0 06:00.0\n"),
        "{}",
        run.stdout
    );
    assert!(
        run.stdout
            .ends_with("nothing was changed. This plan is refused as it stands\n"),
        "{}",
        run.stdout
    );
    let accepted = [&join[..], &["--expose", "05:00.0", "06:00.0"]].concat();
    let run = on("switch-four-nvme", &accepted);
    assert_eq!(run.status, 0);
    assert!(
        run.stdout
            .starts_with("join 03:00.0 04:00.0: can be done\n"),
        "{}",
        run.stdout
    );
    assert!(run.stdout.contains("(you accepted this)"), "{}", run.stdout);
}

#[test]
fn several_sets_are_several_groups() {
    let join = [
        "plan", "--join", "03:00.0", "04:00.0", "--join", "05:00.0", "06:00.0", "--json",
    ];
    let json = on("switch-four-nvme", &join).json();
    assert_eq!(
        json["plan"]["plan"]["goals"]["join"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn only_a_plan_that_is_not_refused_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("plan.json");
    let output = ["-o", file.to_str().unwrap()];
    let refused = [&["plan", "--join", "03:00.0", "04:00.0"][..], &output].concat();
    let run = on("switch-four-nvme", &refused);
    assert_eq!(run.status, 2);
    assert!(run.stderr.contains("was not written"), "{}", run.stderr);
    assert!(!file.exists());

    let run = on("switch-without-acs", &refused);
    assert_eq!(run.status, 0);
    let plan = Plan::from_json(&fs::read_to_string(&file).unwrap()).unwrap();
    assert!(plan.is_acceptable());
    assert_eq!(plan.unplug.len(), 2);
}

#[test]
fn what_cannot_be_done_says_why_and_what_else() {
    let run = on(
        "gpu-server-two-sockets",
        &["plan", "--join", "18:00.0", "3a:00.0"],
    );
    assert_eq!(run.status, 2);
    assert_eq!(
        run.stdout,
        "join 18:00.0 3a:00.0: refused

  why        18:00.0 and 3a:00.0 are below different root ports: functions can
             only be joined below a common port
  so         put the cards below one switch; routes through the IOMMU between
             two groups: p2pctl matrix --policy same-vm
"
    );
    let json = on(
        "gpu-server-two-sockets",
        &["plan", "--join", "18:00.0", "3a:00.0", "--json"],
    );
    assert_eq!(json.status, 2);
    assert_eq!(json.json()["acceptable"], false);
    assert_eq!(json.json()["impossible"].as_array().unwrap().len(), 1);
}

#[test]
fn without_root_there_is_no_plan() {
    for command in ["plan", "kernel-args"] {
        let run = on("unprivileged", &[command, "--join", "03:00.0", "04:00.0"]);
        assert_eq!(run.status, 2, "{command}");
        assert!(run.stdout.contains("run as root"), "{}", run.stdout);
    }
}

#[test]
fn a_goal_that_is_reached_needs_nothing() {
    let run = on("switch-joined", &["plan", "--join", "03:00.0", "04:00.0"]);
    assert_eq!(
        run.stdout,
        "join 03:00.0 04:00.0: nothing to do: the host is in this state already\n"
    );
    assert_eq!(run.status, 0);
}

#[test]
fn goals_that_make_no_sense_are_errors() {
    for (args, why) in [
        (&["plan"][..], "nothing to plan"),
        (
            &["plan", "--join", "03:00.0", "77:00.0"],
            "there is no PCI function 0000:77:00.0",
        ),
        (&["plan", "--acs", "02:00.0"], "expected PORT=BITS"),
        (
            &["plan", "--acs", "02:00.0=XX"],
            "`XX` is not an ACS control",
        ),
        (&["plan", "--route", "scenic"], "invalid value 'scenic'"),
    ] {
        let run = on("switch-four-nvme", args);
        assert_eq!((run.status, run.stdout.as_str()), (1, ""), "{args:?}");
        assert!(run.stderr.contains(why), "{args:?}: {}", run.stderr);
    }
}

#[test]
fn the_kernel_argument_is_data_and_its_limits_are_talk() {
    let run = on(
        "switch-four-nvme",
        &["kernel-args", "--join", "03:00.0", "04:00.0"],
    );
    assert_eq!(
        run.stdout,
        "pci=config_acs=0x10101@0000:00:04.0;0x10001@0000:00:04.0/00.0/00.0;\
         0x10001@0000:00:04.0/00.0/01.0\n"
    );
    assert!(
        run.stderr
            .contains("with this argument 05:00.0 06:00.0 join the same group"),
        "{}",
        run.stderr
    );
    assert_eq!(run.status, 0);
    let json = on(
        "switch-four-nvme",
        &["kernel-args", "--acs", "02:00.0=SV+UF", "--json"],
    )
    .json();
    assert_eq!(
        json["argument"],
        "pci=config_acs=0x10001@0000:00:04.0/00.0/00.0"
    );
}
