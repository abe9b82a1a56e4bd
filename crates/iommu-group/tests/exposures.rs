//! Which devices of one owner reach others, and are reached, without the IOMMU.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set up its machine should stop"
)]

use std::collections::BTreeSet;

use iommu_group::{
    Exposure, Function, GroupModel, Groups, Kernel, RoutingModel, Sbdf, Topology, UntranslatedReach,
};
use test_machine::random::{self, Random};
use test_machine::{Machine, bdf};

/// A switch with three devices in groups of their own: a guest's, the host's drive and one for another guest.
fn switch(port0: &str, port1: &str, port2: &str) -> String {
    format!(
        "
00:04.0 root-port acs=5f/1d group=1
  01:00.0 upstream group=2
    02:00.0 downstream {port0} port=0 group=3
      03:00.0 endpoint driver=vfio-pci group=6
    02:01.0 downstream {port1} port=1 group=4
      04:00.0 endpoint driver=nvme group=7
    02:02.0 downstream {port2} port=2 group=5
      05:00.0 endpoint driver=mlx5_vfio_pci group=8
"
    )
}

const REDIRECTS: &str = "acs=5f/1d";

fn set(devices: &str) -> BTreeSet<Sbdf> {
    devices.split_whitespace().map(bdf).collect()
}

fn of(topology: &Topology, devices: &str) -> Vec<Exposure> {
    RoutingModel::found(topology).exposures(&Groups::found(topology), &set(devices))
}

fn texts(text: &str, devices: &str) -> Vec<String> {
    let topology = Machine::new(text).topology();
    let exposures = of(&topology, devices);
    exposures.iter().map(ToString::to_string).collect()
}

#[test]
fn invariant_3_without_acs_all_below_a_switch_reach_each_other() {
    assert_eq!(
        texts(&switch("", "", ""), "03:00.0"),
        [
            // Of the host's drive nobody is afraid: the host is trusted.
            "0000:05:00.0 reaches 0000:03:00.0 without the IOMMU, through 0000:02:02.0",
            "0000:03:00.0 reaches 0000:04:00.0 without the IOMMU, through 0000:02:00.0",
            "0000:03:00.0 reaches 0000:05:00.0 without the IOMMU, through 0000:02:00.0",
        ]
    );
    let two = texts(&switch("", "", ""), "03:00.0 05:00.0");
    assert_eq!(
        two,
        [
            "0000:03:00.0, 0000:05:00.0 reach 0000:04:00.0 without the IOMMU, through 0000:02:00.0, 0000:02:02.0"
        ]
    );
}

#[test]
fn invariant_3_where_ports_redirect_nobody_is_exposed() {
    let none: [String; 0] = [];
    let closed = switch(REDIRECTS, REDIRECTS, REDIRECTS);
    assert_eq!(texts(&closed, "03:00.0"), none);
    assert_eq!(texts(&closed, "03:00.0 05:00.0"), none);
}

#[test]
fn invariant_3_one_port_that_does_not_redirect_exposes_one_way() {
    let out = switch("acs=5f/11", REDIRECTS, REDIRECTS);
    let reached: Vec<Sbdf> = of(&Machine::new(&out).topology(), "03:00.0")
        .iter()
        .map(|exposure| exposure.function)
        .collect();
    assert_eq!(reached, [bdf("04:00.0"), bdf("05:00.0")]);
    let into = switch(REDIRECTS, REDIRECTS, "");
    assert_eq!(
        texts(&into, "03:00.0"),
        ["0000:05:00.0 reaches 0000:03:00.0 without the IOMMU, through 0000:02:02.0"]
    );
    // The host's driver is not somebody else's guest.
    let host = switch(REDIRECTS, "", REDIRECTS);
    assert_eq!(texts(&host, "03:00.0").len(), 0);
    // Egress control: straight to one port only.
    let egress = switch("acs=7f/3d vector=4 egress=4", REDIRECTS, REDIRECTS);
    assert_eq!(
        texts(&egress, "03:00.0"),
        ["0000:03:00.0 reaches 0000:04:00.0 without the IOMMU, through 0000:02:00.0"]
    );
}

#[test]
fn invariant_3_what_shares_the_group_is_the_owners() {
    let joined = switch("acs=5f/11", "acs=5f/11", REDIRECTS).replace("group=7", "group=6");
    let reached: Vec<(Sbdf, Vec<Sbdf>)> = of(&Machine::new(&joined).topology(), "03:00.0")
        .into_iter()
        .map(|exposure| (exposure.function, exposure.to))
        .collect();
    // What the group reaches counts, not only the device that was asked for.
    assert_eq!(
        reached,
        [(bdf("05:00.0"), vec![bdf("03:00.0"), bdf("04:00.0")])]
    );
}

#[test]
fn invariant_3_conventional_buses_and_multifunction_devices() {
    let text = "
00:01.0 root-port acs=5f/1d group=0
  01:00.0 pci-bridge group=1
    02:00.0 pci driver=vfio-pci group=1
    02:01.0 pci driver=e1000 group=2
00:02.0 root-port acs=5f/1d group=3
  03:00.0 endpoint mf acs=5f/0 driver=vfio-pci group=4
  03:00.1 endpoint mf acs=5f/1d driver=vfio-pci group=5
00:03.0 root-port acs=5f/1d group=6
  04:00.0 endpoint mf driver=vfio-pci group=7
  04:00.1 endpoint mf driver=ahci group=8
00:10.0 rciep mf acs=5c/0 driver=vfio-pci group=9
00:10.1 rciep mf acs=5c/1c driver=vfio-pci group=10
";
    assert_eq!(
        texts(text, "02:00.0"),
        ["0000:02:00.0 reaches 0000:02:01.0 without the IOMMU, through 0000:01:00.0"]
    );
    // A device that implements redirection and has it off lets its functions reach each other.
    for device in ["03:00.0", "03:00.1"] {
        assert_eq!(
            texts(text, device),
            ["0000:03:00.0 reaches 0000:03:00.1 without the IOMMU, through 0000:03:00.0"]
        );
    }
    assert_eq!(
        texts(text, "00:10.1"),
        ["0000:00:10.0 reaches 0000:00:10.1 without the IOMMU, through 0000:00:10.0"]
    );
    // One without ACS is not supposed to; that is a warning.
    let topology = Machine::new(text).topology();
    let [exposure] = of(&topology, "04:00.0").try_into().unwrap();
    assert_eq!(exposure.reach, UntranslatedReach::Perhaps);
    assert!(!exposure.needs_consent());
}

