//! Goals from arbitrary bytes.

use std::collections::BTreeSet;

use iommu_group::{AcsBits, Goals, PlanOptions, RoutePreference, Sbdf, Topology};

/// The goals that the bytes describe for a machine. Most of the time they name functions that can be joined.
pub(crate) fn goals(bytes: &[u8], topology: &Topology) -> (Goals, PlanOptions) {
    let at = |index: usize| bytes.get(index).copied().unwrap_or(0);
    let all: Vec<Sbdf> = topology.functions().iter().map(|f| f.sbdf()).collect();
    let devices: Vec<Sbdf> = topology
        .functions()
        .iter()
        .filter(|f| !f.is_bridge())
        .map(|f| f.sbdf())
        .collect();
    let pick = |from: &[Sbdf], byte: u8| from.get(usize::from(byte) % from.len().max(1)).copied();
    let set = |from: &[Sbdf], indices: &[usize]| -> BTreeSet<Sbdf> {
        indices
            .iter()
            .map(|index| at(*index))
            .filter(|byte| *byte < 0xc0)
            .filter_map(|byte| pick(from, byte))
            .collect()
    };
    let flags = at(0);
    let mut goals = Goals::default();
    if flags & 1 != 0 {
        goals.join.push(set(&devices, &[1, 2, 3]));
    }
    if flags & 2 != 0 {
        goals.join.push(set(&devices, &[4, 5]));
    }
    if flags & 4 != 0 {
        goals.isolate = set(if flags & 0x80 == 0 { &devices } else { &all }, &[6, 7]);
    }
    if flags & 8 != 0
        && let Some(port) = pick(&all, at(8))
    {
        goals
            .acs
            .insert(port, AcsBits::from_bits_retain(u16::from(at(9))));
    }
    let options = PlanOptions {
        route: match flags >> 4 & 3 {
            0 => RoutePreference::Mildest,
            1 => RoutePreference::Direct,
            _ => RoutePreference::Iommu,
        },
        expose: set(&all, &[10]),
        with: set(&all, &[11]),
    };
    (goals, options)
}
