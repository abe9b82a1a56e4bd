//! How long it takes to read a machine and to decide about it: `cargo xtask bench`.

#![allow(missing_docs, reason = "criterion makes the functions that are public")]

mod decide;
mod machine;
mod scan;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use machine::OnDisk;

/// Numbers of functions.
const SIZES: [usize; 4] = [1_000, 2_000, 5_000, LARGEST];
const LARGEST: usize = 10_000;

/// Few samples: it is better to measure all of it again than to measure one part for long.
fn config() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

fn sizes(criterion: &mut Criterion) {
    for size in SIZES {
        let machine = OnDisk::of_functions(size);
        let topology = scan::bench(criterion, &machine, size == LARGEST);
        decide::groups(criterion, &topology);
    }
}

fn peers(criterion: &mut Criterion) {
    decide::peers(criterion, &scan::scan(&OnDisk::of_64_peers()));
}

criterion_group! {
    name = benches;
    config = config();
    targets = sizes, peers
}
criterion_main!(benches);
