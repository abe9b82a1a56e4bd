//! Groups: what Linux makes of a machine, and of its changes. Where a test says `seen`, the same was done with a
//! real kernel and its groups were these.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set up its machine should stop"
)]

use iommu_group::{
    AcsBits, AcsDeficiency, Firmware, GroupModel, Groups, Kernel, Reason, Rules, Sbdf, Topology,
    Uncertainty, Unreadable,
};
use test_machine::{Machine, bdf};

fn short(sbdf: &Sbdf) -> String {
    let text = sbdf.to_string();
    text.strip_prefix("0000:")
        .map(str::to_owned)
        .unwrap_or(text)
}

/// Groups as text: members by blanks, one group per item. Groups of one are left out.
fn shared(partition: &Groups) -> Vec<String> {
    partition
        .groups()
        .iter()
        .filter(|group| group.len() > 1)
        .map(|group| group.iter().map(short).collect::<Vec<_>>().join(" "))
        .collect()
}

fn boot(machine: &Machine) -> Groups {
    let topology = machine.topology();
    GroupModel::booted(&topology, &Kernel::of(&topology), Firmware::Cleared).groups()
}

fn boot_shared(text: &str) -> Vec<String> {
    shared(&boot(&Machine::new(text)))
}

/// Both kernels that were seen.
const KERNELS: [&str; 2] = ["6.12.95", "7.2.12"];

/// A root port, a switch whose ports have no ACS, two endpoints; two more root ports in one device with an endpoint
/// each.
const LAB: &str = "
00:00.0 host id=8086:29c0
00:04.0 root-port acs=5f/1d
  01:00.0 upstream
    02:00.0 downstream
      03:00.0 endpoint
    02:01.0 downstream
      04:00.0 endpoint
00:05.0 root-port acs=5f/1d mf
  05:00.0 endpoint
00:05.1 root-port acs=5f/1d mf
  06:00.0 endpoint
";

/// The same with a switch that has ACS, and two more endpoints.
const ACS_SWITCH: &str = "
00:04.0 root-port acs=5f/1d
  01:00.0 upstream
    02:00.0 downstream acs=5f/1d
      03:00.0 endpoint
    02:01.0 downstream acs=5f/1d
      04:00.0 endpoint
    02:02.0 downstream acs=5f/1d
      05:00.0 endpoint
    02:03.0 downstream acs=5f/1d
      06:00.0 endpoint
";

struct Bench {
    topology: Topology,
    kernel: Kernel,
}

impl Bench {
    fn new(text: &str, release: &str) -> Self {
        let topology = Machine::new(text).kernel(release).topology();
        let kernel = Kernel::of(&topology);
        Self { topology, kernel }
    }

    fn booted(&self) -> GroupModel<'_> {
        GroupModel::booted(&self.topology, &self.kernel, Firmware::Cleared)
    }
}

/// Does what a line says: `00:04.0=0015` writes a register, `-02:00.0` removes, `rescan` rescans.
fn run(model: &mut GroupModel<'_>, steps: &str) {
    for step in steps.split_whitespace() {
        if step == "rescan" {
            model.rescan();
        } else if let Some(gone) = step.strip_prefix('-') {
            model.remove(bdf(gone));
        } else {
            let (port, bits) = step.split_once('=').unwrap();
            model.set_acs_control(bdf(port), bits.parse().unwrap());
        }
    }
}

#[test]
fn groups_at_boot_seen() {
    assert_eq!(boot_shared(LAB), ["02:00.0 03:00.0", "02:01.0 04:00.0"]);
    assert_eq!(boot_shared(ACS_SWITCH), [""; 0]);
}

