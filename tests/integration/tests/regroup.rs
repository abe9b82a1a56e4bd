//! Plans carried out by `p2pctl apply` on a live switch: what was predicted happens and only that, a process that is
//! killed on the way leaves nothing that `recover` cannot put right, and what is in use is left alone.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

mod regroup {
    mod reconcile;
}

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use iommu_group::{Goals, GroupModel, Groups, Kernel, Plan, PlanOptions, Sbdf, Topology};
use lab::protocol::Exit;
use lab::{Lab, Output, SharedLab, Turn};

static LAB: SharedLab = SharedLab::new("mixed-four-ports", "regroup");

/// Two DMA engines, a drive and a network card below the four ports of one switch.
const ENDPOINTS: [&str; 4] = [
    "0000:03:00.0",
    "0000:04:00.0",
    "0000:05:00.0",
    "0000:06:00.0",
];

/// How long a transaction of a few devices may take here.
const TRANSACTION: Duration = Duration::from_secs(300);

fn sbdf(text: &str) -> Sbdf {
    text.parse().unwrap()
}

fn set(endpoints: &[&str]) -> BTreeSet<Sbdf> {
    endpoints.iter().map(|text| sbdf(text)).collect()
}

fn scan(lab: &Lab) -> Topology {
    let dump = lab.run(["p2pctl", "dump"]).unwrap().ok().unwrap();
    Topology::from_fixture(&dump).unwrap()
}

/// All that a transaction must leave as it was, or as planned.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Snapshot {
    groups: Groups,
    /// Driver, `driver_override`, `power/control` and ACS of each function.
    functions: BTreeMap<Sbdf, [String; 4]>,
    autoprobe: String,
}

fn snapshot(lab: &Lab) -> Snapshot {
    let topology = scan(lab);
    let listing = lab
        .sh("cd /sys/bus/pci/devices; for f in *; do echo $f $(cat $f/driver_override) $(cat $f/power/control); done")
        .unwrap();
    let mut functions = BTreeMap::new();
    for line in listing.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let at = sbdf(words[0]);
        let function = topology.get(at).unwrap();
        let driver = function.driver().unwrap_or("none").to_owned();
        let acs = function.acs().registers().map(|acs| acs.control);
        let facts = [
            driver,
            words[1].to_owned(),
            words[2].to_owned(),
            format!("{acs:?}"),
        ];
        functions.insert(at, facts);
    }
    Snapshot {
        groups: Groups::found(&topology),
        functions,
        autoprobe: lab.read("/sys/bus/pci/drivers_autoprobe").unwrap(),
    }
}

/// A turn with the first `count` endpoints bound to vfio-pci, each in a group of its own.
fn lab(count: usize) -> Turn<'static> {
    let lab = LAB.turn();
    for endpoint in &ENDPOINTS[..count] {
        lab.bind_vfio(endpoint).unwrap();
    }
    let [a, b, ..] = ENDPOINTS;
    if Groups::found(&scan(&lab)).together(sbdf(a), sbdf(b)) {
        isolate(&lab);
    }
    lab
}

fn apply(lab: &Lab, args: &[&str]) -> Output {
    let words = ["p2pctl", "apply"].iter().chain(args);
    let words: Vec<String> = words.map(|word| (*word).to_owned()).collect();
    lab.command(words).deadline(TRANSACTION).run().unwrap()
}

/// Splits the first two endpoints. The switch has no ACS, so only Linux keeps them apart: that has to be accepted.
fn isolate(lab: &Lab) {
    let [a, b, ..] = ENDPOINTS;
    let output = apply(lab, &["--isolate", a, b, "--expose", a, b]);
    output.ok().unwrap();
}

/// Makes the plan for `goals` and has it carried out; what it names is all that changes.
fn reach(lab: &Lab, goals: &Goals, options: &PlanOptions) -> Plan {
    let (before, facts) = (scan(lab), snapshot(lab));
    let kernel = Kernel::of(&before);
    let plan = Plan::make(&before, &kernel, goals, options).unwrap();
    assert!(plan.is_acceptable(), "{:#?}", plan.objections);
    lab.put_bytes(plan.to_json().as_bytes(), "/tmp/plan.json", 0o600)
        .unwrap();
    let output = apply(lab, &["/tmp/plan.json"]);
    let told = output.ok().unwrap();
    assert!(told.contains(": done in "), "{told}");
    let mut model = GroupModel::as_found(&before, &kernel);
    plan.steps.iter().for_each(|step| step.apply(&mut model));
    let after = snapshot(lab);
    let differences = model.groups().differences(&after.groups);
    assert!(differences.is_empty(), "{differences:#?}");
    assert_eq!(after.functions, facts.functions);
    assert_eq!(after.autoprobe, facts.autoprobe);
    plan
}

