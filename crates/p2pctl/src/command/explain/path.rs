//! The path of a request, and the actions of the hardware on it.

use iommu_group::{BlockReason, Function, Path, Route, Sbdf};

use super::Explanation;
use crate::command::matrix::common_switch;
use crate::describe;
use crate::show::{Line, Tone};

impl Explanation<'_> {
    /// The functions on the path, with the ACS of the ports.
    pub(super) fn path_line(&self, from: Sbdf, to: Sbdf, path: &Path) -> Line {
        let chain = |start: Sbdf| -> Vec<Sbdf> {
            std::iter::once(start)
                .chain(self.topology.ancestors(start).map(Function::sbdf))
                .collect()
        };
        let (up, down) = (chain(from), chain(to));
        let straight = matches!(
            path.route,
            Route::SwitchLocal | Route::SwitchLocalTranslated
        );
        // Direct requests turn at the common bridge, others at the root.
        let top = |chain: &[Sbdf]| match path.common.filter(|_| straight) {
            Some(common) => chain
                .iter()
                .position(|f| *f == common)
                .unwrap_or(chain.len()),
            None => chain.len(),
        };
        let mut stops: Vec<Line> = up
            .iter()
            .take(top(&up))
            .map(|f| self.stop(*f, *f != from))
            .collect();
        if let Route::Blocked(BlockReason::Unreadable { function, .. }) = path.route {
            let seen = up.iter().position(|f| *f == function).unwrap_or(0);
            stops.truncate(seen.saturating_add(1));
            stops.push(Line::new().toned(Tone::Warn, "?"));
            return joined(&stops);
        }
        let turn = match path.common.filter(|_| straight) {
            Some(common) => Line::new().plain(format_args!("[{}]", self.of(common))),
            None => Line::new().plain("[root complex]"),
        };
        stops.push(turn);
        stops.extend(
            down.iter()
                .take(top(&down))
                .rev()
                .map(|f| self.stop(*f, false)),
        );
        joined(&stops)
    }

    fn stop(&self, sbdf: Sbdf, with_acs: bool) -> Line {
        let line = Line::new().plain(self.of(sbdf));
        let acs = self
            .topology
            .get(sbdf)
            .filter(|_| with_acs)
            .and_then(describe::acs_in_short);
        match acs {
            Some((tone, words)) => line.plain(" (").toned(tone, words).plain(")"),
            None => line,
        }
    }

    /// The actions of the hardware on the path.
    pub(super) fn hardware(&self, from: Sbdf, to: Sbdf, path: &Path) -> Vec<Line> {
        let ingress = path.ingress.map(|f| self.of(f)).unwrap_or_default();
        let switch = common_switch(self.routing, from, to).map(|f| self.of(f));
        let across = switch.map_or_else(
            || "inside the device".to_owned(),
            |switch| format!("directly across switch {switch}"),
        );
        let mut lines: Vec<Line> = match path.route {
            Route::SwitchLocal => vec![
                format!(
                    "a request goes {across}, untranslated: {ingress} does not redirect it, so it bypasses the IOMMU"
                )
                .into(),
            ],
            Route::SwitchLocalTranslated => vec![
                format!(
                    "translated requests go {across}: {} has ATS on and {ingress} has Direct Translated on; \
                     the IOMMU decides what they reach",
                    self.of(from)
                )
                .into(),
            ],
            Route::HostBridge => {
                let iommu = if self.topology.has_groups() {
                    "through the IOMMU, "
                } else {
                    ""
                };
                vec![
                    format!(
                        "a request goes up to the root complex, {iommu}and down again; this root complex is known to \
                         route it"
                    )
                    .into(),
                ]
            }
            Route::Blocked(block) => vec![self.names.shorten(&block.to_string()).into()],
        };
        if path.completions_detour {
            lines.push(
                "completions of reads go through the root complex (completion redirect is on)"
                    .into(),
            );
        }
        lines
    }
}

/// Joins the stops of a path.
fn joined(stops: &[Line]) -> Line {
    let mut line = Line::new();
    for (index, stop) in stops.iter().enumerate() {
        if index > 0 {
            line = line.dim(" → ");
        }
        line = line.then(stop);
    }
    line
}