#[test]
fn changes_at_run_time_seen() {
    let all_of_the_switch = "00:04.0 01:00.0 02:00.0 02:01.0 03:00.0 04:00.0";
    for (steps, groups) in [
        // A register alone changes nothing.
        (
            "00:05.0=0000 00:05.1=0000 00:04.0=0000",
            vec!["02:00.0 03:00.0", "02:01.0 04:00.0"],
        ),
        // Endpoints below cleared ports join their ports, but the ports do not join each other.
        (
            "00:05.0=0000 00:05.1=0000 -05:00.0 -06:00.0 rescan",
            vec![
                "00:05.0 05:00.0",
                "00:05.1 06:00.0",
                "02:00.0 03:00.0",
                "02:01.0 04:00.0",
            ],
        ),
        // A root port that comes back has the defaults again.
        (
            "00:05.0=0000 00:05.1=0000 -00:05.0 -00:05.1 rescan",
            vec!["02:00.0 03:00.0", "02:01.0 04:00.0"],
        ),
        // The endpoints below a switch join the group of their port, which is older than the change.
        (
            "00:04.0=0000 -03:00.0 -04:00.0 rescan",
            vec!["02:00.0 03:00.0", "02:01.0 04:00.0"],
        ),
        ("00:04.0=0000 -01:00.0 rescan", vec![all_of_the_switch]),
        // What was merged stays so until it is removed as a whole.
        (
            "00:04.0=0000 -01:00.0 rescan 00:04.0=001d -03:00.0 -04:00.0 rescan",
            vec![all_of_the_switch],
        ),
        (
            "00:04.0=0000 -01:00.0 rescan 00:04.0=001d -01:00.0 rescan",
            vec!["02:00.0 03:00.0", "02:01.0 04:00.0"],
        ),
        // Any required bit that is off will do.
        (
            "00:05.0=0019 -05:00.0 rescan",
            vec!["00:05.0 05:00.0", "02:00.0 03:00.0", "02:01.0 04:00.0"],
        ),
        (
            "00:05.0=000d -05:00.0 rescan",
            vec!["00:05.0 05:00.0", "02:00.0 03:00.0", "02:01.0 04:00.0"],
        ),
    ] {
        for release in KERNELS {
            let bench = Bench::new(LAB, release);
            let mut model = bench.booted();
            run(&mut model, steps);
            assert_eq!(shared(&model.groups()), groups, "{release}: {steps}");
            assert_eq!(model.doubts().count(), 0);
        }
    }
}

#[test]
fn a_switch_with_acs_seen() {
    let whole = "00:04.0 01:00.0 02:00.0 02:01.0 02:02.0 02:03.0 03:00.0 04:00.0 05:00.0 06:00.0";
    let merge = "00:04.0=0000 -01:00.0 rescan";
    for (steps, groups) in [
        (merge.to_owned(), vec![whole]),
        (
            format!("{merge} 00:04.0=001d 02:00.0=0011 02:01.0=0011 -03:00.0 -04:00.0 rescan"),
            vec![whole],
        ),
        (format!("{merge} 00:04.0=001d -01:00.0 rescan"), vec![]),
        // Two groups, though the switch now routes between the two.
        (
            "02:00.0=0011 02:01.0=0011 -03:00.0 -04:00.0 rescan".to_owned(),
            vec!["02:00.0 03:00.0", "02:01.0 04:00.0"],
        ),
    ] {
        for release in KERNELS {
            let bench = Bench::new(ACS_SWITCH, release);
            let mut model = bench.booted();
            run(&mut model, &steps);
            assert_eq!(shared(&model.groups()), groups, "{release}: {steps}");
        }
    }
    let bench = Bench::new(ACS_SWITCH, "7.2.12");
    let mut model = bench.booted();
    run(&mut model, merge);
    assert_eq!(
        model.acs_control(bdf("02:00.0")),
        Some(AcsBits::REQUIRED),
        "set up anew"
    );
}

#[test]
fn the_least_invasive_merge_and_split_seen() {
    for text in [
        ACS_SWITCH.to_owned(),
        ACS_SWITCH.replace("downstream acs=5f/1d", "downstream"),
    ] {
        for release in KERNELS {
            let bench = Bench::new(&text, release);
            let mut model = bench.booted();
            let neighbours = |model: &GroupModel<'_>| {
                let partition = model.groups();
                let with = |f| partition.group_of(bdf(f)).unwrap().to_vec();
                (with("05:00.0"), with("06:00.0"))
            };
            let before = neighbours(&model);
            run(
                &mut model,
                "00:04.0=0015 -02:00.0 -02:01.0 rescan 00:04.0=001d",
            );
            let merged = model.groups();
            assert_eq!(
                merged.group_of(bdf("03:00.0")).unwrap(),
                ["01:00.0", "02:00.0", "02:01.0", "03:00.0", "04:00.0"].map(bdf)
            );
            assert_eq!(neighbours(&model), before);
            // A third joins.
            run(&mut model, "00:04.0=0015 -02:02.0 rescan 00:04.0=001d");
            assert!(model.together(bdf("05:00.0"), bdf("03:00.0")));
            assert_eq!(neighbours(&model).1, before.1);
            // One leaves.
            run(&mut model, "-02:01.0 rescan");
            assert!(!model.together(bdf("04:00.0"), bdf("03:00.0")));
            assert!(model.together(bdf("05:00.0"), bdf("03:00.0")));
        }
    }
}

