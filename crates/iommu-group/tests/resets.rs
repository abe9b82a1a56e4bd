//! Kinds of resets, and whom they hit.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set up its machine should stop"
)]

use std::collections::BTreeSet;

use iommu_group::{Kernel, ResetKind, ResetMask, Topology};
use test_machine::{Machine, bdf};

/// The resets of a function: kind, `!` if the kernel uses it for the function alone, and whom it hits.
fn resets(topology: &Topology, function: &str) -> Vec<String> {
    topology
        .resets(&Kernel::of(topology), bdf(function))
        .iter()
        .map(|reset| {
            let mark = if reset.resets_function { "!" } else { "" };
            let hits: Vec<String> = reset
                .hits
                .iter()
                .map(|f| f.to_string()[5..].to_owned())
                .collect();
            format!("{}{mark}: {}", reset.kind, hits.join(" "))
        })
        .collect()
}

#[test]
fn a_function_alone_on_its_link() {
    let topology =
        Machine::new("\n00:01.0 root-port\n 01:00.0 endpoint flr pm=0 reset=flr,pm,bus").topology();
    assert_eq!(
        resets(&topology, "01:00.0"),
        ["flr!: 01:00.0", "pm!: 01:00.0", "bus!: 01:00.0"]
    );
    assert_eq!(resets(&topology, "00:01.0"), [""; 0]);
    assert_eq!(resets(&topology, "09:00.0"), [""; 0]);
}

#[test]
fn what_is_switched_off_is_still_possible_but_not_used() {
    let topology = Machine::new("\n00:01.0 root-port\n 01:00.0 endpoint flr reset=bus").topology();
    assert_eq!(
        resets(&topology, "01:00.0"),
        ["flr: 01:00.0", "bus!: 01:00.0"]
    );
    let none = Machine::new("\n00:01.0 root-port\n 01:00.0 endpoint").topology();
    assert_eq!(resets(&none, "01:00.0"), ["bus: 01:00.0"]);
}

#[test]
fn a_link_with_several_functions_is_hit_as_a_whole() {
    let text = "
00:01.0 root-port
  01:00.0 endpoint mf flr reset=flr
  01:00.1 endpoint mf
";
    let topology = Machine::new(text).topology();
    assert_eq!(
        resets(&topology, "01:00.0"),
        ["flr!: 01:00.0", "bus: 01:00.0 01:00.1"]
    );
    let slot = Machine::new(&text.replace("root-port", "root-port slot pciehp")).topology();
    assert_eq!(resets(&slot, "01:00.1"), ["slot: 01:00.0 01:00.1"]);
}

#[test]
fn a_slot_is_reset_where_native_hotplug_serves_it() {
    let text = "\n00:01.0 root-port slot pciehp\n 01:00.0 endpoint reset=bus";
    assert_eq!(
        resets(&Machine::new(text).topology(), "01:00.0"),
        ["slot!: 01:00.0"]
    );
}

#[test]
fn a_reset_of_a_bus_hits_all_that_is_below() {
    let text = "
00:01.0 root-port
  01:00.0 upstream
    02:00.0 downstream
      03:00.0 endpoint sriov=2
      03:10.0 endpoint vf=03:00.0
      04:00.0 endpoint vf=03:00.0
    02:01.0 downstream
      05:00.0 endpoint
";
    let topology = Machine::new(text).topology();
    assert_eq!(
        resets(&topology, "01:00.0"),
        ["bus: 01:00.0 02:00.0 02:01.0 03:00.0 03:10.0 04:00.0 05:00.0"]
    );
    let reset = &topology.resets(&Kernel::of(&topology), bdf("01:00.0"))[0];
    assert_eq!(reset.hit_ports, ["01:00.0", "02:00.0", "02:01.0"].map(bdf));
    assert_eq!(reset.port, Some(bdf("00:01.0")));
    assert_eq!(
        resets(&topology, "03:00.0"),
        ["bus: 03:00.0 03:10.0 04:00.0"]
    );
    // A virtual function on a bus without a bridge has no link of its own to reset.
    assert_eq!(resets(&topology, "04:00.0"), [""; 0]);
    assert_eq!(
        resets(&topology, "03:10.0"),
        ["bus: 03:00.0 03:10.0 04:00.0"]
    );
}

#[test]
fn virtual_functions_go_with_their_physical_one() {
    let text = "
00:01.0 root-port
  01:00.0 endpoint sriov=2 flr reset=flr
  01:10.0 endpoint vf=01:00.0 flr reset=flr
";
    let topology = Machine::new(text).topology();
    assert_eq!(resets(&topology, "01:00.0")[0], "flr!: 01:00.0 01:10.0");
    assert_eq!(resets(&topology, "01:10.0")[0], "flr!: 01:10.0");
}

#[test]
fn nobody_is_hit_twice() {
    // No real machine has virtual functions below their physical one; a broken file may.
    let topology =
        Machine::new("\n00:01.0 root-port flr sriov=1\n 01:00.0 endpoint vf=00:01.0").topology();
    assert_eq!(resets(&topology, "00:01.0"), ["flr: 00:01.0 01:00.0"]);
}