fn join(endpoints: &[&str]) -> Goals {
    Goals {
        join: vec![set(endpoints)],
        ..Goals::default()
    }
}

/// Marks an endpoint with something that does not survive being removed and found again.
fn mark(lab: &Lab, endpoint: &str) {
    lab.sh(&format!("echo 0 > /sys/bus/pci/devices/{endpoint}/msi_bus"))
        .unwrap();
}

fn is_marked(lab: &Lab, endpoint: &str) -> bool {
    let path = format!("/sys/bus/pci/devices/{endpoint}/msi_bus");
    lab.read(&path).unwrap() == "0"
}

#[test]
fn endpoints_of_a_live_switch_are_joined_and_split_and_the_others_stay_untouched() {
    let lab = lab(4);
    let [a, b, c, d] = ENDPOINTS;
    mark(&lab, c);
    mark(&lab, d);
    mark(&lab, a);

    let plan = reach(&lab, &join(&[a, b]), &PlanOptions::default());
    assert_eq!(plan.unplug, set(&[a, b]));
    let groups = snapshot(&lab).groups;
    assert!(groups.together(sbdf(a), sbdf(b)));
    assert!(!groups.together(sbdf(a), sbdf(c)) && !groups.together(sbdf(c), sbdf(d)));
    assert!(is_marked(&lab, c) && is_marked(&lab, d));
    assert!(!is_marked(&lab, a), "the mark is one");

    let third = PlanOptions {
        with: set(&[a, b]),
        ..PlanOptions::default()
    };
    let plan = reach(&lab, &join(&[a, b, c]), &third);
    assert_eq!(plan.unplug, set(&[c]), "two are together already");
    let groups = snapshot(&lab).groups;
    assert!(groups.together(sbdf(a), sbdf(c)) && !groups.together(sbdf(a), sbdf(d)));
    assert!(is_marked(&lab, d));

    mark(&lab, a);
    let apart = Goals {
        isolate: set(&[b]),
        ..Goals::default()
    };
    let split = PlanOptions {
        with: set(&[a, c]),
        expose: set(&[b]),
        ..PlanOptions::default()
    };
    reach(&lab, &apart, &split);
    let groups = snapshot(&lab).groups;
    assert!(groups.together(sbdf(a), sbdf(c)) && !groups.together(sbdf(a), sbdf(b)));
    assert!(is_marked(&lab, a) && is_marked(&lab, d));

    let rest = Goals {
        isolate: set(&[a, c]),
        ..Goals::default()
    };
    let expose = PlanOptions {
        expose: set(&[a, c]),
        ..PlanOptions::default()
    };
    reach(&lab, &rest, &expose);
    let status = lab
        .run(["p2pctl", "status", "--json"])
        .unwrap()
        .ok()
        .unwrap();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["held"], serde_json::json!([]), "{status:#}");
    assert_eq!(status["unfinished"], serde_json::Value::Null);
}

/// Where each line of the journal of the last transaction starts, in bytes from the start, and their number.
fn records(lab: &Lab) -> Vec<u64> {
    let last = lab.sh("ls /var/lib/p2pctl/done | tail -n 1").unwrap();
    let journal = lab
        .get(&format!("/var/lib/p2pctl/done/{}", last.trim()))
        .unwrap();
    let mut starts = vec![0];
    let ends = journal
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'\n');
    starts.extend(ends.map(|(at, _)| u64::try_from(at).unwrap() + 1));
    starts.pop();
    starts
}