#[test]
fn a_port_without_acs_takes_what_is_below_into_its_group() {
    for (text, groups) in [
        (
            "00:01.0 root-port\n 01:00.0 endpoint",
            vec!["00:01.0 01:00.0"],
        ),
        ("00:01.0 root-port acs=5f/0\n 01:00.0 endpoint", vec![]),
        // An empty capability is as good as a full one: what is not implemented is not needed.
        ("00:01.0 root-port acs=0/0\n 01:00.0 endpoint", vec![]),
        ("00:01.0 legacy\n 01:00.0 endpoint", vec![]),
        (
            "00:01.0 root-port\n 01:00.0 upstream\n  02:00.0 downstream acs=5f/0\n   03:00.0 endpoint",
            vec!["00:01.0 01:00.0 02:00.0 03:00.0"],
        ),
        // A multifunction upstream port needs ACS, a single one does not.
        (
            "00:01.0 root-port acs=5f/0\n 01:00.0 upstream mf\n  02:00.0 downstream acs=5f/0\n 01:00.1 endpoint mf",
            vec!["01:00.0 01:00.1 02:00.0"],
        ),
    ] {
        assert_eq!(boot_shared(text), groups, "{text}");
    }
}

#[test]
fn functions_of_one_device() {
    for (text, groups) in [
        (
            "00:02.0 endpoint mf\n00:02.1 endpoint",
            vec!["00:02.0 00:02.1"],
        ),
        (
            "00:02.0 endpoint mf acs=0/0\n00:02.1 endpoint acs=0/0",
            vec![],
        ),
        // The isolated one keeps out; the others meet.
        (
            "00:02.0 endpoint mf\n00:02.1 endpoint acs=5d/0\n00:02.2 endpoint",
            vec!["00:02.0 00:02.2"],
        ),
        // A first function that does not say that there are others counts as alone, so it keeps nothing together.
        ("00:02.0 endpoint\n00:02.1 endpoint", vec![]),
        ("00:02.0 endpoint\n00:03.0 endpoint", vec![]),
        // Conventional functions never keep peers apart.
        (
            "00:1f.0 pci mf\n00:1f.2 pci mf\n00:1f.3 pci mf\n00:1e.0 pci",
            vec!["00:1f.0 00:1f.2 00:1f.3"],
        ),
        // Root ports without ACS in one device meet, with all that is below them.
        (
            "00:05.0 root-port mf\n 05:00.0 endpoint\n00:05.1 root-port mf\n 06:00.0 endpoint",
            vec!["00:05.0 00:05.1 05:00.0 06:00.0"],
        ),
        ("00:05.0 rcec mf\n00:05.1 rcec mf", vec!["00:05.0 00:05.1"]),
        ("00:05.0 reserved mf\n00:05.1 reserved mf", vec![]),
        // Integrated endpoints of Intel's.
        (
            "00:05.0 rciep mf id=8086:0b25\n00:05.1 rciep mf id=8086:0cfe",
            vec![],
        ),
        (
            "00:05.0 rciep mf\n00:05.1 rciep mf",
            vec!["00:05.0 00:05.1"],
        ),
        // Network controllers whose vendor says so.
        (
            "00:05.0 endpoint mf id=8086:10fb\n00:05.1 endpoint mf id=8086:10fb",
            vec![],
        ),
    ] {
        assert_eq!(boot_shared(text), groups, "{text}");
    }
}

#[test]
fn a_later_function_that_does_not_say_so_is_alone_after_a_rescan_seen() {
    for release in KERNELS {
        let bench = Bench::new(
            "\n00:05.0 root-port acs=5f/0\n 05:00.0 endpoint mf\n 05:00.1 endpoint",
            release,
        );
        let mut model = bench.booted();
        assert_eq!(shared(&model.groups()), ["05:00.0 05:00.1"]);
        run(&mut model, "-05:00.0 -05:00.1 rescan");
        assert_eq!(shared(&model.groups()), [""; 0]);
        let bench = Bench::new(
            "\n00:05.0 root-port acs=5f/0\n 05:00.0 endpoint mf\n 05:00.1 endpoint mf",
            release,
        );
        for steps in [
            "-05:00.1 rescan",
            "-05:00.0 rescan",
            "-05:00.0 -05:00.1 rescan",
        ] {
            let mut model = bench.booted();
            run(&mut model, steps);
            assert_eq!(shared(&model.groups()), ["05:00.0 05:00.1"], "{steps}");
        }
    }
    // The scan has noted the second function when it comes to the third.
    let bench = Bench::new(
        "\n00:05.0 endpoint mf\n00:05.1 endpoint\n00:05.2 endpoint mf",
        "7.2",
    );
    let mut model = bench.booted();
    run(&mut model, "-00:05.0 -00:05.1 -00:05.2 rescan");
    assert_eq!(shared(&model.groups()), ["00:05.0 00:05.2"]);
    let bench = Bench::new(
        "\n00:05.0 endpoint mf acs=5f/0\n00:05.1 endpoint\n00:05.2 endpoint mf",
        "7.2",
    );
    let mut model = bench.booted();
    run(&mut model, "-00:05.0 -00:05.1 -00:05.2 rescan");
    assert_eq!(shared(&model.groups()), ["00:05.1 00:05.2"]);
}

