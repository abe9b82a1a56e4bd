//! Topologies from sysfs and from files.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set up its machine should stop"
)]

use std::fs;

use iommu_group::{
    Acs, AcsBits, Address, BusAddress, Host, PortType, Sbdf, Space, Sysfs, SysfsError, Topology,
    Unreadable,
};
use test_machine::{Machine, bdf};

const HOST: &str = "
00:00.0 host id=8086:29c0 group=0
00:04.0 root-port acs=5f/1d mf group=2 driver=pcieport slot pciehp mem=fe000000-fe2fffff pref=800000000-8ffffffff node=1
  01:00.0 upstream group=5 driver=pcieport
    02:00.0 downstream group=6 port=3
      03:00.0 endpoint id=1b36:0010 sub=1af4:1100 driver=vfio-pci group=6 bar0=fe100000+4000 bar2=800000000+1000000 flr reset=flr,bus
    02:01.0 downstream group=7 port=4
00:04.1 root-port acs=5f/1d mf group=3 ari
  05:00.0 endpoint id=8086:10c9 driver=igb group=8 sriov=2 vf-bar=810000000 ats=on
  05:10.0 endpoint vf=05:00.0 group=9 bar0=810000000+4000
  06:00.0 endpoint vf=05:00.0 group=10 bar0=810004000+4000
00:0e.0 endpoint id=8086:28c0 group=11
  pci10000:e0
    10000:e0:06.0 root-port
      10000:e1:00.0 endpoint
00:1f.0 host mf
00:1f.2 pci mf
";

fn seen(topology: &Topology) -> Vec<String> {
    topology
        .functions()
        .iter()
        .map(|f| f.sbdf().to_string())
        .collect()
}

#[test]
fn a_scan_sees_every_function_with_its_type_and_place() {
    let topology = Machine::new(HOST).scanned();
    assert_eq!(topology.functions().len(), 15);
    for (address, port_type, above) in [
        ("00:00.0", PortType::Conventional, None),
        ("00:04.0", PortType::RootPort, None),
        ("01:00.0", PortType::SwitchUpstream, Some("00:04.0")),
        ("02:01.0", PortType::SwitchDownstream, Some("01:00.0")),
        ("03:00.0", PortType::Endpoint, Some("02:00.0")),
        ("06:00.0", PortType::Endpoint, Some("00:04.1")),
        ("10000:e0:06.0", PortType::RootPort, None),
        ("10000:e1:00.0", PortType::Endpoint, Some("10000:e0:06.0")),
    ] {
        let function = topology.get(bdf(address)).unwrap();
        assert_eq!(function.port_type(), port_type, "{address}");
        let upstream = topology.upstream(bdf(address)).map(|f| f.sbdf());
        assert_eq!(upstream, above.map(bdf), "{address}");
    }
    let roots: Vec<_> = topology
        .root_buses()
        .iter()
        .map(|r| (r.to_string(), r.behind))
        .collect();
    assert_eq!(
        roots,
        [
            ("pci0000:00".to_owned(), None),
            ("pci10000:e0".to_owned(), Some(bdf("00:0e.0")))
        ]
    );
    assert_eq!(
        topology.root_bus(bdf("10000:e1:00.0")),
        topology.root_buses().last()
    );
}

