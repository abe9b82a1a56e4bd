//! `p2pctl apply`, `recover` and `status` as far as they write nothing to a host: the lab has the rest.

use std::fs;
use std::path::Path;

use test_machine::hosts;

use crate::run::{OnDisk, Run, fixture, p2pctl};

/// Two drives below a switch; nvme has the second one.
struct Bench {
    machine: OnDisk,
    state: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let machine = OnDisk::new(&hosts::named("switch-without-acs"));
        let proc = machine.sys().join("../proc");
        fs::create_dir_all(proc.join("sys/kernel/random")).unwrap();
        fs::write(proc.join("sys/kernel/random/boot_id"), "first\n").unwrap();
        Self {
            machine,
            state: tempfile::tempdir().unwrap(),
        }
    }

    /// Takes the second drive from nvme.
    fn unbind(&self) {
        let driver = "bus/pci/devices/0000:04:00.0/driver";
        fs::remove_file(self.machine.sys().join(driver)).unwrap();
    }

    fn state(&self) -> &Path {
        self.state.path()
    }

    fn run(&self, args: &[&str]) -> Run {
        let state = ["--state-dir", self.state().to_str().unwrap()];
        let args: Vec<&str> = args.iter().copied().chain(state).collect();
        self.machine.run(&args)
    }
}

const JOIN: [&str; 3] = ["--join", "03:00.0", "04:00.0"];

#[test]
fn a_device_that_a_driver_uses_blocks_and_nothing_is_changed() {
    let bench = Bench::new();
    let run = bench.run(&[&["apply"][..], &JOIN].concat());
    assert_eq!(run.status, 2, "{run:?}");
    assert_eq!(
        run.stdout,
        "join 03:00.0 04:00.0: refused, and nothing was changed

  blocked    04:00.0 is bound to nvme (stop what uses it and bind it to
             vfio-pci, or leave 04:00.0 out)
"
    );
    assert_eq!(run.stderr, "");
    let status = bench.run(&["status"]);
    assert_eq!(
        (status.status, status.stdout.as_str()),
        (0, "nothing is under way\n")
    );
}

#[test]
fn a_dry_run_shows_the_plan_and_what_is_in_its_way() {
    let bench = Bench::new();
    let run = bench.run(&[&["apply", "--dry-run"][..], &JOIN].concat());
    assert_eq!(run.status, 2);
    assert!(
        run.stdout.contains("04:00.0 is bound to nvme"),
        "{}",
        run.stdout
    );
    assert!(
        run.stdout.contains("    3  remove 02:00.0 02:01.0\n"),
        "{}",
        run.stdout
    );
    bench.unbind();
    let run = bench.run(&[&["apply", "--dry-run"][..], &JOIN].concat());
    assert_eq!(run.status, 0, "{run:?}");
    assert!(
        run.stdout
            .starts_with("join 03:00.0 04:00.0: can be done\n")
    );
    let left: Vec<_> = fs::read_dir(bench.state()).unwrap().collect();
    assert!(left.is_empty(), "not even a journal: {left:?}");
}

#[test]
fn a_plan_says_what_apply_would_refuse_it_for() {
    let bench = Bench::new();
    let run = bench.run(&[&["plan"][..], &JOIN].concat());
    assert_eq!(run.status, 2, "{run:?}");
    assert!(
        run.stdout.starts_with(
            "join 03:00.0 04:00.0: refused while it is blocked

  blocked    04:00.0 is bound to nvme (stop what uses it and bind it to
             vfio-pci, or leave 04:00.0 out)
  unplug     "
        ),
        "{}",
        run.stdout
    );
    assert!(
        run.stdout
            .ends_with("nothing was changed. `apply` would refuse this plan now\n"),
        "{}",
        run.stdout
    );
    let document = bench.run(&[&["plan", "--json"][..], &JOIN].concat()).json();
    assert_eq!(document["acceptable"], true);
    assert_eq!(document["blockers"][0]["blocker"], "driver");
    assert_eq!(document["guests"], serde_json::json!([]));
    bench.unbind();
    let run = bench.run(&[&["plan"][..], &JOIN].concat());
    assert_eq!(run.status, 0, "{run:?}");
    assert!(
        run.stdout.ends_with("\nnothing was changed\n"),
        "{}",
        run.stdout
    );
}