#[test]
fn with_ari_devices_are_still_told_by_number() {
    let text = "
00:01.0 root-port acs=5f/0 ari
  01:00.0 endpoint mf
  01:00.1 endpoint
  01:01.0 endpoint
  01:01.1 endpoint";
    assert_eq!(boot_shared(text), ["01:00.0 01:00.1", "01:01.0 01:01.1"]);
}

#[test]
fn bridges_to_conventional_pci() {
    let isolated = "\n00:01.0 root-port acs=5f/0\n";
    let open = "\n00:01.0 root-port\n";
    let devices = "   02:01.0 pci\n   02:02.0 pci\n";
    for (text, groups) in [
        // All behind the bridge are in its group; the port above only if it is not isolated. Seen.
        (
            format!("{isolated}  01:00.0 pci-bridge\n{devices}"),
            vec!["01:00.0 02:01.0 02:02.0"],
        ),
        (
            format!("{open}  01:00.0 pci-bridge\n{devices}"),
            vec!["00:01.0 01:00.0 02:01.0 02:02.0"],
        ),
        (
            format!("{isolated}  01:00.0 pci2pci\n{devices}"),
            vec!["01:00.0 02:01.0 02:02.0"],
        ),
        (
            format!("{isolated}  01:00.0 pcie-bridge\n   02:00.0 endpoint\n"),
            vec!["01:00.0 02:00.0"],
        ),
        // A bridge that passes requester ids on: what is behind it still shares the bus, and nothing there has ACS.
        (
            format!("{isolated}  01:00.0 pci-bridge id=1a03:1150\n   02:00.0 pci\n"),
            vec!["01:00.0 02:00.0"],
        ),
        (
            "\n00:1e.0 pci2pci\n  01:00.0 pci\n  01:01.0 pci\n".to_owned(),
            vec!["00:1e.0 01:00.0 01:01.0"],
        ),
        // A bridge behind a bridge.
        (
            format!("{isolated}  01:00.0 pci-bridge\n   02:00.0 pci2pci\n    03:00.0 pci\n"),
            vec!["01:00.0 02:00.0 03:00.0"],
        ),
    ] {
        assert_eq!(boot_shared(&text), groups, "{text}");
    }
}

#[test]
fn the_iommu_below_the_root() {
    // On these machines the IOMMU sits at a bridge: ids above it do not matter.
    let text = "\n00:00.0 pci2pci id=14e4:9000\n 01:00.0 root-port acs=5f/0\n  02:00.0 endpoint";
    let topology = Machine::new(text).topology();
    let model = GroupModel::booted(&topology, &Kernel::of(&topology), Firmware::Cleared);
    // The bridge has no ACS, so the path is not isolated all the same.
    assert!(matches!(
        model.reason(bdf("02:00.0")),
        Some(Reason::NotIsolated { culprit, lack: AcsDeficiency::Conventional, .. }) if culprit == bdf("00:00.0")
    ));
    let other = Machine::new(&text.replace("14e4:9000", "14e4:9001")).topology();
    let model = GroupModel::booted(&other, &Kernel::of(&other), Firmware::Cleared);
    assert!(matches!(
        model.reason(bdf("02:00.0")),
        Some(Reason::RequesterId { .. })
    ));
}

#[test]
fn devices_that_use_the_ids_of_others() {
    for (text, groups) in [
        // Marvell: requests bear function 1, whatever function 1 is.
        (
            "00:02.0 endpoint id=1b4b:9230 mf acs=5f/0\n00:02.1 endpoint acs=5f/0",
            vec!["00:02.0 00:02.1"],
        ),
        (
            "00:02.0 endpoint id=1b4b:9999 mf acs=5f/0\n00:02.1 endpoint acs=5f/0",
            vec![],
        ),
        // Ricoh: function 0.
        (
            "00:02.0 endpoint mf acs=5f/0\n00:02.3 endpoint id=1180:e832 mf acs=5f/0",
            vec!["00:02.0 00:02.3"],
        ),
        // PLX: all of the bus, and what those share ids with.
        (
            "00:01.0 root-port acs=5f/0\n 01:00.0 pci-bridge\n  02:00.0 pci\n00:02.0 endpoint id=10b5:87b0\n00:03.0 pci",
            vec!["00:01.0 00:02.0 00:03.0", "01:00.0 02:00.0"],
        ),
        // The other one's device comes along.
        (
            "00:02.0 endpoint id=8086:2260\n00:10.0 pci mf\n00:10.1 pci mf",
            vec!["00:02.0 00:10.0 00:10.1"],
        ),
    ] {
        let text = format!("\n{text}");
        assert_eq!(boot_shared(&text), groups, "{text}");
    }
}

