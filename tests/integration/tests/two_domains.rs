//! One VM with two P2P domains and devices beside them, on a host whose IOMMU has addresses of 39 bits.
//!
//! The guest runs once; each test looks at another side of what it and the host said.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "two_domains/lspci.rs"]
mod lspci;
#[path = "two_domains/run.rs"]
mod run;

use std::fs::File;
use std::os::unix::fs::FileExt;

use lab::report::{Access, Finding, Outcome};

use run::{DRIVES, Domain, LEFT, MEMORY, RIGHT, Run};

#[test]
fn devices_reach_those_of_their_domain_and_no_other() {
    let run = Run::get();
    let mut peers = 0;
    for finding in &run.findings {
        if let Finding::Peer {
            initiator,
            target,
            result,
            ..
        } = finding
        {
            let expected = if run.domain_in_guest(initiator) == run.domain_in_guest(target) {
                Outcome::Ok
            } else {
                Outcome::Nothing
            };
            assert_eq!(*result, expected, "{finding:?}");
            peers += 1;
        }
    }
    // Four engines; each aims at three others and at the memory, twice.
    assert_eq!(peers, 4 * 4 * 2, "{:#?}", run.output);
}

#[test]
fn all_of_them_reach_guest_memory() {
    let results: Vec<_> = Run::get()
        .findings
        .iter()
        .filter_map(|finding| match finding {
            Finding::Memory { result, .. } => Some(*result),
            _ => None,
        })
        .collect();
    assert_eq!(results, [Outcome::Ok; 4]);
}

#[test]
fn the_host_names_who_aimed_at_the_other_domain() {
    let run = Run::get();
    let mut requesters = Vec::new();
    for fault in &run.faults {
        let from = run.domain_on_host(&fault.requester);
        let at = run.owner_of(fault.address);
        assert_ne!(Some(from), at, "{fault:?} is within a domain");
        assert!(at.is_some(), "{fault:?} is at no peer");
        requesters.push(from);
    }
    // The kernel tells ten lines in five seconds; both domains are among the first.
    for domain in [Domain::Left, Domain::Right] {
        assert!(requesters.contains(&domain), "{:#?}", run.host_log);
    }
}

#[test]
fn drives_do_p2pdma_in_their_domain_and_the_guest_refuses_it_across() {
    let run = Run::get();
    let mut transfers = 0;
    for finding in &run.findings {
        if let Finding::Transfer {
            memory,
            drive,
            result,
            error,
            ..
        } = finding
        {
            let within = run.domain_in_guest(memory) == run.domain_in_guest(drive);
            let refused = error
                .as_ref()
                .is_some_and(|e| e.contains("Invalid argument"));
            assert_eq!(*result == Outcome::Ok, within, "{finding:?}");
            assert_eq!(refused, !within, "{finding:?}");
            transfers += 1;
        }
    }
    assert_eq!(transfers, 3 * 2 * 2, "{:#?}", run.output);
    // As seen from outside of the host: a block that says whose memory it comes from.
    let expected = [0x0050_3250_0000_0002, 0x0050_3250_0000_0001, 0];
    for (drive, expected) in DRIVES.into_iter().zip(expected) {
        let mut block = [0; 4096];
        let image = File::open(run.dir.join(format!("{drive}.img"))).unwrap();
        image.read_exact_at(&mut block, 8192).unwrap();
        for word in block.chunks_exact(8) {
            let word = u64::from_le_bytes(word.try_into().unwrap());
            assert_eq!(word, expected, "{drive}");
        }
    }
}

#[test]
fn memory_of_a_device_shows_outside_of_the_host_what_its_peers_wrote() {
    let run = Run::get();
    let words: Vec<(Domain, u32)> = run
        .findings
        .iter()
        .filter_map(|finding| match finding {
            Finding::Peer {
                initiator,
                target,
                access: Access::Write,
                wrote,
                ..
            } if run.host_of(target) == Some(MEMORY) => {
                let word = u32::from_str_radix(wrote.trim_start_matches("0x"), 16).unwrap();
                Some((run.domain_in_guest(initiator), word))
            }
            _ => None,
        })
        .collect();
    assert_eq!(words.len(), 4);
    let memory = File::open(run.dir.join("mem0.mem")).unwrap();
    for (domain, word) in words {
        // The second byte is the number of the initiator.
        let place = u64::from(word >> 8 & 0xff) * 4;
        let mut found = [0; 4];
        memory.read_exact_at(&mut found, place).unwrap();
        let arrived = u32::from_le_bytes(found) == word;
        assert_eq!(arrived, domain == Domain::Left, "{word:#x} and {found:x?}");
    }
}

