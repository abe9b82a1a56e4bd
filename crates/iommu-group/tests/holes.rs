//! Addresses that a guest's memory must keep clear of, and that there are no others.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot set up its machine should stop"
)]

#[path = "common/addresses.rs"]
mod addresses;
#[path = "common/walk.rs"]
mod walk;

use std::collections::BTreeMap;
use std::slice;

use iommu_group::{
    AcsBits, Address, GroupModel, HoleCause, Kernel, MemoryHole, RoutingModel, Sbdf, Topology,
};
use test_machine::random::{self, Random};
use test_machine::{Machine, bdf};
use walk::{End, Walk};

/// A switch with three endpoints. The windows of its ports leave a part of its own unclaimed.
fn switch(root_port: &str, port0: &str, port1: &str) -> String {
    format!(
        "
00:00.0 host id=8086:29c0
00:04.0 root-port {root_port} mem=e0000000-e1ffffff
  01:00.0 upstream mem=e0000000-e0ffffff
    02:00.0 downstream {port0} port=0 mem=e0000000-e00fffff
      03:00.0 endpoint bar0=e0000000+4000
    02:01.0 downstream {port1} port=1 mem=e0100000-e01fffff
      04:00.0 endpoint bar0=e0100000+4000
    02:02.0 downstream acs=5f/1d port=2 mem=e0200000-e02fffff
      05:00.0 endpoint bar0=e0200000+4000
"
    )
}

/// The holes of a device: addresses, whose they are, what becomes of requests.
fn holes(text: &str, device: &str) -> Vec<(u64, u64, String, HoleCause)> {
    let topology = Machine::new(text).topology();
    let holes = RoutingModel::found(&topology).memory_holes(bdf(device));
    let hole = |hole: &MemoryHole| {
        let (start, end) = hole.range.clone().into_inner();
        (
            start,
            end,
            hole.port.to_string()[5..].to_owned(),
            hole.cause,
        )
    };
    holes.iter().map(hole).collect()
}

fn hole(start: u64, end: u64, port: &str, cause: HoleCause) -> (u64, u64, String, HoleCause) {
    (start, end, port.to_owned(), cause)
}

#[test]
fn the_window_of_an_upstream_port_is_a_hole_though_all_ports_redirect() {
    let closed = switch("acs=5f/1d", "acs=5f/1d", "acs=5f/1d");
    let window = hole(0xe000_0000, 0xe0ff_ffff, "01:00.0", HoleCause::Switch);
    assert_eq!(holes(&closed, "03:00.0"), slice::from_ref(&window));
    // Its own registers are claimed too, and they are outside of its window.
    let registers = closed.replace("01:00.0 upstream", "01:00.0 upstream bar0=e1000000+1000");
    let own = hole(0xe100_0000, 0xe100_0fff, "01:00.0", HoleCause::Switch);
    assert_eq!(holes(&registers, "03:00.0"), [window, own]);
    // What is above the switch is in no such window.
    let none: [_; 0] = [];
    assert_eq!(holes(&closed, "01:00.0"), none);
}

#[test]
fn what_the_other_ports_claim_is_named_where_a_port_does_not_redirect() {
    let open = switch("acs=5f/1d", "acs=5f/11", "acs=5f/1d").replace(
        "02:02.0 downstream",
        "02:02.0 downstream bar0=e0f00000+1000",
    );
    let window = hole(0xe000_0000, 0xe0ff_ffff, "01:00.0", HoleCause::Switch);
    let claimed = [
        window.clone(),
        hole(0xe010_0000, 0xe01f_ffff, "02:01.0", HoleCause::Neighbour),
        hole(0xe020_0000, 0xe02f_ffff, "02:02.0", HoleCause::Neighbour),
        hole(0xe0f0_0000, 0xe0f0_0fff, "02:02.0", HoleCause::Neighbour),
    ];
    assert_eq!(holes(&open, "03:00.0"), claimed);
    assert_eq!(holes(&open, "04:00.0"), slice::from_ref(&window));
    // Egress control leaves some peer open.
    let egress = switch("acs=5f/1d", "acs=7f/3d vector=4 egress=5", "acs=5f/1d");
    assert_eq!(holes(&egress, "03:00.0")[..3], claimed[..3]);
    // Without upstream forwarding what is its own window is dropped.
    let no_forwarding = switch("acs=5f/1d", "acs=5f/0d", "acs=5f/1d");
    let own = hole(0xe000_0000, 0xe00f_ffff, "02:00.0", HoleCause::NotForwarded);
    assert!(holes(&no_forwarding, "03:00.0").contains(&own));
}

#[test]
fn a_root_port_that_does_not_redirect_may_pass_requests_on_to_its_root_bus() {
    let root = "
00:01.0 root-port acs=5f/11 mem=e0000000-e00fffff
  01:00.0 endpoint
00:02.0 root-port acs=5f/1d mem=e0100000-e01fffff
  02:00.0 endpoint
00:03.0 rciep bar0=e0200000+1000
00:04.0 root-port acs=5f/0d mem=e0300000-e03fffff
  04:00.0 endpoint
";
    let others = [
        hole(0xe010_0000, 0xe01f_ffff, "00:02.0", HoleCause::Neighbour),
        hole(0xe020_0000, 0xe020_0fff, "00:03.0", HoleCause::Neighbour),
        hole(0xe030_0000, 0xe03f_ffff, "00:04.0", HoleCause::Neighbour),
    ];
    assert_eq!(holes(root, "01:00.0"), others);
    assert_eq!(holes(root, "02:00.0"), []);
    let own = hole(0xe030_0000, 0xe03f_ffff, "00:04.0", HoleCause::NotForwarded);
    assert!(holes(root, "04:00.0").contains(&own));
    // Only that the last one forwards nothing is known.
    let topology = Machine::new(root).topology();
    let holes = RoutingModel::found(&topology).memory_holes(bdf("04:00.0"));
    let certain = holes.iter().filter(|hole| hole.certain);
    let ports: Vec<Sbdf> = certain.map(|hole| hole.port).collect();
    assert_eq!(ports, [bdf("00:04.0")]);
}

