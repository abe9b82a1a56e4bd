//! Functions that a reset affects.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{ResetKind, ResetMask};
use crate::kernel::{Kernel, Rules};
use crate::quirks::reset;
use crate::{Function, Sbdf, Topology};

/// A reset that is available for a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reset {
    /// Kind of the reset.
    pub kind: ResetKind,
    /// Whether the kernel would use it to reset this function alone (sysfs `reset`, `VFIO_DEVICE_RESET`). A link with
    /// other functions can only be reset explicitly, by VFIO's hot reset or `reset_subordinate`.
    pub resets_function: bool,
    /// The port that performs a reset of a link or bus.
    pub port: Option<Sbdf>,
    /// All affected functions, including the requested one, in ascending order.
    pub hits: Vec<Sbdf>,
    /// The affected functions that are ports. Their ACS is reset too, and the kernel sets its defaults again.
    pub hit_ports: Vec<Sbdf>,
}

impl Reset {
    /// The affected functions that the owner does not have.
    pub fn not_owned(&self, owned: &BTreeSet<Sbdf>) -> impl Iterator<Item = Sbdf> {
        self.hits
            .iter()
            .copied()
            .filter(|sbdf| !owned.contains(sbdf))
    }
}

/// How the kernel would reset the link above a function.
struct LinkReset {
    kind: ResetKind,
    port: Sbdf,
    /// Whether the kernel would use it to reset this function alone.
    alone: bool,
}

impl Topology {
    /// The resets that are available for a function, in the order in which Linux tries them.
    ///
    /// For resets of the function alone, `reset_method` in sysfs decides if it exists, because an administrator may
    /// have disabled some of them there.
    #[must_use]
    pub fn resets(&self, kernel: &Kernel, sbdf: Sbdf) -> Vec<Reset> {
        let Some(function) = self.get(sbdf) else {
            return Vec::new();
        };
        let words: Option<Vec<&str>> = function.reset_method_words().map(Iterator::collect);
        let says = |word: &str| words.as_ref().is_some_and(|words| words.contains(&word));
        let mut resets = Vec::new();
        for (kind, word, possible) in [
            (ResetKind::DeviceSpecific, "device_specific", false),
            (ResetKind::Acpi, "acpi", false),
            (ResetKind::Flr, "flr", has_flr(function, kernel.rules)),
            (
                ResetKind::AfFlr,
                "af_flr",
                has_af_flr(function, kernel.rules),
            ),
            (ResetKind::Pm, "pm", has_pm(self, function)),
        ] {
            if says(word) || possible {
                resets.push(self.function_reset(kind, function, says(word)));
            }
        }
        if let Some(link) = self.link_reset(function, kernel.rules) {
            let word = if link.kind == ResetKind::CxlBus {
                "cxl_bus"
            } else {
                "bus"
            };
            resets.push(self.reset_below(link.kind, link.port, link.alone && says(word)));
        }
        resets
    }

    /// The first reset that the mask allows. Resets of the function alone are preferred.
    #[must_use]
    pub fn choose_reset(&self, kernel: &Kernel, sbdf: Sbdf, mask: ResetMask) -> Option<Reset> {
        let mut allowed = self.resets(kernel, sbdf);
        allowed.retain(|reset| mask.contains(reset.kind));
        let position = allowed
            .iter()
            .position(|reset| reset.resets_function)
            .unwrap_or(0);
        if position < allowed.len() {
            Some(allowed.swap_remove(position))
        } else {
            None
        }
    }

    fn function_reset(&self, kind: ResetKind, function: &Function, resets_function: bool) -> Reset {
        // A reset of a physical function resets its virtual functions (PCIe r6.0 §6.6.2).
        let mut hits: Vec<Sbdf> = vec![function.sbdf()];
        if function.config().sriov.is_some() {
            hits.extend(self.virtual_functions(function.sbdf()).map(Function::sbdf));
        }
        // Functions below a bridge are cut off during its reset.
        hits.extend(self.descendants(function.sbdf()).map(Function::sbdf));
        hits.sort_unstable();
        hits.dedup();
        Reset {
            kind,
            resets_function,
            port: None,
            hit_ports: self.ports_of(&hits),
            hits,
        }
    }

    fn reset_below(&self, kind: ResetKind, port: Sbdf, resets_function: bool) -> Reset {
        let mut hits: Vec<Sbdf> = self.descendants(port).map(Function::sbdf).collect();
        hits.sort_unstable();
        Reset {
            kind,
            resets_function,
            port: Some(port),
            hit_ports: self.ports_of(&hits),
            hits,
        }
    }

    fn ports_of(&self, functions: &[Sbdf]) -> Vec<Sbdf> {
        let is_bridge = |sbdf: &Sbdf| self.get(*sbdf).is_some_and(Function::is_bridge);
        functions.iter().copied().filter(is_bridge).collect()
    }

    /// How the link or bus of a function can be reset; `None` if it cannot.
    fn link_reset(&self, function: &Function, rules: Rules) -> Option<LinkReset> {
        if function.on_virtual_bus() {
            return None;
        }
        let port = self.upstream(function.sbdf())?;
        if reset::no_bus_reset(port.ids(), rules) || !self.all_below_bear_it(port.sbdf(), rules) {
            return None;
        }
        let alone = !function.is_bridge()
            && !function.is_virtual()
            && self.children(port.sbdf()).count() == 1;
        let with = |kind, alone| {
            Some(LinkReset {
                kind,
                port: port.sbdf(),
                alone,
            })
        };
        if port.config().cxl_port_unmasks_reset == Some(false) {
            return with(ResetKind::CxlBus, alone);
        }
        // The slot of native hot-plug is device 0 of the link (linux 7.2 drivers/pci/hotplug/pciehp_hpc.c:
        // `pciehp_reset_slot()`).
        if port.has_native_hotplug() && function.sbdf().device() == 0 {
            let single = !function.is_bridge() && !function.is_multifunction();
            return with(ResetKind::Slot, single);
        }
        with(ResetKind::Bus, alone)
    }

    fn all_below_bear_it(&self, port: Sbdf, rules: Rules) -> bool {
        self.descendants(port)
            .all(|function| !reset::no_bus_reset(function.ids(), rules))
    }
}

fn revision(function: &Function) -> u8 {
    function
        .config()
        .header
        .as_ref()
        .map_or(0, |header| header.revision)
}

fn has_flr(function: &Function, rules: Rules) -> bool {
    function.config().express.is_some_and(|express| express.flr)
        && !reset::no_flr(function.ids(), revision(function), rules)
}

fn has_af_flr(function: &Function, rules: Rules) -> bool {
    function
        .config()
        .advanced_features
        .is_some_and(|features| features.flr && features.transactions_pending)
        && !reset::no_flr(function.ids(), revision(function), rules)
}

fn has_pm(topology: &Topology, function: &Function) -> bool {
    let on_root_bus = topology.upstream(function.sbdf()).is_none();
    function
        .config()
        .power_management
        .is_some_and(|power| !power.no_soft_reset)
        && !reset::no_pm_reset(function.ids(), function.class(), on_root_bus)
}
