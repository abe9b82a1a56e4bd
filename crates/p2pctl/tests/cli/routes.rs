//! `p2pctl matrix` and `p2pctl explain`.

use test_machine::hosts;

use crate::run::{OnDisk, on};

#[test]
fn the_matrix_of_a_switch_without_acs() {
    let run = on("switch-without-acs", &["matrix"]);
    assert_eq!(
        run.stdout,
        "         03:00.0  04:00.0  05:00.0
03:00.0     ·        g        h
04:00.0     g        ·        h
05:00.0     h        h        ·

rows are initiators, columns are targets
g  refused: different IOMMU groups (p2pctl plan --join A B)
h  refused: only through a root complex that is not known to route P2P

! groups 4 and 5 are separate in Linux, but switch 01:00.0 routes between
  03:00.0 and 04:00.0 without the IOMMU.
  Do not give them to different tenants. p2pctl explain 03:00.0 04:00.0
"
    );
    assert_eq!((run.status, run.stderr.as_str()), (0, ""));
}

#[test]
fn joined_drives_reach_each_other_and_neighbours_are_warned_of() {
    let run = on("switch-joined", &["matrix"]);
    assert!(
        run.stdout
            .contains("03:00.0     ·        ●        g        g\n"),
        "{}",
        run.stdout
    );
    assert!(
        run.stdout.contains(
            "! groups 2, 5 and 6 are separate in Linux, but switch 01:00.0 routes from\n  03:00.0 and 04:00.0 to \
             05:00.0 and 06:00.0 without the IOMMU.\n"
        ),
        "{}",
        run.stdout
    );
    let quiet = on("switch-four-nvme", &["matrix"]);
    assert!(!quiet.stdout.contains('!'), "{}", quiet.stdout);
}

#[test]
fn a_large_matrix_has_numbers_and_stays_within_80_columns() {
    let run = on("gpu-server-two-sockets", &["matrix"]);
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(
        lines[2],
        "  1  18:00.0  GPU 10de:2330        · g g g g i i i i i i i i i i i i i i i i i"
    );
    assert!(
        lines.iter().all(|line| line.chars().count() <= 80),
        "{}",
        run.stdout
    );
}

#[test]
fn a_policy_by_name_allows_routes_through_the_iommu() {
    let refused = on("gpu-server-epyc", &["explain", "01:00.0", "02:00.0"]);
    assert_eq!(refused.status, 2);
    assert!(
        refused.stdout.contains("--policy same-vm"),
        "{}",
        refused.stdout
    );
    let allowed = on(
        "gpu-server-epyc",
        &["explain", "01:00.0", "02:00.0", "--policy", "same-vm"],
    );
    assert_eq!(allowed.status, 0);
    assert!(
        allowed
            .stdout
            .starts_with("01:00.0 → 02:00.0: allowed, through the IOMMU\n"),
        "{}",
        allowed.stdout
    );
}

#[test]
fn a_port_stands_for_the_devices_below_it() {
    let json = on("gpu-server-two-sockets", &["matrix", "16:00.0", "--json"]).json();
    assert_eq!(json["schema"], "p2pctl/matrix/1");
    assert_eq!(json["functions"].as_array().unwrap().len(), 5);
    assert_eq!(json["pairs"].as_array().unwrap().len(), 20);
    let run = OnDisk::new(&hosts::sriov_1000()).run(&["matrix", "00:01.0"]);
    assert_eq!(run.status, 1);
    assert!(
        run.stderr.contains("1001 functions are too many"),
        "{}",
        run.stderr
    );
}