#[test]
fn the_tree_can_be_walked_in_every_direction() {
    let topology = Machine::new(HOST).scanned();
    let names = |functions: Vec<Sbdf>| -> Vec<String> {
        functions
            .iter()
            .map(|f| f.to_string()[5..].to_owned())
            .collect()
    };
    let up = topology
        .ancestors(bdf("03:00.0"))
        .map(|f| f.sbdf())
        .collect();
    assert_eq!(names(up), ["02:00.0", "01:00.0", "00:04.0"]);
    let down = topology
        .descendants(bdf("00:04.0"))
        .map(|f| f.sbdf())
        .collect();
    assert_eq!(names(down), ["01:00.0", "02:00.0", "03:00.0", "02:01.0"]);
    let below = topology
        .children(bdf("00:04.1"))
        .map(|f| f.sbdf())
        .collect();
    assert_eq!(names(below), ["05:00.0", "05:10.0", "06:00.0"]);
    let virtuals = topology
        .virtual_functions(bdf("05:00.0"))
        .map(|f| f.sbdf())
        .collect();
    assert_eq!(names(virtuals), ["05:10.0", "06:00.0"]);
    let root = topology.root_buses()[0];
    assert_eq!(topology.on_root_bus(&root).count(), 6);
    assert_eq!(topology.descendants(bdf("03:00.0")).count(), 0);
    assert_eq!(topology.ancestors(bdf("77:00.0")).count(), 0);
}

