//! Where the facts come from, and what is said when there are none.

use std::fs;

use test_machine::{Machine, hosts};

use crate::run::{OnDisk, fixture, on, p2pctl};

#[test]
fn a_host_without_iommu_is_told_what_to_do() {
    let machine = Machine::new("00:00.0 host id=8086:29c0");
    let run = OnDisk::new(&machine).run(&["groups"]);
    assert_eq!((run.status, run.stdout.as_str()), (0, ""));
    // Where lines break depends on the path of the machine.
    let words: Vec<&str> = run.stderr.split_whitespace().collect();
    let text = words.join(" ");
    assert!(text.contains("no IOMMU is in use"), "{text}");
    assert!(text.contains("intel_iommu=on"), "{text}");
}

#[test]
fn an_empty_sysfs_has_no_pci() {
    let empty = tempfile::tempdir().unwrap();
    let path = empty.path().to_str().unwrap();
    for command in ["topology", "groups", "dump"] {
        let run = p2pctl([command, "--sysfs", path]);
        assert_eq!((run.status, run.stdout.as_str()), (1, ""));
        assert_eq!(
            run.stderr,
            format!("error: there is no PCI bus: {path}/bus/pci/devices does not exist\n")
        );
    }
    fs::create_dir_all(empty.path().join("bus/pci/devices")).unwrap();
    let run = p2pctl(["topology", "--sysfs", path]);
    assert_eq!(run.status, 1);
    assert_eq!(
        run.stderr,
        format!("error: there is no PCI function in {path}\n")
    );
}

#[test]
fn a_dump_is_read_back_as_the_machine_it_was_written_from() {
    let machine = OnDisk::new(&hosts::many(100));
    let dump = machine.run(&["dump"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &dump.stdout).unwrap();
    let from = ["--from", file.path().to_str().unwrap()];
    assert_eq!(p2pctl(["dump"].into_iter().chain(from)).stdout, dump.stdout);
    for args in [&["topology"][..], &["groups"], &["topology", "--json"]] {
        let read_back = p2pctl(args.iter().copied().chain(from));
        assert_eq!(read_back.stdout, machine.run(args).stdout, "{args:?}");
    }
}

#[test]
fn files_that_are_no_machine() {
    let good = fs::read_to_string(fixture("switch-without-acs")).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    for (text, why) in [
        (String::new(), "not a topology file"),
        ("{}".to_owned(), "not a topology file"),
        (good[..good.len() / 2].to_owned(), "not a topology file"),
        (
            good.replace("pci-topology", "recipe"),
            "its format is `recipe`",
        ),
        (
            good.replace("\"version\": 1", "\"version\": 99"),
            "version 99",
        ),
        (
            good.replace("0000:02:01.0", "0000:02:21.0"),
            "the device `21`",
        ),
        (
            good.replace("\"parent\": \"pci0000:00\"", "\"parent\": \"pci\""),
            "parent `pci`",
        ),
    ] {
        fs::write(file.path(), &text).unwrap();
        let run = p2pctl(["topology", "--from", path]);
        assert_eq!((run.status, run.stdout.as_str()), (1, ""), "{why}");
        assert!(
            run.stderr
                .starts_with(&format!("error: cannot use {path}: ")),
            "{}",
            run.stderr
        );
        assert!(run.stderr.contains(why), "{why}: {}", run.stderr);
    }
    let run = p2pctl(["topology", "--from", "/no/such/file"]);
    assert_eq!(run.status, 1);
    assert!(
        run.stderr
            .contains("cannot read /no/such/file: No such file"),
        "{}",
        run.stderr
    );
}

#[test]
fn a_function_that_is_not_there() {
    let run = on("switch-without-acs", &["topology", "77:00.0"]);
    assert_eq!((run.status, run.stdout.as_str()), (1, ""));
    assert!(
        run.stderr.contains("no PCI function 0000:77:00.0"),
        "{}",
        run.stderr
    );
    let run = on("switch-without-acs", &["topology", "77:40.0"]);
    assert_eq!(run.status, 1);
    assert!(
        run.stderr.contains("the device `40` is not hexadecimal"),
        "{}",
        run.stderr
    );
}

#[test]
fn wrong_command_lines_fail_and_are_not_refusals() {
    for args in [&["groups", "--colour"][..], &["nonsense"], &[]] {
        let run = p2pctl(args);
        assert_eq!((run.status, run.stdout.as_str()), (1, ""), "{args:?}");
    }
    let run = p2pctl(["groups", "--from", "a", "--sysfs", "b"]);
    assert_eq!(run.status, 1);
    assert_eq!(p2pctl(["--help"]).status, 0);
    assert_eq!(p2pctl(["--version"]).status, 0);
}

#[test]
fn colour_only_where_it_is_asked_for() {
    let escape = '\u{1b}';
    assert!(!on("vmd", &["topology"]).stdout.contains(escape));
    assert!(
        on("vmd", &["topology", "--color", "always"])
            .stdout
            .contains(escape)
    );
}

#[test]
fn completions_and_the_manual_page() {
    for shell in ["bash", "zsh", "fish"] {
        let run = p2pctl(["completions", shell]);
        assert!(run.stdout.contains("topology"), "{shell}");
    }
    assert!(p2pctl(["man"]).stdout.contains(".TH p2pctl 1"));
    let page = p2pctl(["man", "explain"]);
    assert!(page.stdout.contains("same\\-group"), "{}", page.stdout);
    let run = p2pctl(["man", "everything"]);
    assert_eq!(run.status, 1);
    assert!(
        run.stderr.contains("no command `everything`"),
        "{}",
        run.stderr
    );
}

#[test]
fn front_is_a_hidden_name_of_proxy() {
    let (old, new) = (p2pctl(["front", "--help"]), p2pctl(["proxy", "--help"]));
    assert_eq!((old.status, &old.stdout), (0, &new.stdout));
    assert!(!p2pctl(["--help"]).stdout.contains("front"));
}
