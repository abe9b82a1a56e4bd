//! What a VM of cloud-hypervisor may have.

use iommu_group::HoleCause;

use super::*;

const A: &str = "0000:03:00.0";
const B: &str = "0000:04:00.0";

fn requested(text: &str) -> RequestedDevice {
    RequestedDevice::parse(text).unwrap()
}

fn properties(sbdf: &str) -> Option<DeviceProperties> {
    Some(DeviceProperties {
        sbdf: sbdf.parse().unwrap(),
        wants_clique: false,
        bars_32: false,
        bars_64: true,
        holes: Vec::new(),
    })
}

fn hole(range: std::ops::RangeInclusive<u64>, certain: bool) -> MemoryHole {
    MemoryHole {
        range,
        port: "0000:02:00.0".parse().unwrap(),
        cause: HoleCause::Switch,
        certain,
    }
}

fn host(devices: &[&str]) -> Host {
    Host {
        devices: devices.iter().map(|sbdf| properties(sbdf)).collect(),
        by_bus_address: None,
        hidden: Vec::new(),
        iommu_bits: Some(48),
        cpu_bits: None,
        accepts_any_p2pdma: false,
        version: Some(Version::new(53, 0)),
        exposures: Vec::new(),
        unsafe_interrupts: None,
    }
}

fn vm_options() -> VmOptions {
    let memory = GuestMemory {
        boot: 1 << 30,
        plugged: 0,
    };
    VmOptions {
        memory: Some(memory),
        ..VmOptions::default()
    }
}

fn settings_for(
    devices: &[&str],
    vm_options: &VmOptions,
    host: &Host,
) -> Result<Settings, Vec<Limit>> {
    let requested: Vec<_> = devices.iter().map(|text| requested(text)).collect();
    required_settings(&requested, vm_options, host)
}

/// The one limit that there is.
fn limit(devices: &[&str], vm_options: &VmOptions, host: &Host) -> Limit {
    let mut limits = settings_for(devices, vm_options, host).unwrap_err();
    assert_eq!(limits.len(), 1, "{limits:?}");
    limits.remove(0)
}

#[test]
fn peers_of_one_domain_need_no_setting() {
    let settings = settings_for(
        &["path=/a,p2p=on", "path=/b,p2p=on"],
        &vm_options(),
        &host(&[A, B]),
    );
    assert_eq!(settings, Ok(Settings::default()));
}

#[test]
fn invariant_7_without_peers_no_bar_is_mapped() {
    for devices in [
        &["path=/a"][..],
        &["path=/a", "path=/b"],
        &["path=/a,p2p=on", "path=/b"],
    ] {
        let host = host(&[A, B][..devices.len()]);
        assert!(
            settings_for(devices, &vm_options(), &host).unwrap().p2p_off,
            "{devices:?}"
        );
    }
    let alone = settings_for(&["path=/a,p2p=on"], &vm_options(), &host(&[A])).unwrap();
    assert!(!alone.p2p_off, "another may come");
}

#[test]
fn invariant_2_no_device_is_outside_of_the_one_context() {
    let three = host(&[A, B, "0000:05:00.0"]);
    let found = limit(
        &["path=/a,p2p=on", "path=/b,p2p=on", "path=/c"],
        &vm_options(),
        &three,
    );
    assert!(matches!(found, Limit::Outsider { other, .. } if other == "0000:05:00.0"));
    let domains = ["path=/a,p2p=on,p2p_domain=x", "path=/b,p2p=on"];
    let found = limit(&domains, &vm_options(), &host(&[A, B]));
    assert!(matches!(found, Limit::Domains { .. }));
}

#[test]
fn a_route_by_bus_address_cannot_be_had() {
    let mut host = host(&[A, B]);
    host.by_bus_address = Some((A.parse().unwrap(), B.parse().unwrap()));
    let found = limit(&["path=/a,p2p=on", "path=/b,p2p=on"], &vm_options(), &host);
    assert!(matches!(found, Limit::BusAddress { .. }));
    assert!(
        found
            .to_string()
            .contains("--join 0000:03:00.0 0000:04:00.0 --route iommu")
    );
}

#[test]
fn a_device_that_policy_lets_initiate_only_cannot_hide_its_bars() {
    let mut host = host(&[A, B]);
    host.hidden = vec![B.parse().unwrap()];
    let found = limit(&["path=/a,p2p=on", "path=/b,p2p=on"], &vm_options(), &host);
    assert_eq!(
        found,
        Limit::Hidden {
            device: B.parse().unwrap()
        }
    );
}

