//! Random changes to a running host: ACS words, removals, a rescan.

use std::collections::BTreeSet;
use std::fmt;

use fastrand::Rng;
use iommu_group::{AcsBits, AcsRegisters, Function, GroupModel, Sbdf, Topology};
use lab::Lab;

/// Bits of the ACS control register.
const BITS: u16 = 0x7f;

/// ACS control registers to write, with egress control vectors for those that have one, then functions to remove, then
/// a rescan.
pub(crate) struct Change {
    acs: Vec<(Sbdf, AcsBits)>,
    egress: Vec<(Sbdf, u32)>,
    removed: Vec<Sbdf>,
}

fn has_acs(function: &Function) -> Option<&AcsRegisters> {
    function.acs().registers()
}

/// Whether the lab can do without a function for a moment: not the chipset, not the agent's line.
fn is_ours(function: &Function) -> bool {
    let sbdf = function.sbdf();
    let on_first_bus = sbdf.domain() == 0 && sbdf.bus() == 0;
    !(on_first_bus && (sbdf.device() == 0 || sbdf.device() >= 0x1e)) && !function.is_virtual()
}

impl Change {
    /// A change that makes sense on `topology`.
    pub(crate) fn random(topology: &Topology, rng: &mut Rng) -> Self {
        let functions = topology.functions();
        let mut ports: Vec<&Function> = functions
            .iter()
            .filter(|f| is_ours(f) && has_acs(f).is_some())
            .collect();
        rng.shuffle(&mut ports);
        let written = ports.len().min(rng.usize(0..=3));
        ports.truncate(written);
        let egress = ports.iter().filter_map(|port| {
            let capability = has_acs(port)?.capability;
            // Few bits set: most peers are open.
            let vector = rng.u32(..) & rng.u32(..);
            capability
                .contains(AcsBits::EC)
                .then_some((port.sbdf(), vector))
        });
        let egress = egress.collect();
        let acs = ports
            .iter()
            .map(|port| {
                // Often what Linux wants, or all of it but one bit.
                let word = match rng.u32(0..4) {
                    0 => 0x1d,
                    1 => 0x1d & !(1 << rng.u32(0..5)),
                    _ => rng.u16(..) & BITS,
                };
                let has = has_acs(port).map_or(0, |acs| acs.capability.bits());
                (port.sbdf(), AcsBits::from_bits_retain(word & has))
            })
            .collect();
        let mut candidates: Vec<Sbdf> = functions
            .iter()
            .filter(|f| is_ours(f))
            .map(Function::sbdf)
            .collect();
        rng.shuffle(&mut candidates);
        let count = rng.usize(1..=3).min(candidates.len());
        let chosen: BTreeSet<Sbdf> = candidates.into_iter().take(count).collect();
        // What hangs below another one goes with it.
        let below = |sbdf: &Sbdf| {
            topology
                .ancestors(*sbdf)
                .any(|a| chosen.contains(&a.sbdf()))
        };
        let removed = chosen.iter().filter(|sbdf| !below(sbdf)).copied().collect();
        Self {
            acs,
            egress,
            removed,
        }
    }

    /// Makes the change in a model.
    pub(crate) fn predict(&self, model: &mut GroupModel<'_>) {
        for (port, word) in &self.acs {
            model.set_acs_control(*port, *word);
        }
        for sbdf in &self.removed {
            model.remove(*sbdf);
        }
        model.rescan();
    }

    /// Makes the change in the host.
    pub(crate) fn make(&self, lab: &Lab) {
        let mut script = String::from("set -e\n");
        for (port, word) in &self.acs {
            script.push_str(&format!("setpci -s {port} ECAP_ACS+6.w={word:x}\n"));
        }
        for (port, vector) in &self.egress {
            script.push_str(&format!("setpci -s {port} ECAP_ACS+8.l={vector:x}\n"));
        }
        for sbdf in &self.removed {
            script.push_str(&format!("echo 1 > /sys/bus/pci/devices/{sbdf}/remove\n"));
        }
        script.push_str("echo 1 > /sys/bus/pci/rescan\n");
        lab.sh(&script).unwrap();
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (port, word) in &self.acs {
            write!(f, "{port} ACS {word:x}, ")?;
        }
        f.write_str("remove")?;
        self.removed
            .iter()
            .try_for_each(|sbdf| write!(f, " {sbdf}"))
    }
}

/// A port that sleeps gets Linux's own ACS settings when it wakes up.
pub(crate) fn keep_ports_awake(lab: &Lab) {
    lab.sh("for p in /sys/bus/pci/devices/*/power/control; do echo on > $p; done")
        .unwrap();
}

/// Gives some of the physical functions a few virtual ones.
pub(crate) fn make_virtual_functions(lab: &Lab, topology: &Topology, rng: &mut Rng) {
    for function in topology.functions() {
        if function.config().sriov.is_some() && rng.bool() {
            let count = rng.u32(1..=4);
            let sbdf = function.sbdf();
            // Not every port has bus numbers to spare for them; then there are none.
            let script = format!("echo {count} > /sys/bus/pci/devices/{sbdf}/sriov_numvfs; true");
            lab.sh(&script).unwrap();
        }
    }
}