#[test]
fn msi_and_msix_fire_of_drives_cards_a_controller_and_a_virtual_function() {
    let run = Run::get();
    let fired = |name: &str, kind: &str| {
        run.findings.iter().any(|finding| {
            matches!(finding, Finding::Interrupt { name: n, kind: k, count }
                if n.starts_with(name) && k.contains(kind) && *count > 0)
        })
    };
    let expected = [
        ("nvme0q1", "PCI-MSIX-"),
        ("nvme1q1", "PCI-MSIX-"),
        ("nvme2q1", "PCI-MSIX-"),
        ("eth0-rx-0", "PCI-MSIX-"),
        ("eth1", "PCI-MSIX-"),
        ("ioc0", "PCI-MSI-"),
    ];
    for (name, kind) in expected {
        assert!(fired(name, kind), "{name}: {:#?}", run.output);
    }
}

#[test]
fn a_virtual_function_looks_like_a_function() {
    let run = Run::get();
    let all = run.guest_lspci();
    // In hardware its IDs read as ffff, and its memory enable as 0 (PCIe r6.0 §9.3.4.1).
    let function = all.iter().find(|f| f.id == "8086:10ca");
    let function = function.unwrap_or_else(|| panic!("none in {all:#?}"));
    assert!(
        function.has("Control: I/O- Mem+ BusMaster+"),
        "{function:#?}"
    );
    for bar in [0, 3] {
        let region = format!("Region {bar}: Memory at ");
        let size = |line: &&String| line.starts_with(&region) && line.ends_with("[size=16K]");
        assert!(function.lines.iter().any(|l| size(&l)), "{function:#?}");
    }
    assert!(function.has("MSI-X: Enable+ Count=3"), "{function:#?}");
    assert!(function.has("Kernel driver in use: igbvf"), "{function:#?}");
}

#[test]
fn the_guests_topology_is_that_of_real_switches() {
    let run = Run::get();
    let guest = run.guest_lspci();
    let host = lspci::parse(&run.host_lspci);
    for kind in ["Root Port", "Upstream Port", "Downstream Port"] {
        let real = host.iter().find(|f| f.port_kind() == Some(kind)).unwrap();
        let ours: Vec<_> = guest
            .iter()
            .filter(|f| f.port_kind() == Some(kind))
            .collect();
        // Of the two switches, and root ports for them and for the three devices that are in no domain.
        let least = match kind {
            "Root Port" => 5,
            "Upstream Port" => 2,
            _ => LEFT.len() + RIGHT.len(),
        };
        assert!(ours.len() >= least, "{kind}: {guest:#?}");
        for port in ours {
            let missing: Vec<_> = real
                .labels()
                .filter(|label| !port.labels().any(|ours| ours == *label))
                .filter(|label| *label != "I/O behind bridge")
                .collect();
            assert!(missing.is_empty(), "{missing:?} of {real:#?} in {port:#?}");
            assert!(!port.has("Access Control Services"), "{port:#?}");
        }
    }
    // QEMU's own switch has a link that is faster than it can be.
    let seen = host.iter().any(|f| !f.oddities().is_empty());
    assert!(seen, "a check that finds nothing odd anywhere: {host:#?}");
    for function in &guest {
        assert_eq!(function.oddities(), [""; 0], "{function:#?}");
        if function.has("PresDet+") {
            assert!(function.has("DLActive+"), "{function:#?}");
        }
    }
}

#[test]
fn the_guests_kernel_finds_nothing_odd() {
    let run = Run::get();
    let log: Vec<&str> = run.guest_log().collect();
    assert!(log.iter().any(|l| l.contains("PCIe Switch Upstream Port")));
    let odd: Vec<_> = log
        .iter()
        .filter(|line| lspci::is_complaint(line))
        .collect();
    assert!(odd.is_empty(), "{odd:#?}");
}

#[test]
fn memory_and_windows_are_where_39_bits_reach() {
    const END: u64 = 1 << 39;
    let run = Run::get();
    let mut windows = 0;
    for line in run.guest_log() {
        let is_window = line.contains("root bus resource [mem");
        if is_window || line.contains("BIOS-e820: [mem") {
            let range = line.split_once("[mem ").unwrap().1;
            let range = range.split([' ', ']']).next().unwrap();
            let last = range.split_once('-').unwrap().1;
            let last = u64::from_str_radix(last.trim_start_matches("0x"), 16).unwrap();
            assert!(last < END, "{line}");
            windows += usize::from(is_window && last > u64::from(u32::MAX));
        }
    }
    assert!(windows > 0, "a window above 4 GiB: {:#?}", run.output);
}