#[test]
fn functions_have_what_sysfs_says() {
    let topology = Machine::new(HOST).scanned();
    let nvme = topology.get(bdf("03:00.0")).unwrap();
    assert_eq!(nvme.ids().to_string(), "1b36:0010");
    assert_eq!(
        (nvme.ids().subsystem_vendor, nvme.ids().subsystem_device),
        (0x1af4, 0x1100)
    );
    assert_eq!(
        (nvme.driver(), nvme.group().unwrap().0),
        (Some("vfio-pci"), 6)
    );
    assert_eq!(
        nvme.reset_method_words().unwrap().collect::<Vec<_>>(),
        ["flr", "bus"]
    );
    assert!(nvme.config().express.unwrap().flr);
    let bars = topology.bars(nvme);
    let seen: Vec<_> = bars
        .iter()
        .map(|b| {
            (
                b.index,
                b.space,
                b.bus_address.map(Address::value),
                b.size_bytes,
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            (0, Space::Memory64, Some(0xfe10_0000), 0x4000),
            (2, Space::Memory64, Some(0x8_0000_0000), 0x100_0000)
        ]
    );
    let port = topology.get(bdf("00:04.0")).unwrap();
    assert_eq!(port.numa_node(), Some(1));
    assert!(port.has_native_hotplug() && port.is_bridge() && port.is_multifunction());
    assert_eq!(port.secondary_bus(), Some(1));
    assert_eq!(
        port.windows().unwrap().memory,
        Some(0xfe00_0000..=0xfe2f_ffff)
    );
    assert_eq!(
        port.windows().unwrap().prefetchable,
        Some(0x8_0000_0000..=0x8_ffff_ffff)
    );
    assert_eq!(port.acs().registers().unwrap().control, AcsBits::REQUIRED);
    assert!(port.reset_method_words().is_none());
    let switch = topology.get(bdf("02:00.0")).unwrap();
    assert_eq!(*switch.acs(), Acs::Absent);
    assert_eq!(
        switch.config().express.unwrap().link.unwrap().port_number,
        3
    );
    assert!(!switch.has_native_hotplug());
    assert!(
        topology
            .get(bdf("05:00.0"))
            .unwrap()
            .config()
            .ats
            .unwrap()
            .enabled
    );
    assert!(topology.has_groups() && !topology.needs_privilege());
}

#[test]
fn virtual_functions_are_what_the_kernel_says_and_where_their_physical_function_says() {
    let machine = HOST
        .replace(
            "vf-bar=810000000 ",
            "vf-bar=810000000 cpu-offset=1000000000 ",
        )
        .replace(
            "bar0=810004000+4000",
            "bar0=810004000+4000 cpu-offset=1000000000",
        );
    let topology = Machine::new(&machine).scanned();
    let virtual_function = topology.get(bdf("06:00.0")).unwrap();
    assert_eq!(virtual_function.ids().to_string(), "8086:10ca");
    assert_eq!(virtual_function.class(), 0x02_0000);
    assert_eq!(virtual_function.physical_function(), Some(bdf("05:00.0")));
    assert!(virtual_function.is_virtual() && !virtual_function.is_multifunction());
    let bar = topology.bars(virtual_function)[0];
    assert_eq!(bar.bus_address, Some(BusAddress::new(0x8_1000_4000)));
}

#[test]
fn later_functions_count_as_multifunction_whatever_their_header_says() {
    let topology = Machine::new(
        "
         00:01.0 root-port ari
           01:00.0 endpoint
           01:01.0 endpoint
         00:02.0 root-port
           02:00.0 endpoint
           02:00.1 endpoint
         00:03.0 root-port
           03:00.0 endpoint mf
         00:04.0 rciep
         00:05.0 rciep",
    )
    .topology();
    let multifunction: Vec<_> = topology
        .functions()
        .iter()
        .filter(|f| f.is_multifunction())
        .map(|f| f.sbdf())
        .collect();
    // With ARI a bus has one device only, and what looks like its second device is function 8.
    assert_eq!(
        multifunction,
        [bdf("01:01.0"), bdf("02:00.1"), bdf("03:00.0")]
    );
}

#[test]
fn impossible_port_types_are_corrected() {
    for (above, claimed, corrected) in [
        ("root-port", "downstream", PortType::SwitchUpstream),
        ("downstream", "downstream", PortType::SwitchUpstream),
        ("pcie-bridge", "downstream", PortType::SwitchUpstream),
        ("upstream", "upstream", PortType::SwitchDownstream),
        ("upstream", "downstream", PortType::SwitchDownstream),
        ("root-port", "upstream", PortType::SwitchUpstream),
    ] {
        let text = format!("00:01.0 {above}\n  01:00.0 {claimed}\n");
        let topology = Machine::new(&text).topology();
        let found = topology.get(bdf("01:00.0")).unwrap();
        assert_eq!(found.port_type(), corrected, "{above} {claimed}");
    }
    // The correction of one is what the next one sees.
    let topology =
        Machine::new("00:01.0 root-port\n 01:00.0 downstream\n  02:00.0 upstream\n").topology();
    assert_eq!(
        topology.get(bdf("02:00.0")).unwrap().port_type(),
        PortType::SwitchDownstream
    );
}

#[test]
fn unprivileged_readers_know_that_they_do_not_know() {
    let topology = Machine::new(
        "00:01.0 root-port acs=5f/1d visible=40
           01:00.0 endpoint visible=40",
    )
    .scanned();
    let port = topology.get(bdf("00:01.0")).unwrap();
    assert_eq!(port.port_type(), PortType::Unknown);
    assert_eq!(*port.acs(), Acs::Unknown(Unreadable::Unprivileged));
    assert!(port.is_bridge(), "the header is not hidden");
    assert!(topology.needs_privilege());
}

#[test]
fn functions_that_do_not_answer_keep_their_names() {
    let topology = Machine::new("00:01.0 endpoint dead id=10de:2342").scanned();
    let dead = topology.get(bdf("00:01.0")).unwrap();
    assert_eq!(dead.ids().to_string(), "10de:2342");
    assert_eq!(*dead.acs(), Acs::Unknown(Unreadable::Unreachable));
    assert_eq!(dead.port_type(), PortType::Unknown);
    assert!(!topology.needs_privilege());
}

#[test]
fn a_copy_without_links_is_put_together_by_bus_numbers() {
    let machine = Machine::new(HOST);
    let flat = tempfile::tempdir().unwrap();
    for function in machine.topology().functions() {
        let dir = flat
            .path()
            .join("bus/pci/devices")
            .join(function.sbdf().to_string());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("config"), machine.config(function.sbdf())).unwrap();
    }
    let topology = Topology::scan(&Sysfs::new(flat.path()), Host::default()).unwrap();
    let up: Vec<_> = topology
        .ancestors(bdf("03:00.0"))
        .map(|f| f.sbdf())
        .collect();
    assert_eq!(up, ["02:00.0", "01:00.0", "00:04.0"].map(bdf));
    assert_eq!(topology.upstream(bdf("00:04.0")), None);
}

