//! What `iommu-group` predicts on random machines, against the groups that a kernel makes and the ways that requests
//! take.
//!
//! A machine is made from a seed, which is printed: `LAB_SEED=n cargo test -p lab --test kernel_groups` makes it again.
//! `LAB_LONG=1` (`cargo xtask test --long`) looks at many more machines.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "kernel_groups/change.rs"]
mod change;
#[path = "kernel_groups/machine.rs"]
mod machine;
#[path = "kernel_groups/reach.rs"]
mod reach;

use std::env;
use std::hash::{BuildHasher, RandomState};

use fastrand::Rng;
use iommu_group::{Firmware, GroupModel, Groups, Kernel, RoutingModel, Topology};
use lab::Lab;

use change::Change;

/// Seeds whose machines once showed a difference.
const ONCE_WRONG: &[u64] = &[
    // A port that was removed and found again comes after its neighbours in the kernel's list.
    59429504532849,
];

/// Machines and changes of each: in every run, and in a long one.
const SHORT: (usize, usize) = (2, 6);
const LONG: (usize, usize) = (64, 6);

fn scan(lab: &Lab) -> Topology {
    let dump = lab.run(["p2pctl", "dump"]).unwrap().ok().unwrap();
    Topology::from_fixture(&dump).unwrap()
}

/// How many comparisons were made, and how many could not be because buses had other numbers afterwards.
#[derive(Debug, Default)]
struct Tally {
    machines: usize,
    boots: usize,
    changes: usize,
    renumbered: usize,
    /// Functions whose groups were compared, virtual ones among them.
    functions: usize,
    virtual_functions: usize,
    /// Ordered pairs of an endpoint and a function that it aimed at, and those of them in which requests arrived.
    pairs: usize,
    arrived: usize,
}

impl Tally {
    /// Aims at everything and compares.
    fn reach(&mut self, lab: &Lab, topology: &Topology, what: &str) {
        let observed = reach::observe(lab);
        let differences = reach::differences(&RoutingModel::found(topology), &observed);
        assert!(differences.is_empty(), "{what}: {differences:#?}");
        self.pairs += observed.len();
        self.arrived += observed.values().filter(|arrived| **arrived).count();
    }
}

fn assert_same(predicted: &Groups, topology: &Topology, seed: u64, what: &str) {
    let differences = predicted.differences(&Groups::found(topology));
    assert!(
        differences.is_empty(),
        "seed {seed}, {what}: predicted (here) and kernel (there) differ: {differences:#?}"
    );
}

/// Boots the machine of a seed and compares after boot and after every change.
fn compare(seed: u64, changes: usize, tally: &mut Tally) {
    let profile = machine::machine(seed);
    let words = profile.machine.cmdline.join(" ");
    println!("seed {seed}: {} devices, {words}", profile.devices.len());
    let lab = Lab::boot(&profile, "kernel-groups").unwrap();
    let mut rng = Rng::with_seed(seed ^ 0x5eed);
    tally.machines += 1;

    let mut before = scan(&lab);
    let kernel = Kernel::of(&before);
    let booted = GroupModel::booted(&before, &kernel, Firmware::Cleared);
    assert_same(&booted.groups(), &before, seed, "at boot");
    tally.boots += 1;
    tally.reach(&lab, &before, &format!("seed {seed}, at boot"));
    change::make_virtual_functions(&lab, &before, &mut rng);

    for number in 0..changes {
        change::keep_ports_awake(&lab);
        before = scan(&lab);
        let change = Change::random(&before, &mut rng);
        println!("seed {seed}, change {number}: {change}");
        let mut model = GroupModel::as_found(&before, &kernel);
        change.predict(&mut model);
        change.make(&lab);
        change::keep_ports_awake(&lab);
        let after = scan(&lab);
        tally.reach(
            &lab,
            &after,
            &format!("seed {seed}, after change {number} ({change})"),
        );
        let predicted = model.groups();
        let there = |t: &Topology| -> Vec<_> { t.functions().iter().map(|f| f.sbdf()).collect() };
        let expected: Vec<_> = there(&before)
            .into_iter()
            .filter(|sbdf| model.is_present(*sbdf))
            .collect();
        if expected != there(&after) {
            // QEMU's ports have no room reserved for buses, so Linux numbers some anew.
            tally.renumbered += 1;
            continue;
        }
        let what = format!("after change {number} ({change})");
        assert_same(&predicted, &after, seed, &what);
        tally.changes += 1;
        tally.functions += after.functions().len();
        tally.virtual_functions += after.functions().iter().filter(|f| f.is_virtual()).count();
    }
}

#[test]
fn predicted_groups_are_the_kernels() {
    let (machines, changes) = if lab::long() { LONG } else { SHORT };
    let seeds: Vec<u64> = match env::var("LAB_SEED") {
        Ok(text) => vec![text.parse().expect("LAB_SEED is a number")],
        Err(_) => {
            let fresh = RandomState::new().hash_one(machines);
            let random = (0..machines as u64).map(|n| (fresh >> 16).wrapping_add(n));
            ONCE_WRONG.iter().copied().chain(random).collect()
        }
    };
    let mut tally = Tally::default();
    for seed in seeds {
        compare(seed, changes, &mut tally);
    }
    println!("no difference: {tally:?}");
    assert!(tally.changes > tally.renumbered, "{tally:?}");
    assert!(tally.arrived > 0, "nothing was reached: {tally:?}");
}