#[test]
fn a_refusal_is_explained_with_the_way_out() {
    let run = on(
        "switch-without-acs",
        &["explain", "03:00.0", "0000:04:00.0"],
    );
    assert_eq!(
        run.stdout,
        "03:00.0 → 04:00.0: refused

  group     03:00.0 is in group 4, 04:00.0 in group 5
            03:00.0: in the group of 02:00.0, because that port has no ACS
            04:00.0: in the group of 02:01.0, because that port has no ACS
  path      03:00.0 → 02:00.0 (no ACS) → [01:00.0] → 02:01.0 → 04:00.0
  hardware  a request goes directly across switch 01:00.0, untranslated: 02:00.0
            does not redirect it, so it bypasses the IOMMU
  kernel    p2pdma, for this kernel's own drivers: by bus address (distance 4)
  so        P2P needs one group: p2pctl plan --join 03:00.0 04:00.0

04:00.0 → 03:00.0: refused, for the same reasons

! groups 4 and 5 are separate in Linux, but switch 01:00.0 routes between
  03:00.0 and 04:00.0 without the IOMMU.
  Do not give them to different tenants. p2pctl explain 03:00.0 04:00.0
"
    );
    assert_eq!((run.status, run.stderr.as_str()), (2, ""));
}

#[test]
fn an_allowed_pair_is_told_what_the_guest_must_see() {
    let run = on("switch-joined", &["explain", "3:0.0", "4:0.0"]);
    assert_eq!(run.status, 0);
    assert!(
        run.stdout.contains(
            "  so        the guest must see 04:00.0 at its bus addresses: BAR0 0x80100000\n            (16K), BAR4 \
             0x38001000000 (16M)\n"
        ),
        "{}",
        run.stdout
    );
}

#[test]
fn without_root_nothing_is_decided() {
    let run = on("unprivileged", &["explain", "03:00.0", "04:00.0"]);
    assert_eq!(run.status, 2);
    assert!(
        run.stdout.starts_with("03:00.0 → 04:00.0: unknown\n"),
        "{}",
        run.stdout
    );
    assert!(
        run.stdout.contains("so        run as root"),
        "{}",
        run.stdout
    );
    let run = on("unprivileged", &["matrix"]);
    assert!(
        run.stdout.contains("03:00.0     ·        ?        ?\n"),
        "{}",
        run.stdout
    );
    assert!(
        run.stdout.contains("?  unknown: run as root"),
        "{}",
        run.stdout
    );
}

#[test]
fn what_is_no_pair_of_devices_is_an_error() {
    let run = on("switch-without-acs", &["explain", "03:00.0", "03:00.0"]);
    assert_eq!(run.status, 1);
    assert!(
        run.stderr.contains("are the same function"),
        "{}",
        run.stderr
    );
    let run = on("switch-without-acs", &["explain", "03:00.0", "09:00.0"]);
    assert_eq!(run.status, 1);
    let run = on("switch-without-acs", &["explain", "03:00.0", "02:00.0"]);
    assert_eq!(run.status, 2);
    assert!(
        run.stdout.contains("02:00.0 is a port or bridge"),
        "{}",
        run.stdout
    );
}

#[test]
fn rules_of_a_policy_file_count_in_matrix_and_explain() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p2p.toml");
    let rule = "[[device]]\nvendor = '1b36'\np2p = 'never'\nwhy = 'not here'\n";
    std::fs::write(&file, rule).unwrap();
    let flag = ["--policy-file", file.to_str().unwrap()];
    let pair = ["03:00.0", "04:00.0"];
    let allowed = on(
        "switch-joined",
        &[&["explain", "--json"], &pair[..]].concat(),
    );
    assert_eq!(allowed.status, 0, "{allowed:?}");
    for command in ["explain", "matrix"] {
        let run = on(
            "switch-joined",
            &[&[command, "--json"], &pair[..], &flag[..]].concat(),
        );
        let document = run.json();
        let first = &document["pairs"][0];
        assert_eq!(first["allowed"], false, "{command}: {document}");
        let kinds: Vec<_> = first["reasons"].as_array().unwrap().iter().collect();
        assert_eq!(kinds.len(), 2, "one for each device: {kinds:?}");
        for reason in kinds {
            assert_eq!(reason["kind"], "role", "{reason}");
        }
    }
    let refused = on(
        "switch-joined",
        &[&["explain"], &pair[..], &flag[..]].concat(),
    );
    assert_eq!(refused.status, 2, "{refused:?}");
    assert!(
        refused.stdout.contains("takes no part in peer-to-peer"),
        "{}",
        refused.stdout
    );
}
