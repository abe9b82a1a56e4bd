//! How long it takes to read a machine and to decide about it: `cargo xtask bench`.

#![allow(missing_docs, reason = "criterion makes the functions that are public")]

mod decide;
mod machine;
mod scan;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

/// Short: it is better to run all of it again than to run one part for long on a machine that others use too.
fn config() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
}

criterion_group! {
    name = benches;
    config = config();
    targets = scan::bench, decide::bench
}
criterion_main!(benches);