#[test]
fn a_plan_from_a_file_is_refused_when_the_host_has_changed() {
    let bench = Bench::new();
    bench.unbind();
    let file = bench.state().join("plan.json");
    let file = file.to_str().unwrap();
    let run = bench.run(&[&["plan", "-o", file][..], &JOIN].concat());
    assert_eq!(run.status, 0, "{run:?}");
    let gone = bench.machine.sys().join("bus/pci/devices/0000:04:00.0");
    fs::rename(&gone, gone.with_extension("gone")).unwrap();
    let run = bench.run(&["apply", file, "--json"]);
    assert_eq!(run.status, 2, "{run:?}");
    let document = run.json();
    assert_eq!(document["outcome"], "refused");
    assert_eq!(document["blockers"][0]["blocker"], "impossible");
    let text = document["blockers"][0]["text"].as_str().unwrap();
    assert!(text.contains("0000:04:00.0"), "{text}");
}

#[test]
fn a_reset_of_what_is_in_use_or_cannot_be_reset_is_refused() {
    let bench = Bench::new();
    let run = bench.run(&["reset", "04:00.0", "--kind", "any"]);
    assert_eq!(run.status, 2, "{run:?}");
    let title = "reset 04:00.0: refused, and nothing was changed\n\n  blocked    ";
    assert!(run.stdout.starts_with(title), "{}", run.stdout);
    let run = bench.run(&["reset", "04:00.0", "--kind", "acpi", "--json"]);
    assert_eq!(run.status, 2, "{run:?}");
    let document = run.json();
    assert_eq!(document["schema"], "p2pctl/reset/1");
    assert_eq!(document["outcome"], "refused");
    assert_eq!(document["kind"], serde_json::Value::Null);
    let text = document["reasons"][0].as_str().unwrap();
    assert!(
        text.contains("0000:04:00.0") && text.contains("acpi"),
        "{text}"
    );
    let run = bench.run(&["reset", "0b:00.0"]);
    assert_eq!(run.status, 1, "{run:?}");
    assert!(run.stderr.contains("there is no PCI function"), "{run:?}");
}

#[test]
fn only_a_host_can_be_changed() {
    let file = fixture("switch-without-acs");
    let from = ["--from", file.to_str().unwrap()];
    for command in [
        &["apply"][..],
        &["recover"],
        &["status"],
        &["reset", "03:00.0"],
    ] {
        let run = p2pctl(command.iter().copied().chain(from));
        assert_eq!((run.status, run.stdout.as_str()), (1, ""));
        assert!(run.stderr.contains("omit --from"), "{}", run.stderr);
    }
    let run = Bench::new().run(&["apply"]);
    assert_eq!(run.status, 1);
    assert!(
        run.stderr.contains("--join, --isolate or --acs"),
        "{}",
        run.stderr
    );
}

#[test]
fn what_was_interrupted_is_said_and_has_to_be_recovered_first() {
    let bench = Bench::new();
    let nothing = bench.run(&["recover"]);
    assert_eq!(
        (nothing.status, nothing.stdout.as_str()),
        (0, "nothing to recover: no change was interrupted\n")
    );
    let journal = bench.state().join("running.jsonl");
    fs::write(&journal, "{\"at_ms\":1,\"rec").unwrap();
    let status = bench.run(&["status"]);
    assert_eq!(status.status, 1);
    assert!(
        status
            .stdout
            .starts_with("a change was interrupted: p2pctl recover")
    );
    let run = bench.run(&[&["apply", "--json"][..], &JOIN].concat());
    assert_eq!(run.status, 2);
    assert_eq!(run.json()["blockers"][0]["blocker"], "unfinished");
    assert_eq!(bench.run(&["recover"]).status, 0);
    assert!(!journal.exists(), "it had not even begun");
    fs::write(
        &journal,
        "{\"at_ms\":1,\"record\":\"begin\",\"version\":99}\n",
    )
    .unwrap();
    let run = bench.run(&["recover"]);
    assert_eq!(run.status, 1);
    assert!(run.stderr.contains("line 1: version 99"), "{}", run.stderr);
}