#[test]
fn what_contradicts_itself_is_refused() {
    let on = VmOptions {
        p2p_dma: Some(true),
        ..vm_options()
    };
    let off = VmOptions {
        p2p_dma: Some(false),
        ..vm_options()
    };
    let two = host(&[A, B]);
    assert_eq!(limit(&["path=/a", "path=/b"], &on, &two), Limit::ForAll);
    let peers = ["path=/a,p2p=on", "path=/b,p2p=on"];
    assert!(matches!(
        limit(&peers, &off, &two),
        Limit::SwitchedOff { .. }
    ));
    let virtual_iommu = ["path=/a,p2p=on,iommu=on", "path=/b,p2p=on"];
    assert!(matches!(
        limit(&virtual_iommu, &vm_options(), &two),
        Limit::VirtualIommu { .. }
    ));
    let clique = ["path=/a,x_nv_gpudirect_clique=0"];
    assert!(matches!(
        limit(&clique, &vm_options(), &host(&[A])),
        Limit::Clique { .. }
    ));
    let mut no_path = host(&[A]);
    no_path.devices.push(None);
    let found =
        settings_for(&["path=/a,p2p=on", "fd=3,p2p=on"], &vm_options(), &no_path).unwrap_err();
    assert!(matches!(found[0], Limit::Descriptor { .. }), "{found:?}");
}

#[test]
fn a_version_that_cannot_be_told_is_refused_where_it_matters() {
    let mut old = host(&[A, B]);
    old.version = Some(Version::new(51, 1));
    let found = limit(&["path=/a", "path=/b"], &vm_options(), &old);
    assert!(matches!(found, Limit::AlwaysOn { .. }));
    assert!(settings_for(&["path=/a,p2p=on", "path=/b,p2p=on"], &vm_options(), &old).is_ok());
    old.devices.truncate(1);
    let one = settings_for(&["path=/a"], &vm_options(), &old).unwrap();
    assert!(!one.p2p_off, "it does not know the switch");
}

#[test]
fn gpus_get_the_clique_of_their_domain_unless_they_have_one() {
    let mut host = host(&[A, B]);
    for properties in host.devices.iter_mut().flatten() {
        properties.wants_clique = true;
    }
    let gpus = ["path=/a,p2p=on", "path=/b,p2p=on,x_nv_gpudirect_clique=3"];
    assert_eq!(
        settings_for(&gpus, &vm_options(), &host).unwrap().cliques,
        [0]
    );
    let isolation = ["path=/a,p2p=on", "path=/b"];
    assert!(
        settings_for(&isolation, &vm_options(), &host)
            .unwrap()
            .cliques
            .is_empty()
    );
}

#[test]
fn a_narrow_iommu_narrows_the_guest() {
    for (iommu, asked_bits, bits) in [
        (Some(39), None, Some(39)),
        (Some(39), Some(46), Some(39)),
        (Some(39), Some(38), None),
        (Some(46), None, None),
        (Some(57), None, None),
        (None, None, None),
    ] {
        let mut host = host(&[A]);
        host.iommu_bits = iommu;
        let vm_options = VmOptions {
            bits: asked_bits,
            ..vm_options()
        };
        let found = settings_for(&["path=/a"], &vm_options, &host).unwrap().bits;
        assert_eq!(
            found,
            bits.map(|bits| (bits, BitsReason::Iommu)),
            "{iommu:?} {asked_bits:?}"
        );
    }
}

#[test]
fn a_guest_has_no_more_bits_than_the_processors_anyway() {
    let mut host = host(&[A]);
    (host.iommu_bits, host.cpu_bits) = (Some(39), Some(39));
    assert_eq!(
        settings_for(&["path=/a"], &vm_options(), &host)
            .unwrap()
            .bits,
        None
    );
    host.cpu_bits = Some(40);
    let bits = settings_for(&["path=/a"], &vm_options(), &host)
        .unwrap()
        .bits;
    assert_eq!(bits, Some((39, BitsReason::Iommu)));
}

#[test]
fn memory_beyond_the_iommu_is_refused() {
    let mut host = host(&[A]);
    host.iommu_bits = Some(39);
    let mut vm_options = vm_options();
    vm_options.memory = Some(GuestMemory {
        boot: 1 << 39,
        plugged: 0,
    });
    let found = limit(&["path=/a"], &vm_options, &host);
    assert!(matches!(found, Limit::TooLarge { bits: 39, .. }));
}

