//! Isolation holes, as several documents list them.

use iommu_group::{IsolationHole, Sbdf};
use serde::Serialize;

/// A path across a switch that bypasses the IOMMU, between functions of different groups.
#[derive(Serialize)]
pub(crate) struct LeakEntry {
    switch: Sbdf,
    port: Sbdf,
    into: Sbdf,
    from: Vec<Sbdf>,
    exposed: Vec<Sbdf>,
}

impl LeakEntry {
    pub(crate) fn of(leak: &IsolationHole) -> Self {
        Self {
            switch: leak.switch,
            port: leak.port,
            into: leak.into,
            from: leak.from.clone(),
            exposed: leak.exposed.clone(),
        }
    }
}