#[test]
fn what_is_up_to_the_root_complex_is_a_warning_and_what_cannot_be_read_is_not() {
    let text = "
00:01.0 root-port acs=5f/0 group=1
  01:00.0 endpoint driver=vfio-pci group=2
00:02.0 root-port acs=5f/1d group=3
  02:00.0 endpoint driver=nvme group=4
";
    for port in ["acs=5f/0", "acs=5f/0 visible=40"] {
        let topology = Machine::new(&text.replace("acs=5f/0", port)).topology();
        let [exposure] = of(&topology, "01:00.0").try_into().unwrap();
        assert!(!exposure.needs_consent());
        assert_eq!(
            exposure.to_string(),
            "0000:01:00.0 may reach 0000:02:00.0 without the IOMMU, through 0000:00:01.0"
        );
    }
    let hidden = switch("acs=5f/1d visible=40", REDIRECTS, REDIRECTS);
    let topology = Machine::new(&hidden).topology();
    for exposure in of(&topology, "03:00.0") {
        assert_eq!(exposure.reach, UntranslatedReach::Unknown);
        assert!(exposure.needs_consent());
        let said = exposure.to_string();
        assert!(
            said.ends_with("through 0000:02:00.0, which could not be read"),
            "{said}"
        );
    }
}

#[test]
fn exposures_of_a_model_follow_its_registers() {
    let topology = Machine::new(&switch(REDIRECTS, REDIRECTS, REDIRECTS)).topology();
    let mut model = GroupModel::as_found(&topology, &Kernel::of(&topology));
    model.set_acs_control(bdf("02:00.0"), "0011".parse().unwrap());
    let exposures = RoutingModel::of(&model).exposures(&model.groups(), &set("03:00.0"));
    assert_eq!(exposures.len(), 2);
    assert!(exposures[0].involves(&set("03:00.0 09:00.0")));
    assert!(exposures[0].involves(&set("04:00.0")));
    assert!(!exposures[0].involves(&set("05:00.0")));
    model.remove(bdf("04:00.0"));
    let exposures = RoutingModel::of(&model).exposures(&model.groups(), &set("03:00.0"));
    assert_eq!(exposures.len(), 1, "what is not there is not reached");
}

/// On machines drawn from seeds: whoever is given devices without an exposure that needs consent reaches nobody else
/// for certain, and no other guest reaches them.
#[test]
fn invariant_3_holds_for_every_admitted_set() {
    let (mut admitted, mut refused) = (0, 0);
    for seed in 0..160 {
        let mut random = Random::new(seed ^ 0xe590);
        let text = random::machine(&mut random)
            .lines()
            .map(|line| match random.below(3) {
                0 if line.contains("endpoint") => format!("{line} driver=vfio-pci\n"),
                _ => format!("{line}\n"),
            })
            .collect::<String>();
        let topology = Machine::new(&text).started();
        let groups = Groups::found(&topology);
        let routing = RoutingModel::found(&topology);
        let is_bridge = |f: &Function| f.is_bridge() || f.class() >> 16 == 6;
        let devices = topology.functions().iter().filter(|f| !is_bridge(f));
        let devices: Vec<Sbdf> = devices.map(|f| f.sbdf()).collect();
        let Some(first) = devices.first().map(|_| random.pick(&devices)) else {
            continue;
        };
        let given: BTreeSet<Sbdf> = [first, random.pick(&devices)].into();
        let exposures = routing.exposures(&groups, &given);
        let free = exposures.iter().all(|exposure| !exposure.needs_consent());
        if free {
            admitted += 1;
        } else {
            refused += 1;
        }
        let own = |f: Sbdf| given.iter().any(|g| *g == f || groups.together(*g, f));
        for mine in devices.iter().copied().filter(|f| own(*f)) {
            for other in devices.iter().copied().filter(|f| !own(*f)) {
                let guests = topology.get(other).unwrap().driver() == Some("vfio-pci");
                for (from, to, counts) in [(mine, other, true), (other, mine, guests)] {
                    let reach = routing.reach(from, to);
                    let certain =
                        matches!(reach, UntranslatedReach::Yes | UntranslatedReach::Unknown);
                    assert!(
                        !(free && counts && certain),
                        "seed {seed}: {from} {to}\n{text}"
                    );
                    // Each is told once, as it is.
                    let told = exposures
                        .iter()
                        .filter(|exposure| exposure.function == to && exposure.to.contains(&from));
                    let told: Vec<UntranslatedReach> =
                        told.map(|exposure| exposure.reach).collect();
                    let expected = if counts && reach != UntranslatedReach::No {
                        vec![reach]
                    } else {
                        vec![]
                    };
                    assert_eq!(told, expected, "seed {seed}: {from} {to}\n{text}");
                }
            }
        }
    }
    assert!(admitted > 25 && refused > 25, "{admitted} {refused}");
}