#[test]
fn at_boot_aliases_see_devices_that_a_scan_has_yet_to_find() {
    // Function 2 sends requests as function 1 and is not kept from function 0.
    let text = "
00:01.0 root-port acs=5f/0
  01:00.0 endpoint mf
  01:00.1 endpoint acs=1d/1d mf
  01:00.2 endpoint mf id=1b4b:9230";
    let bench = Bench::new(text, "7.2");
    let mut model = bench.booted();
    assert_eq!(shared(&model.groups()), ["01:00.0 01:00.1 01:00.2"]);
    run(&mut model, "-01:00.0 -01:00.1 -01:00.2 rescan");
    assert_eq!(shared(&model.groups()), ["01:00.1 01:00.2"]);
}

#[test]
fn aliases_of_aliases_come_to_an_end() {
    let text: String = (0..32)
        .map(|d| format!("00:{d:02x}.0 endpoint id=10b5:87b0 mf\n00:{d:02x}.1 pci\n"))
        .collect();
    let partition = boot(&Machine::new(&text));
    assert_eq!(partition.groups().len(), 1);
}

#[test]
fn aliases_in_device_memory_are_doubted() {
    let text = "\n00:01.0 root-port acs=5f/0\n 01:00.0 upstream mf acs=5f/0\n 01:00.1 endpoint id=11f8:8532 class=068000 mf";
    let topology = Machine::new(text).topology();
    let model = GroupModel::booted(&topology, &Kernel::of(&topology), Firmware::Cleared);
    assert!(
        model
            .doubts()
            .any(|d| d == (bdf("01:00.1"), Uncertainty::AliasesInDeviceMemory))
    );
}

#[test]
fn what_is_below_a_provided_bus_is_with_its_provider() {
    let text = "
00:0e.0 rciep id=8086:28c0
  pci10000:e0
    10000:e0:06.0 root-port acs=5f/0
      10000:e1:00.0 endpoint
";
    assert_eq!(boot_shared(text), ["00:0e.0 10000:e0:06.0 10000:e1:00.0"]);
    let topology = Machine::new(text).topology();
    let model = GroupModel::booted(&topology, &Kernel::of(&topology), Firmware::Cleared);
    assert_eq!(
        model.reason(bdf("10000:e1:00.0")),
        Some(Reason::ProvidedBy {
            provider: bdf("00:0e.0")
        })
    );
}

#[test]
fn virtual_functions() {
    let text = "
00:01.0 root-port acs=5f/0 ari
  01:00.0 endpoint sriov=3 mf
  01:00.1 endpoint mf
  01:10.0 endpoint vf=01:00.0 mf
  01:10.1 endpoint vf=01:00.0
  02:00.0 endpoint vf=01:00.0
";
    // Virtual functions are never multifunction: each is alone, seen.
    assert_eq!(boot_shared(text), ["01:00.0 01:00.1"]);
    // Below a port without ACS they are with it, also those on a bus of their own number.
    let open = text.replace("acs=5f/0 ", "");
    let whole = "00:01.0 01:00.0 01:00.1 01:10.0 01:10.1 02:00.0";
    assert_eq!(boot_shared(&open), [whole]);
    // With their physical function they go, and no scan brings them back.
    let bench = Bench::new(&open, "7.2");
    let mut model = bench.booted();
    run(&mut model, "-01:00.0 rescan");
    assert!(!model.is_present(bdf("01:10.0")) && !model.is_present(bdf("02:00.0")));
    assert_eq!(shared(&model.groups()), ["00:01.0 01:00.0 01:00.1"]);
}

#[test]
fn ports_that_linux_knows_by_their_ids() {
    for (port, groups) in [
        ("id=17cb:0400", vec![]),
        ("id=8086:1c10", vec![]),
        ("id=1d17:0722 acs=5f/0", vec!["00:01.0 01:00.0"]),
        ("id=1d17:0723", vec![]),
        ("id=8086:a110 acs=1f/0 dword-ctrl=1d", vec![]),
    ] {
        let text = format!("\n00:01.0 root-port {port}\n 01:00.0 endpoint");
        assert_eq!(boot_shared(&text), groups, "{port}");
    }
    // Without a request for ACS the old Intel ports are not set up.
    let text = "\n00:01.0 root-port id=8086:1c10\n 01:00.0 endpoint";
    let topology = Machine::new(text).iommu("none").topology();
    let kernel = Kernel::of(&topology);
    assert!(!kernel.requests_acs);
    assert_eq!(
        shared(&GroupModel::booted(&topology, &kernel, Firmware::Cleared).groups()),
        ["00:01.0 01:00.0"]
    );
}

