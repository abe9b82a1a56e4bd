//! `p2pctl draw`.

use std::fs;

use test_machine::hosts;

use crate::run::{OnDisk, on};

#[test]
fn a_picture_names_devices_and_groups() {
    let svg = on(
        "switch-without-acs",
        &["draw", "--title", "Rack 7 & \"friends\""],
    )
    .stdout;
    assert!(svg.starts_with("<svg "), "{svg}");
    assert!(svg.ends_with("</svg>\n"));
    for text in [
        ">Rack 7 &amp; &quot;friends&quot;<",
        ">03:00.0  NVMe 1b36:0010<",
        ">g4<",
        ">no ACS<",
        ">ACS on<",
    ] {
        assert!(svg.contains(text), "{text}");
    }
    // What no peer can reach is left out unless asked for.
    assert!(!svg.contains("host bridge"));
    let all = on("switch-without-acs", &["draw", "--all"]).stdout;
    assert!(all.contains("host bridge"));
}

#[test]
fn a_picture_can_go_to_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("machine.svg");
    let machine = OnDisk::new(&hosts::sriov_1000());
    let run = machine.run(&["draw", "-o", file.to_str().unwrap()]);
    assert_eq!((run.status, run.stdout.as_str()), (0, ""));
    let svg = fs::read_to_string(&file).unwrap();
    assert!(svg.contains("1000 VFs"));
    let run = machine.run(&["draw", "-o", "/no/such/dir/machine.svg"]);
    assert_eq!(run.status, 1);
    assert!(
        run.stderr.contains("cannot write /no/such/dir/machine.svg"),
        "{}",
        run.stderr
    );
}