#[test]
fn nothing_and_hardly_anything() {
    let dir = tempfile::tempdir().unwrap();
    let sysfs = Sysfs::new(dir.path());
    assert!(matches!(
        Topology::scan(&sysfs, Host::default()),
        Err(SysfsError::NoPci { .. })
    ));
    let list = dir.path().join("bus/pci/devices");
    fs::create_dir_all(&list).unwrap();
    let empty = Topology::scan(&sysfs, Host::default()).unwrap();
    assert_eq!(empty.functions().len(), 0);
    assert_eq!(Topology::from_fixture(&empty.to_fixture()).unwrap(), empty);
    // A function of which nothing can be read, and things that are no functions.
    fs::create_dir_all(list.join("0000:00:01.0")).unwrap();
    fs::create_dir_all(list.join("not-a-function")).unwrap();
    std::os::unix::fs::symlink("/nonexistent/0000:00:02.0", list.join("0000:00:02.0")).unwrap();
    let topology = Topology::scan(&sysfs, Host::default()).unwrap();
    assert_eq!(seen(&topology), ["0000:00:01.0"]);
    assert_eq!(topology.functions()[0].port_type(), PortType::Unknown);
}

#[test]
fn a_file_reads_back_as_the_scan() {
    let scanned = Machine::new(HOST).scanned();
    let text = scanned.to_fixture();
    let read = Topology::from_fixture(&text).unwrap();
    assert_eq!(read, scanned);
    assert_eq!(read.to_fixture(), text);
    assert!(text.lines().all(|line| line.len() < 120), "a line per fact");
}

#[test]
fn loops_of_bridges_in_a_file_are_cut() {
    let text = Machine::new(
        "00:01.0 root-port\n 01:00.0 upstream\n  02:00.0 downstream\n   03:00.0 endpoint",
    )
    .fixture();
    let looped = text.replace("\"parent\": \"pci0000:00\"", "\"parent\": \"0000:02:00.0\"");
    let topology = Topology::from_fixture(&looped).unwrap();
    for function in topology.functions() {
        assert!(topology.ancestors(function.sbdf()).count() <= 3);
        assert!(topology.descendants(function.sbdf()).count() <= 4);
    }
    let itself = text.replace("\"parent\": \"pci0000:00\"", "\"parent\": \"0000:00:01.0\"");
    assert_eq!(
        Topology::from_fixture(&itself)
            .unwrap()
            .upstream(bdf("00:01.0")),
        None
    );
}

#[test]
fn files_that_are_none_are_refused_with_a_reason() {
    let good = Machine::new(HOST).fixture();
    for (from, to, reason) in [
        ("{", "", "not a topology file"),
        ("pci-topology", "lspci", "its format is `lspci`"),
        ("\"version\": 1", "\"version\": 2", "version 2"),
        (
            "\"parent\": \"pci0000:00\"",
            "\"parent\": \"nowhere\"",
            "parent `nowhere`",
        ),
        (
            "pci10000:e0\": \"0000:00:0e.0\"",
            "e0\": \"0000:00:0e.0\"",
            "root bus `e0`",
        ),
        ("0000:00:00.0", "0000:00:20.0", "device `20`"),
        ("000-fff", "000-", "config `000-`"),
        (
            "810000000-810003fff 140204",
            "810000000",
            "resources `810000000`",
        ),
        ("\"vendor\": \"8086\"", "\"vendor\": \"x\"", "known_as `x`"),
        ("\"config\"", "\"konfig\"", "unknown field `konfig`"),
    ] {
        assert!(good.contains(from), "{from}");
        let error = Topology::from_fixture(&good.replacen(from, to, 1))
            .unwrap_err()
            .to_string();
        assert!(error.contains(reason), "{error}: want {reason}");
    }
}