#[test]
fn killed_at_every_record_it_recovers_the_old_or_the_new_state() {
    let lab = lab(4);
    let [a, b, ..] = ENDPOINTS;
    // Once there and back, so that the ports are as any split leaves them.
    apply(&lab, &["--join", a, b]).ok().unwrap();
    isolate(&lab);
    let old = snapshot(&lab);
    apply(&lab, &["--join", a, b]).ok().unwrap();
    let (new, starts) = (snapshot(&lab), records(&lab));
    isolate(&lab);
    assert_eq!(snapshot(&lab), old);
    assert!(starts.len() > 40, "{starts:?}");

    let (mut undone, mut completed) = (0, 0);
    for (record, start) in starts.iter().enumerate() {
        // Before the record, or in the midst of it.
        let limit = start + if record % 2 == 0 { 0 } else { 9 };
        let what = format!("killed at record {record} of {}", starts.len());
        let limit = limit.to_string();
        let words = [
            "at-limit",
            limit.as_str(),
            "p2pctl",
            "apply",
            "--join",
            a,
            b,
        ];
        let output = lab.command(words).deadline(TRANSACTION).run().unwrap();
        assert!(matches!(output.exit, Exit::Signal(_)), "{what}: {output:?}");
        let output = lab.run(["p2pctl", "recover", "--json"]).unwrap();
        let told: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
        assert_eq!(output.code(), Some(0), "{what}: {told:#}");
        let now = snapshot(&lab);
        match told["outcome"].as_str().unwrap() {
            "new" => {
                assert_eq!(now, new, "{what}: {told:#}");
                completed += 1;
                isolate(&lab);
            }
            "old" | "nothing" => {
                assert_eq!(now, old, "{what}: {told:#}");
                undone += 1;
            }
            other => panic!("{what}: {other}"),
        }
    }
    assert!(
        undone > 20 && completed > 3,
        "{undone} undone, {completed} completed"
    );
    let warnings = lab.dmesg().unwrap();
    assert!(!warnings.contains("cut here"), "{warnings}");
}

/// Expects a join of the first endpoint with another to be refused for this reason, and nothing to change.
fn refused(lab: &Lab, other: &str, reason: &str) {
    let before = snapshot(lab);
    let output = apply(lab, &["--join", ENDPOINTS[0], other]);
    assert_eq!(output.code(), Some(2), "{output:?}");
    let first = "refused, and nothing was changed";
    assert!(output.stdout.contains(first), "{}", output.stdout);
    // Lines are broken to the width of the terminal.
    let words: Vec<&str> = output.stdout.split_whitespace().collect();
    assert!(words.join(" ").contains(reason), "{}", output.stdout);
    let plan = lab
        .run(["p2pctl", "plan", "--join", ENDPOINTS[0], other])
        .unwrap();
    assert_eq!(plan.code(), Some(2), "{plan:?}");
    let words: Vec<&str> = plan.stdout.split_whitespace().collect();
    assert!(words.join(" ").contains(reason), "{}", plan.stdout);
    assert_eq!(snapshot(lab), before);
}

#[test]
fn told_to_stop_it_leaves_the_old_or_the_new_state_and_nothing_unfinished() {
    let lab = lab(4);
    let [a, b, ..] = ENDPOINTS;
    apply(&lab, &["--join", a, b]).ok().unwrap();
    isolate(&lab);
    let old = snapshot(&lab);
    apply(&lab, &["--join", a, b]).ok().unwrap();
    let new = snapshot(&lab);
    isolate(&lab);
    // As soon as something was begun, and when more and more of it is done.
    for records in [1, 9, 21, 33] {
        let script = format!(
            "rm -f /tmp/told; p2pctl apply --join {a} {b} 2>/tmp/told & \
             until [ $(wc -l </var/lib/p2pctl/running.jsonl 2>/dev/null || echo 0) -ge {records} ]; do \
             kill -0 $! || break; usleep 1000; done; \
             kill -INT $!; kill -TERM $!; wait $!; echo ended with $?"
        );
        let command = lab.command(["sh", "-c", &script]).deadline(TRANSACTION);
        let output = command.run().unwrap();
        let told = lab.read("/tmp/told").unwrap();
        let what = format!("after {records} records: {output:?} {told}");
        let now = snapshot(&lab);
        if output.stdout.ends_with("ended with 0\n") {
            assert_eq!(now, new, "{what}");
            isolate(&lab);
        } else {
            assert!(
                output
                    .stdout
                    .contains("failed, and undone: the host is as it was"),
                "{what}"
            );
            assert!(output.stdout.ends_with("ended with 1\n"), "{what}");
            assert!(told.contains("stopping: the change is undone"), "{what}");
            assert_eq!(now, old, "{what}");
        }
        let status = lab.run(["p2pctl", "status"]).unwrap().ok().unwrap();
        assert!(status.starts_with("nothing is under way"), "{status}");
    }
}

