//! Peers that reach each other through the root complex, and what a policy file makes of them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use lab::protocol::Exit;
use lab::report::{Finding, Outcome};
use lab::{GUEST, Output, SharedLab, Turn, Vm};

static LAB: SharedLab = SharedLab::new("host-bridge", "policy");

/// All of one group: two DMA engines, and memory.
const ENGINES: [&str; 2] = ["0000:01:00.0", "0000:02:00.0"];
const MEMORY: &str = "0000:03:00.0";
/// Where the policy file is in the lab host.
const FILE: &str = "/policy.toml";

const ENGINES_INITIATE: &str = "[[device]]
vendor = '1234'
device = '11e8'
p2p = 'initiator-only'
why = 'its registers are no memory'
";
const MEMORY_IS_TARGET: &str = "# By hand.

[[device]]
vendor = '1af4'
device = '1110'
p2p = 'target-only'
why = 'nobody knows what it would send'
";

/// The lab with a policy file and all devices bound to vfio-pci.
fn lab(policy: &str) -> Turn<'static> {
    let lab = LAB.turn();
    for bdf in [ENGINES[0], ENGINES[1], MEMORY] {
        lab.bind_vfio(bdf).unwrap();
        assert_eq!(lab.group(bdf).unwrap(), lab.group(MEMORY).unwrap());
    }
    lab.put_bytes(policy.as_bytes(), FILE, 0o644).unwrap();
    lab
}

fn vm(devices: &[&str]) -> Vm {
    let vm = Vm::new("guest-probe");
    devices.iter().fold(vm, |vm, bdf| vm.p2p_device(bdf))
}

fn all() -> Vm {
    vm(&[ENGINES[0], ENGINES[1], MEMORY])
}

fn run(lab: &Turn<'_>, vm: &Vm) -> Output {
    let output = lab.vm(vm).deadline(GUEST).run().unwrap();
    assert_eq!(output.exit, Exit::Code(0), "{output:#?}");
    output
}

/// Results of the transfers between engines, and of those from engines into memory.
fn transfers(output: &Output) -> (Vec<Outcome>, Vec<Outcome>) {
    let findings = Finding::in_console(&output.stdout);
    let engines: Vec<_> = findings
        .iter()
        .filter_map(|finding| match finding {
            Finding::Device { bdf, .. } => Some(bdf.clone()),
            _ => None,
        })
        .collect();
    let peers = findings.into_iter().filter_map(|finding| match finding {
        Finding::Peer { target, result, .. } => Some((engines.contains(&target), result)),
        _ => None,
    });
    let (to_engines, to_memory): (Vec<_>, Vec<_>) = peers.partition(|(engine, _)| *engine);
    let results = |list: Vec<(bool, Outcome)>| list.into_iter().map(|(_, r)| r).collect();
    (results(to_engines), results(to_memory))
}

/// Runs a VMM that must end by itself before any guest is up.
fn ends(lab: &Turn<'_>, vm: &Vm, code: i32, words: &[&str]) {
    let output = lab.vm(vm).deadline(GUEST).run().unwrap();
    assert_eq!(output.code(), Some(code), "{output:#?}");
    assert_eq!(output.stdout, "", "no guest was started");
    for word in words {
        assert!(output.stderr.contains(word), "{word}: {output:#?}");
    }
}

#[test]
fn without_rules_all_reach_all_through_the_root_complex() {
    let lab = lab("");
    let output = run(&lab, &all().policy(FILE));
    let ok = vec![Outcome::Ok; 4];
    assert_eq!(transfers(&output), (ok.clone(), ok), "{output:#?}");
}

#[test]
fn invariant_2_the_iommu_stops_what_aims_at_a_device_that_is_no_target() {
    let lab = lab(ENGINES_INITIATE);
    // The kernel limits how many faults it logs in five seconds; older ones are none of ours.
    lab.sh("dmesg -c").unwrap();
    let output = run(&lab, &all().policy(FILE));
    let (to_engines, to_memory) = transfers(&output);
    assert_eq!(to_engines, [Outcome::Nothing; 4], "{output:#?}");
    assert_eq!(to_memory, [Outcome::Ok; 4], "it may initiate: {output:#?}");
    let log = lab.dmesg().unwrap();
    for bdf in ["01:00.0", "02:00.0"] {
        let named =
            |line: &str| line.contains("DMA") && line.contains(bdf) && line.contains("fault addr");
        assert!(log.lines().any(named), "no fault by {bdf} in\n{log}");
    }
}

#[test]
fn a_target_is_reached_and_its_partner_is_hidden_from_it() {
    let lab = lab(MEMORY_IS_TARGET);
    // Hidden windows are no peer windows in the VMM's census.
    let argv = vm(&[ENGINES[0], MEMORY]).policy(FILE).argv();
    let argv = argv.into_iter().chain(["-v".to_owned()]);
    let output = lab.command(argv).deadline(GUEST).run().unwrap();
    assert_eq!(transfers(&output).1, [Outcome::Ok; 2], "{output:#?}");
    // BAR 2 of the memory device, whose registers are less than a page; its partner would add one.
    assert!(output.stderr.contains(", 1 peer windows"), "{output:#?}");
}

#[test]
fn a_target_that_the_iommu_cannot_keep_from_two_others_is_refused() {
    let lab = lab(MEMORY_IS_TARGET);
    let words = [
        MEMORY,
        ENGINES[0],
        "nobody knows what it would send (rule at /policy.toml:3)",
    ];
    ends(&lab, &all().policy(FILE), 2, &words);
}

#[test]
fn a_device_that_must_never_take_part_is_refused_with_the_rule() {
    let lab = lab("[[device]]\nvendor = '1af4'\np2p = 'never'\nwhy = 'not here'\n");
    let words = [
        MEMORY,
        "not here (rule at /policy.toml:1)",
        "leave p2p=on out",
    ];
    ends(&lab, &all().policy(FILE), 2, &words);
}

#[test]
fn a_bad_policy_file_is_an_error_with_line_and_key() {
    let lab = lab("[[device]]\nvendor = '1af4'\np2p = 'sometimes'\nwhy = 'x'\n");
    let words = ["/policy.toml:3: ", "p2p = 'sometimes'", "initiator-only"];
    ends(&lab, &all().policy(FILE), 1, &words);
    ends(&lab, &all().policy("/none.toml"), 1, &["/none.toml"]);
}
