//! Groups and routes.

use criterion::{BenchmarkId, Criterion, Throughput};
use iommu_group::{
    Fabric, Firmware, GroupModel, Host, Kernel, Policy, Sbdf, Sysfs, Topology, Verdict,
};

use crate::machine::Machine;
use crate::scan::SIZES;

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("groups");
    for size in SIZES {
        let topology = scan(&Machine::of_functions(size));
        group.throughput(Throughput::Elements(size as u64));
        group.bench_with_input(
            BenchmarkId::new("groups", size),
            &topology,
            |b, topology| {
                b.iter(|| {
                    let kernel = Kernel::of(topology);
                    GroupModel::booted(topology, &kernel, Firmware::Cleared).partition()
                });
            },
        );
    }
    group.finish();

    let topology = scan(&Machine::of_64_peers());
    let peers: Vec<Sbdf> = topology
        .functions()
        .iter()
        .filter(|function| !function.is_bridge() && function.driver() == Some("vfio-pci"))
        .map(|function| function.sbdf())
        .collect();
    assert_eq!(peers.len(), 64);
    criterion.bench_function("peers/groups-and-routes/64", |b| {
        b.iter(|| verdicts(&topology, &peers));
    });
}

fn scan(machine: &Machine) -> Topology {
    Topology::scan(&Sysfs::new(machine.root()), Host::default()).expect("scanning the machine")
}

/// Groups, then the verdict on every ordered pair.
fn verdicts(topology: &Topology, peers: &[Sbdf]) -> Vec<Verdict> {
    let model = GroupModel::booted(topology, &Kernel::of(topology), Firmware::Cleared);
    let (groups, fabric, policy) = (model.partition(), Fabric::of(&model), Policy::default());
    peers
        .iter()
        .flat_map(|a| peers.iter().map(move |b| (*a, *b)))
        .filter(|(a, b)| a != b)
        .map(|(a, b)| fabric.verdict(&groups, &policy, a, b))
        .collect()
}
