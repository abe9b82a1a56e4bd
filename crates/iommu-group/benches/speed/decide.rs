//! Groups and routes.

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput};
use iommu_group::{Firmware, GroupModel, Kernel, RoutingModel, Sbdf, Scope, Topology, Verdict};

/// A group of benches with many samples of a few milliseconds: some of them are not interrupted on a busy machine.
fn short_samples<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group
        .sampling_mode(SamplingMode::Flat)
        .sample_size(100)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500));
    group
}

/// The groups of a machine as it starts.
pub(crate) fn groups(criterion: &mut Criterion, topology: &Topology) {
    let size = topology.functions().len();
    let mut group = short_samples(criterion, "groups");
    group.throughput(Throughput::Elements(size as u64));
    group.bench_function(BenchmarkId::new("groups", size), |b| {
        b.iter(|| {
            let kernel = Kernel::of(topology);
            GroupModel::booted(topology, &kernel, Firmware::Cleared).groups()
        });
    });
    group.finish();
}

/// Groups and all routes of a host with 64 devices that may be peers.
pub(crate) fn peers(criterion: &mut Criterion, topology: &Topology) {
    let peers: Vec<Sbdf> = topology
        .functions()
        .iter()
        .filter(|function| !function.is_bridge() && function.driver() == Some("vfio-pci"))
        .map(|function| function.sbdf())
        .collect();
    assert_eq!(peers.len(), 64);
    let mut group = short_samples(criterion, "peers");
    group.bench_function(BenchmarkId::new("verdicts", peers.len()), |b| {
        b.iter(|| verdicts(topology, &peers));
    });
    group.finish();
}

/// Groups, then the verdict on every ordered pair.
fn verdicts(topology: &Topology, peers: &[Sbdf]) -> Vec<Verdict> {
    let model = GroupModel::booted(topology, &Kernel::of(topology), Firmware::Cleared);
    let (groups, routing) = (model.groups(), RoutingModel::of(&model));
    peers
        .iter()
        .flat_map(|a| peers.iter().map(move |b| (*a, *b)))
        .filter(|(a, b)| a != b)
        .map(|(a, b)| routing.verdict(&groups, Scope::SameGroup, a, b))
        .collect()
}