#[test]
fn virtual_functions_of_what_is_taken_away_are_made_again() {
    let lab = lab(4);
    let [a, _, _, card] = ENDPOINTS;
    let made = format!("/sys/bus/pci/devices/{card}/sriov_numvfs");
    lab.sh(&format!(
        "echo 1 > /sys/module/vfio_pci/parameters/enable_sriov; echo 2 > {made}"
    ))
    .unwrap();
    let goals = join(&[a, card]);
    let before = scan(&lab);
    let virtuals = before.virtual_functions(sbdf(card)).map(|f| f.sbdf());
    let virtuals: BTreeSet<Sbdf> = virtuals.collect();
    assert_eq!(virtuals.len(), 2);
    let everybody: BTreeSet<Sbdf> = before.functions().iter().map(|f| f.sbdf()).collect();
    let options = PlanOptions {
        with: everybody.clone(),
        expose: everybody,
        ..PlanOptions::default()
    };
    let plan = Plan::make(&before, &Kernel::of(&before), &goals, &options).unwrap();
    assert_eq!(plan.lost, virtuals);
    lab.put_bytes(plan.to_json().as_bytes(), "/tmp/plan.json", 0o600)
        .unwrap();
    apply(&lab, &["/tmp/plan.json"]).ok().unwrap();
    assert_eq!(lab.read(&made).unwrap().trim(), "2");
    let after = scan(&lab);
    assert!(virtuals.iter().all(|at| after.get(*at).is_some()));
    assert!(Groups::found(&after).together(sbdf(a), sbdf(card)));
    lab.sh(&format!("echo 0 > {made}")).unwrap();
    apply(&lab, &["--isolate", a, card, "--expose", a, card])
        .ok()
        .unwrap();
}

#[test]
fn what_is_in_use_is_left_alone() {
    let lab = lab(2);
    let [a, b, drive, card] = ENDPOINTS;
    lab.bind(drive, "nvme").unwrap();
    lab.bind(card, "igb").unwrap();

    refused(&lab, drive, "05:00.0 is bound to nvme (stop what uses it");
    lab.sh("modprobe ext4 && mke2fs -F /dev/nvme0n1 >/dev/null && mkdir -p /mnt && mount -t ext4 /dev/nvme0n1 /mnt")
        .unwrap();
    refused(
        &lab,
        drive,
        "05:00.0: nvme0n1 is mounted on /mnt (umount it, or leave 05:00.0 out)",
    );
    lab.sh("umount /mnt && mkswap /dev/nvme0n1 >/dev/null && swapon /dev/nvme0n1")
        .unwrap();
    refused(
        &lab,
        drive,
        "05:00.0: nvme0n1 is in use as swap space (swapoff /dev/nvme0n1",
    );
    lab.sh("swapoff /dev/nvme0n1").unwrap();

    let interface = lab
        .sh(&format!("ls /sys/bus/pci/devices/{card}/net"))
        .unwrap();
    let interface = interface.trim();
    lab.sh(&format!("ifconfig {interface} up")).unwrap();
    refused(
        &lab,
        card,
        &format!("06:00.0: {interface} is up (ip link set {interface} down"),
    );
    lab.sh(&format!("ifconfig {interface} down")).unwrap();

    let group = lab.group(b).unwrap();
    let open = format!("exec 3<>/dev/vfio/{group}; echo open; exec sleep 600");
    let holder = lab.command(["sh", "-c", &open]).deadline(TRANSACTION);
    let mut holder = holder.spawn().unwrap();
    holder.wait_for("open", TRANSACTION).unwrap();
    refused(&lab, b, "04:00.0 is in use by sleep (process");
    drop(holder);
    for endpoint in [drive, card] {
        lab.bind_vfio(endpoint).unwrap();
    }
    assert_eq!(lab.driver(a).unwrap().as_deref(), Some("vfio-pci"));
}
