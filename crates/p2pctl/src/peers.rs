//! Selects the functions to compare.

use anyhow::{Result, bail};
use iommu_group::{Bar, Function, PortType, Sbdf, Topology};

use crate::source::Source;

/// Maximum number of functions; a larger table is unreadable.
const MOST: usize = 128;

/// Functions to compare, and the number of functions that were left out.
pub(crate) struct Peers {
    pub(crate) functions: Vec<Sbdf>,
    /// Number of virtual and conventional PCI functions that were left out because they were not named.
    pub(crate) left_out: usize,
}

impl Peers {
    /// Selects the named functions, with ports replaced by the devices below them. Without names, selects all functions
    /// that can take part in P2P.
    pub(crate) fn select(source: &Source, named: &[Sbdf]) -> Result<Self> {
        source.must_have(named)?;
        let topology = source.topology();
        let mut peers = if named.is_empty() {
            let able = topology
                .functions()
                .iter()
                .filter(|f| may_take_part(topology, f));
            // There are too many virtual functions, and conventional ones cannot be distinguished behind their bridge.
            let (rest, real): (Vec<&Function>, Vec<&Function>) =
                able.partition(|f| f.is_virtual() || f.port_type() == PortType::Conventional);
            Self {
                functions: real.into_iter().map(Function::sbdf).collect(),
                left_out: rest.len(),
            }
        } else {
            Self {
                functions: named
                    .iter()
                    .flat_map(|sbdf| expanded(topology, *sbdf))
                    .collect(),
                left_out: 0,
            }
        };
        peers.functions.sort_unstable();
        peers.functions.dedup();
        if peers.functions.len() > MOST {
            bail!(
                "{} functions are too many to compare at once (at most {MOST}): name some, or a port above them",
                peers.functions.len()
            );
        }
        Ok(peers)
    }
}

/// The function, or all devices below it if it is a port.
fn expanded(topology: &Topology, sbdf: Sbdf) -> Vec<Sbdf> {
    match topology.get(sbdf) {
        Some(port) if port.is_bridge() => topology
            .descendants(sbdf)
            .filter(|f| !f.is_bridge())
            .map(Function::sbdf)
            .collect(),
        _ => vec![sbdf],
    }
}

/// Whether a function has memory that peers could reach, and is neither part of the chipset nor a bridge nor
/// the parent of a root bus.
fn may_take_part(topology: &Topology, function: &Function) -> bool {
    let chipset = function.port_type() == PortType::Conventional
        && topology.upstream(function.sbdf()).is_none();
    // Base class 06h is bridges, 08h is system peripherals.
    let kind = function.class() >> 16;
    let provider = topology
        .root_buses()
        .iter()
        .any(|root| root.behind == Some(function.sbdf()));
    !function.is_bridge()
        && !chipset
        && !provider
        && kind != 0x06
        && kind != 0x08
        && topology.bars(function).iter().any(Bar::is_memory)
}