#[test]
fn amd_southbridges_are_trusted_where_there_is_an_amd_iommu() {
    let text =
        "\n00:14.0 pci mf id=1002:4385\n00:14.2 pci mf id=1002:4383\n00:14.3 pci mf id=1002:439d";
    assert_eq!(boot_shared(text), ["00:14.0 00:14.2 00:14.3"]);
    assert_eq!(shared(&boot(&Machine::new(text).iommu("amd"))), [""; 0]);
    // Not below a bridge.
    let below = format!(
        "\n00:01.0 root-port acs=5f/0{}",
        text.replace("\n00:", "\n 01:")
    );
    assert_eq!(
        shared(&boot(&Machine::new(&below).iommu("amd"))),
        ["01:14.0 01:14.2 01:14.3"]
    );
}

#[test]
fn idt_switches_need_no_source_validation_from_7_2_on() {
    let text = "
00:01.0 root-port acs=5f/0
  01:00.0 upstream id=111d:80b5
    02:00.0 downstream id=111d:80b5 acs=5f/0
      03:00.0 endpoint";
    for (release, control) in [("6.12", "001d"), ("7.2", "001c")] {
        let bench = Bench::new(text, release);
        let model = bench.booted();
        assert_eq!(
            model.acs_control(bdf("02:00.0")),
            control.parse().ok(),
            "{release}"
        );
        assert_eq!(shared(&model.groups()), [""; 0]);
    }
}

#[test]
fn parameters_of_the_kernel() {
    let control = |arguments: &str, port: &str| {
        let topology = Machine::new(LAB).arguments(arguments).topology();
        let kernel = Kernel::of(&topology);
        let model = GroupModel::booted(&topology, &kernel, Firmware::Cleared);
        format!("{:04x}", model.acs_control(bdf(port)).unwrap())
    };
    for (arguments, seen) in [
        ("", "001d"),
        ("iommu=pt", "001d"),
        ("pci=noats", "001f"),
        ("pci=disable_acs_redir=pci:1b36:000c", "0000"),
        ("pci=disable_acs_redir=00:05.0", "0000"),
        ("pci=disable_acs_redir=00:05.1", "001d"),
        ("pci=disable_acs_redir=0000:00:04.0;00:05.0", "0000"),
        ("pci=disable_acs_redir=nonsense;00:05.0", "001d"),
        ("pci=config_acs=100x1@pci:1b36:000c", "0011"),
        ("pci=config_acs=1xx@pci:1b36:000c", "0004"),
        ("pci=config_acs=0000000@pci:0:0", "0000"),
        ("pci=config_acs=1111111@00:05.0", "007f"),
        ("pci=config_acs=x@pci:0:0", "0000"),
        // A list: the first that matches decides.
        ("pci=config_acs=1@00:04.0;11@00:05.0;111@00:05.0", "0003"),
        ("pci=config_acs=11@00:05.0/00.0;111@00:05.0", "0007"),
        // Every entry needs flags of its own.
        ("pci=config_acs=1@00:04.0;00:05.0", "001d"),
        ("pci=config_acs=2@00:05.0", "001d"),
        ("pci=config_acs=1xxxxxxx@00:05.0", "001d"),
        ("pci=config_acs=xxxxxxxx1@00:05.0", "0001"),
        ("pci=config_acs=1@99", "001d"),
        // The last one on the command line wins.
        ("pci=config_acs=1@00:05.0 pci=config_acs=11@00:05.0", "0003"),
        ("pci=config_acs=1@00:05.0,config_acs=11@00:05.0", "0003"),
        // Both for one device: only config_acs counts.
        (
            "pci=disable_acs_redir=pci:0:0,config_acs=11101@00:05.0",
            "001d",
        ),
        (
            "pci=disable_acs_redir=pci:0:0,config_acs=11101@00:04.0",
            "0000",
        ),
    ] {
        assert_eq!(control(arguments, "00:05.0"), seen, "{arguments}");
    }
}

