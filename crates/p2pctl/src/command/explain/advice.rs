//! Advice for a verdict.

use std::ops::RangeInclusive;

use iommu_group::{BlockReason, Denial, MemoryHole, Placement, Sbdf, Verdict};

use super::Explanation;
use crate::command::matrix::{Cell, common_switch};
use crate::describe;
use crate::show::Line;

impl Explanation<'_> {
    /// The conditions of an allowed verdict, or the changes that would allow it.
    pub(super) fn advice(&self, from: Sbdf, to: Sbdf, verdict: &Verdict) -> Vec<Line> {
        match verdict {
            Verdict::Allowed { placement, .. } => {
                let whose = self.of(to);
                let (address, what) = match placement {
                    Placement::AtBusAddress => (
                        format!(
                            "the guest must see {whose} at its bus addresses: {}",
                            self.bars(to)
                        ),
                        "guest memory",
                    ),
                    Placement::Anywhere => (
                        format!("the guest may see {whose} at any address: the IOMMU maps it"),
                        "guest memory, and BARs that are not at their bus addresses,",
                    ),
                };
                let mut lines = vec![address.into()];
                let holes: Vec<String> = merged(&self.routing.memory_holes(from))
                    .iter()
                    .map(|range| format!("{:#x}–{:#x}", range.start(), range.end()))
                    .collect();
                if !holes.is_empty() {
                    let holes = holes.join(", ");
                    lines.push(
                        format!("{what} must be outside of the windows of that switch: {holes}")
                            .into(),
                    );
                }
                lines
            }
            Verdict::Denied { reasons } => self.hint(from, to, reasons),
        }
    }

    fn hint(&self, from: Sbdf, to: Sbdf, reasons: &[Denial]) -> Vec<Line> {
        let (a, b) = (self.of(from), self.of(to));
        let switch = common_switch(self.routing, from, to).is_some();
        let command = |text: String| Line::new().strong(text);
        let groups = reasons
            .iter()
            .any(|r| matches!(r, Denial::DifferentGroups { .. }));
        let cell = Cell::of(
            &Verdict::Denied {
                reasons: reasons.to_vec(),
            },
            switch,
        );
        match cell {
            Cell::Unknown => vec!["run as root: the deciding registers are not readable".into()],
            Cell::NoGroup => vec![
                "switch the IOMMU on in the firmware, and boot with intel_iommu=on on Intel".into(),
            ],
            Cell::NoMemory => vec![
                format!("try the other direction: {b} may be able to reach {a}").into(),
            ],
            Cell::Groups => vec![
                Line::new()
                    .plain("P2P needs one group: ")
                    .then(&command(format!("p2pctl plan --join {a} {b}"))),
            ],
            Cell::GroupsApart => vec![
                "no switch is above both, so they cannot be joined at run time".into(),
                Line::new()
                    .plain("the route through the IOMMU exists, if two groups are acceptable: ")
                    .then(&command(format!("p2pctl explain --policy same-vm {a} {b}"))),
            ],
            Cell::Redirected => vec![
                Line::new()
                    .plain("route it in the switch: ")
                    .then(&command(format!("p2pctl plan --join {a} {b} --route direct"))),
            ],
            Cell::RootComplex if groups => vec![
                "no switch is above both, so they cannot be joined at run time, and this root complex is not known to \
                 route between them: put both cards below one switch"
                    .into(),
            ],
            Cell::RootComplex => vec![
                "put both cards below one switch, or use a host whose root complex is known to route".into(),
            ],
            Cell::Blocked => reasons.iter().filter_map(blocked_hint).map(Line::from).collect(),
            _ => Vec::new(),
        }
    }

    fn bars(&self, to: Sbdf) -> String {
        let Some(function) = self.topology.get(to) else {
            return String::new();
        };
        let bars: Vec<String> = self
            .topology
            .bars(function)
            .iter()
            .filter(|bar| bar.is_memory())
            .map(|bar| {
                let address = bar
                    .bus_address
                    .map_or("unassigned".to_owned(), |address| format!("{address:#x}"));
                format!(
                    "BAR{} {address} ({})",
                    bar.index,
                    describe::size(bar.size_bytes)
                )
            })
            .collect();
        bars.join(", ")
    }
}

/// Advice for a refusal that no plan changes.
fn blocked_hint(denial: &Denial) -> Option<&'static str> {
    let Denial::Route(block) = denial else {
        return None;
    };
    match block {
        BlockReason::PciBridge { .. } => {
            Some("conventional PCI takes no part in P2P: use PCI Express cards below one switch")
        }
        BlockReason::ProvidedBus { .. } => {
            Some("disable that in the firmware, so that the devices behind it are separate")
        }
        _ => None,
    }
}

/// The addresses of all holes, merged into as few ranges as possible.
fn merged(holes: &[MemoryHole]) -> Vec<RangeInclusive<u64>> {
    let mut ranges: Vec<RangeInclusive<u64>> =
        holes.iter().map(|hole| hole.range.clone()).collect();
    ranges.sort_by_key(|range| *range.start());
    let mut merged: Vec<RangeInclusive<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if *range.start() <= last.end().saturating_add(1) => {
                let end = *last.end().max(range.end());
                *last = *last.start()..=end;
            }
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use iommu_group::HoleCause;

    use super::*;

    #[test]
    fn windows_inside_windows_are_one() {
        let hole = |range| MemoryHole {
            range,
            port: Sbdf::from_devfn(0, 0, 0),
            cause: HoleCause::Neighbour,
            certain: true,
        };
        let holes = [
            hole(0x3000..=0x3fff),
            hole(0..=0xfff),
            hole(0x1000..=0x1fff),
            hole(0x3000..=0x30ff),
        ];
        assert_eq!(merged(&holes), [0..=0x1fff, 0x3000..=0x3fff]);
    }
}
