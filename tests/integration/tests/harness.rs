//! The harness itself: what every other lab test takes for granted.

use std::time::{Duration, Instant};

use lab::protocol::Exit;
use lab::{Lab, Profile, SharedLab};

static LAB: SharedLab = SharedLab::new("edu-two-groups", "harness");

#[test]
fn the_host_has_what_a_vmm_needs() {
    let lab = LAB.turn();
    lab.sh("test -c /dev/kvm && test -c /dev/vfio/vfio && test -f /lab/vmlinuz && test -f /lab/guest.cpio")
        .unwrap();
    let devices = lab.find_devices("1234:11e8").unwrap();
    assert_eq!(devices, ["0000:03:00.0", "0000:04:00.0"]);
    assert!(lab.dmesg().unwrap().contains("DMAR: IOMMU enabled"));
}

#[test]
fn groups_are_as_the_profile_says() {
    let lab = LAB.turn();
    let groups = lab.groups().unwrap();
    let group = lab.group("0000:03:00.0").unwrap();
    let (_, members) = groups.iter().find(|(id, _)| *id == group).unwrap();
    assert_eq!(members, &["0000:02:00.0", "0000:03:00.0"]);
    assert_ne!(group, lab.group("0000:04:00.0").unwrap());
}

#[test]
fn exit_codes_and_both_streams_come_back() {
    let lab = LAB.turn();
    let output = lab
        .command(["sh", "-c", "cat; echo $WORD >&2; exit 7"])
        .env("WORD", "error")
        .stdin("input")
        .run()
        .unwrap();
    assert_eq!(output.exit, Exit::Code(7));
    assert_eq!(output.stdout, "input");
    assert_eq!(output.stderr, "error\n");
    assert!(output.ok().unwrap_err().to_string().contains("exit code 7"));
}

#[test]
fn a_program_that_is_not_there_is_an_error_that_names_it() {
    let lab = LAB.turn();
    let error = lab.run(["no-such-program"]).unwrap_err().to_string();
    assert!(error.contains("no-such-program"), "{error}");
}

#[test]
fn a_command_over_its_deadline_is_killed_with_its_children() {
    let lab = LAB.turn();
    let started = Instant::now();
    let output = lab
        .command(["sh", "-c", "echo before; sleep 4321 & sleep 4321"])
        .deadline(Duration::from_secs(5))
        .run()
        .unwrap();
    assert_eq!(output.exit, Exit::TimedOut);
    assert_eq!(output.stdout, "before\n");
    assert!(started.elapsed() < Duration::from_secs(60));
    let processes = lab.run(["ps", "-o", "args"]).unwrap().ok().unwrap();
    assert!(!processes.contains("sleep 4321"), "{processes}");
}

#[test]
fn a_slow_command_holds_up_no_other() {
    let lab = LAB.turn();
    let mut slow = lab
        .command(["sh", "-c", "echo begun; exec sleep 4322"])
        .spawn()
        .unwrap();
    slow.wait_for("begun", Duration::from_secs(30)).unwrap();
    lab.run(["true"]).unwrap().ok().unwrap();
    assert!(!slow.has_ended().unwrap());
    slow.signal(15).unwrap();
    assert_eq!(slow.wait().unwrap().exit, Exit::Signal(15));
}

#[test]
fn waiting_for_words_that_never_come_tells_what_came() {
    let lab = LAB.turn();
    let mut command = lab.command(["echo", "something else"]).spawn().unwrap();
    let error = command
        .wait_for("the word", Duration::from_secs(30))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("exit code 0 before it said \"the word\""),
        "{error}"
    );
    assert!(error.contains("something else"), "{error}");
}

#[test]
fn files_of_several_pieces_go_in_and_come_out() {
    let lab = LAB.turn();
    let content: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    lab.put_bytes(&content, "/tmp/new/file", 0o755).unwrap();
    let size = lab.sh("stat -c '%s %a' /tmp/new/file").unwrap();
    assert_eq!(size, "3000000 755\n");
    assert_eq!(lab.get("/tmp/new/file").unwrap(), content);
    let error = lab.get("/tmp/none").unwrap_err().to_string();
    assert!(error.contains("/tmp/none"), "{error}");
}

#[test]
fn a_failed_test_leaves_the_logs_behind() {
    let lab = LAB.turn();
    let profile = Profile::parse("description = 'nothing but a root complex'").unwrap();
    let failing = lab.boot_beside(&profile, "harness-failing").unwrap();
    let dir = failing.dir().to_owned();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _lab: Lab = failing;
        panic!("on purpose: the lab's post-mortem is under test");
    }));
    assert!(caught.is_err());
    let read = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
    assert!(read("lspci.txt").contains("00:1f.0"));
    assert!(read("dmesg.txt").contains("Linux version"));
    assert!(dir.join("serial.log").is_file());
}

#[test]
fn a_host_that_dies_is_an_error_and_not_a_hang() {
    let lab = LAB.turn();
    let profile = Profile::parse("description = 'nothing but a root complex'").unwrap();
    let dying = lab.boot_beside(&profile, "harness-dying").unwrap();
    let error = dying
        .sh("echo o > /proc/sysrq-trigger; sleep 60")
        .unwrap_err();
    assert!(
        error.to_string().contains("the lab host is gone"),
        "{error:#}"
    );
    let error = dying.run(["true"]).unwrap_err();
    assert!(
        error.to_string().contains("the lab host is gone"),
        "{error:#}"
    );
}