#[test]
fn a_device_that_routes_between_its_functions_takes_what_is_for_them() {
    let device = "
00:01.0 root-port acs=5f/1d
  01:00.0 endpoint mf acs=5c/0 bar0=e0000000+1000
  01:00.1 endpoint mf acs=5c/c bar0=e0100000+1000
  01:00.2 endpoint mf bar0=e0200000+1000
";
    let others = [
        hole(0xe010_0000, 0xe010_0fff, "01:00.1", HoleCause::Neighbour),
        hole(0xe020_0000, 0xe020_0fff, "01:00.2", HoleCause::Neighbour),
    ];
    assert_eq!(holes(device, "01:00.0"), others);
    assert_eq!(holes(device, "01:00.1"), []);
    assert_eq!(holes(device, "01:00.2"), [], "it has no way inside");
}

#[test]
fn the_worst_hole_is_one_in_which_somebody_else_is_written_to() {
    let hole = |start, end, cause| MemoryHole {
        range: start..=end,
        port: bdf("02:00.0"),
        cause,
        certain: true,
    };
    let holes = [
        hole(0, 99, HoleCause::Switch),
        hole(10, 19, HoleCause::Neighbour),
        hole(30, 39, HoleCause::NotForwarded),
    ];
    let worst = |start, end| MemoryHole::worst(&holes, &(start..=end)).map(|hole| hole.cause);
    assert_eq!(worst(0, 50), Some(HoleCause::Neighbour));
    assert_eq!(worst(20, 50), Some(HoleCause::NotForwarded));
    assert_eq!(worst(40, 50), Some(HoleCause::Switch));
    assert_eq!(worst(100, 200), None);
}

/// A machine with addresses, after some of its ports were written to.
fn written<'t>(topology: &'t Topology, kernel: &Kernel, random: &mut Random) -> GroupModel<'t> {
    let mut model = GroupModel::as_found(topology, kernel);
    for function in topology.functions() {
        if let Some(acs) = function.acs().registers().filter(|_| random.once_in(3)) {
            let word = random.pick(&[0x1d_u16, 0x11, 0x15, 0x0d, 0x3d, 0x31]);
            model.set_acs_control(
                function.sbdf(),
                AcsBits::from_bits_retain(word) & acs.capability,
            );
        }
    }
    model
}

/// Addresses at which something begins or ends, just beside them, and some anywhere.
fn interesting(topology: &Topology, random: &mut Random) -> Vec<u64> {
    let mut all = Vec::new();
    for function in topology.functions() {
        let windows = function.windows().into_iter();
        let windows = windows.flat_map(|windows| windows.memory_windows());
        for range in windows {
            let (start, end) = range.clone().into_inner();
            all.extend([start - 1, start, start + (end - start) / 2, end, end + 1]);
        }
        for bar in topology.bars(function) {
            let start = bar.bus_address.unwrap().value();
            all.extend([
                start - 1,
                start,
                start + bar.size_bytes - 1,
                start + bar.size_bytes,
            ]);
        }
    }
    // Not all of them: there are many in a large machine, and many machines.
    let some = (0..60).map(|_| random.pick(&all));
    let mut some: Vec<u64> = some.collect();
    some.extend((0..20).map(|_| 0x7000_0000 + random.number() % 0x9000_0000));
    some
}

#[test]
fn outside_of_the_holes_every_request_gets_to_the_iommu() {
    let mut seen: BTreeMap<End, u32> = BTreeMap::new();
    let mut free_in_windows = 0;
    for seed in 0..60 {
        let mut random = Random::new(seed);
        let text = addresses::assigned(&random::machine(&mut random), &mut random);
        let topology = Machine::new(&text).topology();
        let kernel = Kernel::of(&topology);
        let model = written(&topology, &kernel, &mut random);
        let routing = RoutingModel::of(&model);
        let walk = Walk::new(&topology, &model);
        let addresses = interesting(&topology, &mut random);
        let devices = topology.functions().iter().filter(|f| !f.is_bridge());
        for device in devices.map(|function| function.sbdf()) {
            let holes = routing.memory_holes(device);
            for address in &addresses {
                let end = walk.end(device, *address);
                *seen.entry(end).or_default() += 1;
                let hole = MemoryHole::worst(&holes, &(*address..=*address));
                if hole.is_none() && claimed(&topology, device, *address) {
                    free_in_windows += 1;
                }
                assert!(
                    end == End::RootComplex || hole.is_some(),
                    "seed {seed}: {device} at {address:#x}: {end:?}:{text}"
                );
            }
        }
    }
    // All that can happen did, and memory is not kept from all windows of the machine for nothing.
    for end in [End::RootComplex, End::Taken, End::Dropped] {
        assert!(
            seen.get(&end).is_some_and(|times| *times > 1000),
            "{seen:?}"
        );
    }
    assert!(free_in_windows > 1000, "{free_in_windows}");
}

/// Whether an address is in a window of the machine of which a device may have memory.
fn claimed(topology: &Topology, device: Sbdf, address: u64) -> bool {
    let bridges = topology.functions().iter().filter(|f| f.sbdf() != device);
    let mut windows = bridges.filter_map(|function| function.windows());
    windows.any(|windows| {
        windows
            .memory_windows()
            .any(|range| range.contains(&address))
    })
}