#[test]
fn memory_that_requests_do_not_reach_is_refused_and_that_they_may_not_is_told() {
    let window = 0x3000_0000..=0x3fff_ffff;
    for refused in [true, false] {
        let mut host = host(&[A]);
        host.devices[0].as_mut().unwrap().holes = vec![hole(window.clone(), refused)];
        match settings_for(&["path=/a"], &vm_options(), &host) {
            Ok(settings) => assert_eq!((settings.doubtful.len(), refused), (1, false)),
            Err(limits) => assert!(
                refused && matches!(limits[0], Limit::Memory { .. }),
                "{limits:?}"
            ),
        }
    }
    let mut above = host(&[A]);
    above.devices[0].as_mut().unwrap().holes = vec![hole(0x8000_0000..=0x8fff_ffff, true)];
    assert_eq!(
        settings_for(&["path=/a"], &vm_options(), &above)
            .unwrap()
            .doubtful,
        []
    );
    let unknown = VmOptions::default();
    assert_eq!(limit(&["path=/a"], &unknown, &above), Limit::UnknownMemory);
}

#[test]
fn bars_of_peers_keep_below_windows_that_the_host_routes_by_address() {
    let peers = ["path=/a,p2p=on", "path=/b,p2p=on"];
    let mut host = host(&[A, B]);
    let high = 0x380_0000_0000..=0x380_ffff_ffff;
    host.devices[0].as_mut().unwrap().holes = vec![hole(high, false)];
    let settings = settings_for(&peers, &vm_options(), &host).unwrap();
    assert_eq!(settings.bits, Some((41, BitsReason::Windows)));
    // Right above guest memory nothing is left.
    let near = 0x1_0000_0000..=0x380_ffff_ffff;
    host.devices[0].as_mut().unwrap().holes = vec![hole(near, false)];
    assert!(matches!(
        limit(&peers, &vm_options(), &host),
        Limit::Window { .. }
    ));
}

#[test]
fn bars_of_32_bits_have_one_place_only() {
    let peers = ["path=/a,p2p=on", "path=/b,p2p=on"];
    let mut host = host(&[A, B]);
    for properties in host.devices.iter_mut().flatten() {
        (properties.bars_32, properties.bars_64) = (true, false);
        properties.holes = vec![hole(0xfe00_0000..=0xfebf_ffff, false)];
    }
    assert_eq!(
        settings_for(&peers, &vm_options(), &host).unwrap().bits,
        None
    );
    host.devices[1].as_mut().unwrap().holes = vec![hole(0xc000_0000..=0xc00f_ffff, false)];
    let found = limit(&peers, &vm_options(), &host);
    assert!(matches!(found, Limit::Window { from, .. } if from == B.parse().unwrap()));
}

#[test]
fn every_refusal_ends_with_a_way_out() {
    let sbdf = || A.parse().unwrap();
    let all = [
        Limit::Domains {
            a: sbdf(),
            b: sbdf(),
        },
        Limit::Outsider {
            peer: sbdf(),
            other: A.into(),
        },
        Limit::BusAddress {
            a: sbdf(),
            b: sbdf(),
        },
        Limit::Window {
            from: sbdf(),
            to: sbdf(),
            hole: hole(0..=1, true),
        },
        Limit::Memory {
            device: sbdf(),
            hole: hole(0..=1, true),
        },
        Limit::VirtualIommu { device: sbdf() },
        Limit::Hidden { device: sbdf() },
        Limit::AlwaysOn {
            version: Version::new(51, 0),
        },
        Limit::ForAll,
        Limit::SwitchedOff { device: sbdf() },
        Limit::Clique { device: sbdf() },
        Limit::Mapped { device: "x".into() },
        Limit::Bits {
            guest: 46,
            bits: 39,
        },
        Limit::Descriptor {
            options: "fd=3".into(),
        },
        Limit::UnknownMemory,
        Limit::TooLarge {
            memory_end: 1,
            bits: 39,
        },
    ];
    for limit in all {
        let text = limit.to_string();
        let last = text.lines().last().unwrap();
        assert!(
            last.starts_with("       ") && text.lines().count() > 1,
            "{text}"
        );
    }
}