#[test]
fn what_is_below_a_port_goes_with_it() {
    let topology = Machine::new("\n00:01.0 root-port pm=0 reset=pm\n 01:00.0 endpoint").topology();
    assert_eq!(resets(&topology, "00:01.0"), ["pm!: 00:01.0 01:00.0"]);
}

#[test]
fn devices_that_do_not_bear_it() {
    for (text, release, expected) in [
        // One that does not come back keeps the whole bus from being reset, from above too.
        ("01:00.0 endpoint id=168c:0030", "7.2", vec![]),
        ("01:00.0 endpoint id=10de:2345", "7.2", vec![]),
        (
            "01:00.0 endpoint id=17cb:1103",
            "6.12",
            vec!["bus: 01:00.0"],
        ),
        ("01:00.0 endpoint id=17cb:1103", "7.2", vec![]),
        (
            "01:00.0 endpoint flr id=1022:149c",
            "6.12",
            vec!["bus: 01:00.0"],
        ),
        (
            "01:00.0 endpoint flr id=1022:17f0",
            "6.12",
            vec!["flr: 01:00.0", "bus: 01:00.0"],
        ),
        (
            "01:00.0 endpoint flr id=1022:17f0",
            "7.2",
            vec!["bus: 01:00.0"],
        ),
        (
            "01:00.0 endpoint af id=8086:1502",
            "7.2",
            vec!["bus: 01:00.0"],
        ),
        (
            "01:00.0 endpoint af",
            "7.2",
            vec!["af-flr: 01:00.0", "bus: 01:00.0"],
        ),
        ("01:00.0 endpoint pm=8", "7.2", vec!["bus: 01:00.0"]),
        (
            "01:00.0 endpoint pm=0 id=1002:67df class=030000",
            "7.2",
            vec!["bus: 01:00.0"],
        ),
        (
            "01:00.0 endpoint pm=0 id=1002:67df class=040300",
            "7.2",
            vec!["pm: 01:00.0", "bus: 01:00.0"],
        ),
        (
            "01:00.0 endpoint pm=0 id=15b3:cf70",
            "7.2",
            vec!["bus: 01:00.0"],
        ),
    ] {
        let topology = Machine::new(&format!("\n00:01.0 root-port\n {text}"))
            .kernel(release)
            .topology();
        assert_eq!(resets(&topology, "01:00.0"), expected, "{text} {release}");
    }
    let port = Machine::new("\n00:01.0 root-port id=177d:a100\n 01:00.0 endpoint").topology();
    assert_eq!(resets(&port, "01:00.0"), [""; 0]);
    let deep = "
00:01.0 root-port
  01:00.0 upstream
    02:00.0 downstream
      03:00.0 endpoint id=168c:0030
    02:01.0 downstream
      04:00.0 endpoint
";
    let topology = Machine::new(deep).topology();
    assert_eq!(resets(&topology, "01:00.0"), [""; 0]);
    assert_eq!(resets(&topology, "04:00.0"), ["bus: 04:00.0"]);
}

#[test]
fn below_a_cxl_port_that_masks_it() {
    for (unmasked, word, expected) in [
        ("0", "cxl_bus", "cxl-bus!: 01:00.0"),
        ("1", "bus", "bus!: 01:00.0"),
        ("0", "bus", "cxl-bus: 01:00.0"),
    ] {
        let text =
            format!("\n00:01.0 root-port cxl-port={unmasked}\n 01:00.0 endpoint reset={word}");
        assert_eq!(
            resets(&Machine::new(&text).topology(), "01:00.0"),
            [expected]
        );
    }
}

#[test]
fn on_a_root_bus_there_is_no_link_to_reset() {
    let topology = Machine::new("\n00:01.0 rciep flr reset=flr").topology();
    assert_eq!(resets(&topology, "00:01.0"), ["flr!: 00:01.0"]);
}

#[test]
fn a_mask_chooses() {
    let text = "
00:01.0 root-port
  01:00.0 endpoint mf flr pm=0 reset=pm
  01:00.1 endpoint mf
";
    let topology = Machine::new(text).topology();
    let kernel = Kernel::of(&topology);
    let chosen = |mask| {
        topology
            .choose_reset(&kernel, bdf("01:00.0"), mask)
            .map(|r| r.kind)
    };
    // The one that the kernel uses comes before the one that it could.
    assert_eq!(chosen(ResetMask::ANY), Some(ResetKind::Pm));
    assert_eq!(chosen(ResetKind::Flr.into()), Some(ResetKind::Flr));
    assert_eq!(chosen(ResetMask::LINK), Some(ResetKind::Bus));
    assert_eq!(chosen(ResetKind::Slot.into()), None);
    assert_eq!(chosen(ResetMask::NONE), None);
}

#[test]
fn whoever_resets_must_own_all_that_is_hit() {
    let text = "
00:01.0 root-port
  01:00.0 endpoint mf
  01:00.1 endpoint mf
";
    let topology = Machine::new(text).topology();
    let reset = &topology.resets(&Kernel::of(&topology), bdf("01:00.0"))[0];
    let one = BTreeSet::from([bdf("01:00.0")]);
    assert_eq!(reset.not_owned(&one).collect::<Vec<_>>(), [bdf("01:00.1")]);
    let both = BTreeSet::from(["01:00.0", "01:00.1"].map(bdf));
    assert_eq!(reset.not_owned(&both).count(), 0);
}