#[test]
fn devices_can_be_named_by_their_path() {
    for (arguments, control) in [
        ("pci=config_acs=1@00:04.0/00.0/01.0", "0001"),
        ("pci=config_acs=1@0:4.0/0.0/1.0", "0001"),
        ("pci=config_acs=1@00:04.0/00.0/00.0", "001d"),
        ("pci=config_acs=1@00:04.0/00.0", "001d"),
        ("pci=config_acs=1@00:04.0/01.0", "001d"),
        ("pci=config_acs=1@00:04.0/00.0/01.0z", "001d"),
        // What the kernel makes of `0x`.
        ("pci=config_acs=1@00:04.0/00.0/01.0x", "0001"),
        ("pci=config_acs=1@pci:1234:11e8", "0001"),
        ("pci=config_acs=1@pci:1234:11e9", "001d"),
        ("pci=config_acs=1@pci:0:11e8:1:0", "001d"),
        ("pci=config_acs=1@pci:0:11e8:0:0", "0001"),
        ("pci=config_acs=1@pci:0:11e8;11@02:01.0", "0001"),
        ("pci=config_acs=1@pci:0:11e9;11@02:01.0", "0003"),
        ("pci=config_acs=1@2:1.0", "0001"),
        ("pci=config_acs=1@0:2:1.0", "0001"),
        ("pci=config_acs=1@1:2:1.0", "001d"),
    ] {
        let topology = Machine::new(ACS_SWITCH).arguments(arguments).topology();
        let model = GroupModel::booted(&topology, &Kernel::of(&topology), Firmware::Cleared);
        let seen = format!("{:04x}", model.acs_control(bdf("02:01.0")).unwrap());
        assert_eq!(seen, control, "{arguments}");
    }
}

#[test]
fn redirect_off_at_boot_merges_ports_of_one_device_seen() {
    let machine = Machine::new(LAB).arguments("pci=disable_acs_redir=pci:1b36:000c");
    assert_eq!(
        shared(&boot(&machine)),
        [
            "00:04.0 01:00.0 02:00.0 02:01.0 03:00.0 04:00.0",
            "00:05.0 00:05.1 05:00.0 06:00.0"
        ]
    );
}

#[test]
fn parameters_hold_for_functions_that_come_back() {
    let topology = Machine::new(LAB)
        .arguments("pci=config_acs=100x1@00:05.0")
        .topology();
    let mut model = GroupModel::booted(&topology, &Kernel::of(&topology), Firmware::Cleared);
    run(&mut model, "00:05.0=001d -00:05.0 rescan");
    // What is left open keeps what is in the register now, and here that is source validation.
    assert_eq!(model.acs_control(bdf("00:05.0")), "0011".parse().ok());
}

#[test]
fn intels_doubleword_ports_only_lose_redirection_whatever_was_asked() {
    let text = "\n00:01.0 root-port id=8086:a110 acs=1f/0 dword-ctrl=0";
    for (arguments, control) in [
        ("", "001d"),
        ("pci=config_acs=0000000@pci:0:0", "0011"),
        ("pci=disable_acs_redir=pci:0:0", "0011"),
        ("pci=noats", "001f"),
    ] {
        let topology = Machine::new(text).arguments(arguments).topology();
        let model = GroupModel::booted(&topology, &Kernel::of(&topology), Firmware::Cleared);
        assert_eq!(
            model.acs_control(bdf("00:01.0")),
            control.parse().ok(),
            "{arguments}"
        );
    }
}

#[test]
fn firmware_may_have_set_more() {
    let topology = Machine::new("\n00:01.0 root-port acs=7f/60").topology();
    let kernel = Kernel::of(&topology);
    let control =
        |firmware| GroupModel::booted(&topology, &kernel, firmware).acs_control(bdf("00:01.0"));
    assert_eq!(control(Firmware::Cleared), "001d".parse().ok());
    assert_eq!(control(Firmware::AsFound), "007d".parse().ok());
}

#[test]
fn the_override_patch_makes_groups_that_say_nothing() {
    let text = "
00:01.0 root-port
  01:00.0 endpoint mf
  01:00.1 endpoint
00:02.0 root-port acs=5f/0
  02:00.0 pci-bridge
    03:00.0 pci
00:1f.0 pci mf
00:1f.1 pci mf";
    let conventional = ["00:1f.0 00:1f.1", "02:00.0 03:00.0"];
    for (arguments, more) in [
        ("", vec!["00:01.0 01:00.0 01:00.1"]),
        ("pcie_acs_override=downstream", vec!["01:00.0 01:00.1"]),
        (
            "pcie_acs_override=multifunction",
            vec!["00:01.0 01:00.0 01:00.1"],
        ),
        ("pcie_acs_override=downstream,multifunction", vec![]),
        ("pcie_acs_override=id:1b36:000c", vec!["01:00.0 01:00.1"]),
    ] {
        let machine = Machine::new(text).arguments(arguments);
        let mut groups: Vec<String> = more.into_iter().map(str::to_owned).collect();
        groups.extend(conventional.map(str::to_owned));
        let mut seen = shared(&boot(&machine));
        groups.sort();
        seen.sort();
        assert_eq!(seen, groups, "{arguments}");
    }
}

