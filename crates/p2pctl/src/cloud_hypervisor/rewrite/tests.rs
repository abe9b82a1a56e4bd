//! Command lines as they are written and as cloud-hypervisor gets them.

use std::ffi::OsString;

use iommu_group::{HoleCause, MemoryHole};

use super::super::constraints::DeviceProperties;
use super::*;

fn line(text: &str) -> CommandLine {
    CommandLine::new(text.split_whitespace().map(OsString::from).collect())
}

/// A host with as many ordinary devices as the command line asks for; the IOMMU is as wide as given.
fn host(devices: usize, iommu_bits: u8, version: &str, wants_clique: bool) -> Host {
    let properties = |n: usize| DeviceProperties {
        sbdf: format!("0000:{:02x}:00.0", n + 3).parse().unwrap(),
        wants_clique,
        bars_32: false,
        bars_64: true,
        holes: Vec::new(),
    };
    Host {
        devices: (0..devices).map(|n| Some(properties(n))).collect(),
        by_bus_address: None,
        hidden: Vec::new(),
        iommu_bits: Some(iommu_bits),
        cpu_bits: None,
        accepts_any_p2pdma: false,
        version: Version::find(version),
        exposures: Vec::new(),
        unsafe_interrupts: None,
    }
}

fn rewritten(text: &str, bits: u8, version: &str, gpus: bool) -> Rewritten {
    let line = line(text);
    let requested = requested(&line).unwrap();
    let host = host(requested.len(), bits, version, gpus);
    rewrite(&line, &requested, &host, IsolationMode::Permanent).unwrap()
}

fn joinable(text: &str, version: &str) -> Rewritten {
    let line = line(text);
    let requested = requested(&line).unwrap();
    let host = host(requested.len(), 48, version, false);
    rewrite(&line, &requested, &host, IsolationMode::UntilJoined).unwrap()
}

fn words(rewritten: &Rewritten) -> String {
    let words: Vec<_> = rewritten
        .line
        .words()
        .iter()
        .map(|w| w.to_str().unwrap())
        .collect();
    words.join(" ")
}

#[test]
fn command_lines_as_written_and_as_run() {
    let table = [
        // Peers: what only this tool knows is taken out, everything else stays where it is.
        (
            "ch -v --device path=/a,p2p=on,id=x path=/b,p2p=on --cpus boot=2 --kernel k",
            "ch -v --device path=/a,id=x path=/b --cpus boot=2 --kernel k",
        ),
        (
            "ch --device=path=/a,p2p=on --device path=/b,iommu=off,p2p=on --serial tty",
            "ch --device=path=/a --device path=/b,iommu=off --serial tty",
        ),
        // None asked: nothing is mapped.
        (
            "ch --device path=/a",
            "ch --device path=/a --platform vfio_p2p_dma=off",
        ),
        (
            "ch --platform num_pci_segments=2 --device path=/a,p2p=off path=/b",
            "ch --platform num_pci_segments=2,vfio_p2p_dma=off --device path=/a path=/b",
        ),
        (
            "ch --platform=serial_number=\"a,b\" --device path=/a",
            "ch --platform=serial_number=\"a,b\",vfio_p2p_dma=off --device path=/a",
        ),
        // It is off already.
        (
            "ch --platform vfio_p2p_dma=off --device path=/a",
            "ch --platform vfio_p2p_dma=off --device path=/a",
        ),
    ];
    for (written, run) in table {
        assert_eq!(
            words(&rewritten(written, 48, "v53.0", false)),
            run,
            "{written}"
        );
    }
}

#[test]
fn what_may_be_joined_later_is_started_without_its_bars() {
    const ALL: &str = "x_exclude_mmap_bars=[0,1,2,3,4,5]";
    let isolation = format!("ch --device path=/a,{ALL} path=/b,{ALL}");
    for (written, version, run) in [
        ("ch --device path=/a path=/b", "v53.0", isolation.as_str()),
        // One alone would be in reach of the other.
        ("ch --device path=/a,p2p=on path=/b", "v53.0", &isolation),
        // Peers from the start are peers.
        (
            "ch --device path=/a,p2p=on path=/b,p2p=on",
            "v53.0",
            "ch --device path=/a path=/b",
        ),
        // Whoever says that nothing may be mapped ever gets that.
        (
            "ch --platform vfio_p2p_dma=off --device path=/a",
            "v53.0",
            "ch --platform vfio_p2p_dma=off --device path=/a",
        ),
        // Older ones have nothing of this.
        ("ch --device path=/a", "v51.0", "ch --device path=/a"),
    ] {
        assert_eq!(words(&joinable(written, version)), run, "{written}");
    }
    let changes = joinable("ch --device path=/a", "v52.0").changes;
    assert!(changes[0].why.contains("slow"), "{changes:?}");
}

