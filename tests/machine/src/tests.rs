//! The ways to read a machine agree.

use iommu_group::Topology;

use super::{Machine, hosts};

/// Each function with what decisions use, one per line.
fn facts(topology: &Topology) -> Vec<String> {
    let functions = topology.functions().iter();
    functions
        .map(|function| {
            format!(
                "{} below {:?}: {} {:06x} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
                function.sbdf(),
                topology.upstream(function.sbdf()).map(|port| port.sbdf()),
                function.ids(),
                function.class(),
                function.config(),
                topology.bars(function),
                function.driver(),
                function.group(),
                function.numa_node(),
                function.physical_function(),
                function.has_native_hotplug(),
            )
        })
        .collect()
}

#[test]
fn a_dump_and_a_scan_of_the_tree_are_the_same() {
    let all = hosts::all().into_iter();
    for (name, machine) in all.chain([("sriov-1000", hosts::sriov_1000())]) {
        let (described, scanned) = (machine.topology(), machine.scanned());
        assert_eq!(described.root_buses(), scanned.root_buses(), "{name}");
        let (described, scanned) = (facts(&described), facts(&scanned));
        assert_eq!(described.len(), scanned.len(), "{name}");
        for (described, scanned) in described.iter().zip(&scanned) {
            assert_eq!(described, scanned, "{name}");
        }
    }
}

#[test]
#[should_panic(expected = "no kind `rootport`")]
fn an_unknown_kind_is_refused() {
    Machine::new("00:01.0 rootport");
}