#[test]
fn functions_without_an_iommu_have_no_group_and_give_none() {
    let text = "
00:01.0 root-port
  01:00.0 endpoint group=7
  01:00.1 endpoint
";
    let topology = Machine::new(text).topology();
    let kernel = Kernel::of(&topology);
    let model = GroupModel::booted(&topology, &kernel, Firmware::Cleared);
    assert_eq!(model.groups().groups(), [vec![bdf("01:00.0")]]);
    assert_eq!(model.reason(bdf("00:01.0")), Some(Reason::NoIommu));
}

#[test]
fn as_found_starts_from_the_kernels_groups() {
    let text = "
00:01.0 root-port acs=5f/1d group=1
  01:00.0 endpoint group=9
00:02.0 root-port acs=5f/15 group=9
  02:00.0 endpoint group=4";
    let topology = Machine::new(text).topology();
    let kernel = Kernel::of(&topology);
    let mut model = GroupModel::as_found(&topology, &kernel);
    assert_eq!(model.groups(), Groups::found(&topology));
    assert_eq!(model.reason(bdf("01:00.0")), Some(Reason::Kept));
    // Removing nothing changes nothing, and ids of other groups are not used again.
    run(&mut model, "rescan");
    assert_eq!(model.groups(), Groups::found(&topology));
    run(&mut model, "-01:00.0 rescan");
    assert_eq!(shared(&model.groups()), [""; 0]);
    run(&mut model, "-02:00.0 rescan");
    assert_eq!(shared(&model.groups()), ["00:02.0 02:00.0"]);
}

#[test]
fn reasons_name_the_device_and_the_bit() {
    let text = "
00:04.0 root-port acs=5f/1d
  01:00.0 upstream
    02:00.0 downstream acs=5f/1d
      03:00.0 endpoint
00:05.0 root-port
  05:00.0 endpoint
00:06.0 root-port acs=5f/1d
  06:00.0 pci-bridge
    07:00.0 pci
00:1f.0 pci mf
00:1f.3 pci mf";
    let bench = Bench::new(text, "7.2");
    let mut model = bench.booted();
    let said =
        |model: &GroupModel<'_>, function: &str| model.reason(bdf(function)).unwrap().to_string();
    assert_eq!(
        said(&model, "05:00.0"),
        "in the group of 0000:00:05.0, because that port has no ACS"
    );
    assert_eq!(
        said(&model, "07:00.0"),
        "in the group of 0000:06:00.0, because its requests carry the requester ID of that bridge"
    );
    assert_eq!(
        said(&model, "00:1f.3"),
        "in the group of 0000:00:1f.0, because they are functions of one device, 0000:00:1f.3 is conventional PCI, \
         which has no ACS and 0000:00:1f.0 is conventional PCI, which has no ACS"
    );
    assert!(said(&model, "03:00.0").starts_with("a group of its own"));
    run(&mut model, "00:04.0=0015 -02:00.0 rescan");
    assert_eq!(
        said(&model, "02:00.0"),
        "in the group of 0000:01:00.0, because 0000:00:04.0 above it has ACS CR switched off"
    );
    assert_eq!(
        model.reason_if_readded(bdf("06:00.0")).unwrap(),
        Reason::New
    );
    assert_eq!(said(&model, "02:00.0"), said(&model, "02:00.0"));
}

#[test]
fn what_cannot_be_read_is_doubted_and_not_trusted() {
    let text = "
00:01.0 root-port acs=5f/1d visible=40
  01:00.0 endpoint visible=40
00:02.0 root-port acs=5f/1d
  02:00.0 endpoint";
    let topology = Machine::new(text).topology();
    let model = GroupModel::booted(&topology, &Kernel::of(&topology), Firmware::Cleared);
    assert!(model.together(bdf("00:01.0"), bdf("01:00.0")));
    assert!(!model.together(bdf("00:02.0"), bdf("02:00.0")));
    let doubts: Vec<_> = model.doubts().collect();
    assert_eq!(
        doubts,
        [(
            bdf("00:01.0"),
            Uncertainty::Unreadable(Unreadable::Unprivileged)
        )]
    );
}

#[test]
fn every_set_of_rules_gives_the_same_groups_where_no_table_differs() {
    for rules in [Rules::V6_12, Rules::V7_2, Rules::V7_3] {
        let topology = Machine::new(LAB).topology();
        let kernel = Kernel {
            rules,
            ..Kernel::of(&topology)
        };
        let model = GroupModel::booted(&topology, &kernel, Firmware::Cleared);
        assert_eq!(
            shared(&model.groups()),
            ["02:00.0 03:00.0", "02:01.0 04:00.0"]
        );
    }
}