#[test]
fn devices_that_may_be_joined_have_the_address_bits_of_peers() {
    let line = line("ch --device path=/a path=/b");
    let requested = requested(&line).unwrap();
    let mut host = host(2, 48, "v53.0", false);
    host.devices[0].as_mut().unwrap().holes = vec![MemoryHole {
        range: 0x380_0000_0000..=0x380_3fff_ffff,
        port: "0000:01:00.0".parse().unwrap(),
        cause: HoleCause::Switch,
        certain: true,
    }];
    let bits = |isolation| {
        let rewritten = rewrite(&line, &requested, &host, isolation).unwrap();
        option(&rewritten.line, "--cpus", "max_phys_bits")
    };
    assert_eq!(bits(IsolationMode::UntilJoined).as_deref(), Some("41"));
    assert_eq!(bits(IsolationMode::Permanent), None);
}

#[test]
fn the_guest_has_no_more_address_bits_than_the_iommu() {
    let table = [
        (
            "ch --device path=/a,p2p=on",
            "ch --device path=/a --cpus max_phys_bits=39",
        ),
        (
            "ch --cpus boot=2,max_phys_bits=46,affinity=[0@[1,2]] --device path=/a,p2p=on",
            "ch --cpus boot=2,max_phys_bits=39,affinity=[0@[1,2]] --device path=/a",
        ),
        (
            "ch --cpus max_phys_bits=36 --device path=/a,p2p=on",
            "ch --cpus max_phys_bits=36 --device path=/a",
        ),
    ];
    for (written, run) in table {
        assert_eq!(
            words(&rewritten(written, 39, "v53.0", false)),
            run,
            "{written}"
        );
    }
}

#[test]
fn gpus_are_told_apart_by_their_clique() {
    let gpus = rewritten(
        "ch --device path=/a,p2p=on path=/b,p2p=on,x_nv_gpudirect_clique=2",
        48,
        "v53.0",
        true,
    );
    assert_eq!(
        words(&gpus),
        "ch --device path=/a,x_nv_gpudirect_clique=0 path=/b,x_nv_gpudirect_clique=2"
    );
    assert_eq!(gpus.changes.len(), 1);
}

#[test]
fn a_version_without_the_switch_is_not_told() {
    let old = rewritten("ch --device path=/a", 48, "v51.0", false);
    assert_eq!(words(&old), "ch --device path=/a");
    let unknown = rewritten("ch --device path=/a", 48, "self-made", false);
    assert!(words(&unknown).ends_with("vfio_p2p_dma=off"));
    let older = rewritten("ch --device path=/a", 48, "v38.0", false);
    assert!(older.notes[0].contains("v38.0"), "{older:?}");
}

#[test]
fn what_was_changed_is_said_with_the_reason() {
    let both = rewritten("ch --device path=/a", 39, "v53.0", false);
    let what: Vec<_> = both
        .changes
        .iter()
        .map(|change| change.what.as_str())
        .collect();
    assert_eq!(
        what,
        ["--platform vfio_p2p_dma=off", "--cpus max_phys_bits=39"]
    );
    assert!(both.changes.iter().all(|change| !change.why.is_empty()));
}

#[test]
fn what_cannot_be_held_but_was_not_asked_for_is_noted() {
    let peers = rewritten(
        "ch --platform iommufd=on --device path=/a,p2p=on path=/b,p2p=on",
        48,
        "v53.0",
        false,
    );
    let all = peers.notes.join("\n");
    assert!(all.contains("flat bus") && all.contains("EFAULT"), "{all}");
    let none = rewritten(
        "ch --platform iommufd=on --device path=/a",
        48,
        "v53.0",
        false,
    );
    assert!(none.notes.is_empty(), "{none:?}");
}

#[test]
fn transfers_that_fail_silently_are_noted_where_the_cpu_lets_them() {
    let notes = |text: &str, accepts_any_p2pdma| {
        let line = line(text);
        let requested = requested(&line).unwrap();
        let host = Host {
            accepts_any_p2pdma,
            ..host(requested.len(), 48, "v53.0", false)
        };
        let rewritten = rewrite(&line, &requested, &host, IsolationMode::Permanent).unwrap();
        rewritten.notes.join("\n").contains("silently wrong")
    };
    for (text, noted) in [
        ("ch --device path=/a path=/b", true),
        ("ch --device path=/a,p2p=on path=/b", true),
        ("ch --device path=/a,p2p=on path=/b,p2p=on", false),
        ("ch --device path=/a", false),
    ] {
        assert_eq!(notes(text, true), noted, "{text}");
        assert!(!notes(text, false), "{text}");
    }
}
