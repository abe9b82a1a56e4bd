//! `p2pctl reset-scope`: the functions that a reset affects.

use std::collections::BTreeSet;

use anyhow::Result;
use iommu_group::{Kernel, Reset, ResetMask, Sbdf};

use super::plan::View;
use crate::answer::Answer;
use crate::cli::ResetScopeArgs;
use crate::describe;
use crate::json;
use crate::show::{Line, Table, Text, Tone};
use crate::source::Source;

/// Shows the resets of a function, or the one that would be chosen. Refused if there is none, or if it affects
/// functions that the caller does not own.
pub(crate) fn run(
    source: &Source,
    args: &ResetScopeArgs,
    json: bool,
    width: usize,
) -> Result<Answer> {
    source.must_have(&[args.function])?;
    source.must_have(&args.owned)?;
    let topology = source.topology();
    let kernel = Kernel::of(topology);
    let all = topology.resets(&kernel, args.function);
    let chosen = topology.choose_reset(&kernel, args.function, args.kind.unwrap_or(ResetMask::ANY));
    let owned: BTreeSet<Sbdf> = args.owned.iter().copied().chain([args.function]).collect();
    let foreign: Vec<Sbdf> = chosen
        .iter()
        .flat_map(|reset| reset.not_owned(&owned))
        .collect();
    let asked = args.kind.is_some() || !args.owned.is_empty();
    let refused = chosen.is_none() || (!args.owned.is_empty() && !foreign.is_empty());
    if json {
        let document = json::reset_scope(args.function, &all, chosen.as_ref(), &foreign);
        return Ok(Answer::json(&document)?.refused_if(refused));
    }
    let view = View::new(source, width);
    let text = match &chosen {
        None => view.no_reset(args, &all),
        Some(chosen) if asked => view.chosen_reset(args, chosen, &foreign),
        Some(chosen) => view.reset_kinds(args.function, &all, chosen),
    };
    Ok(Answer::text(text).about(source).refused_if(refused))
}

impl View<'_> {
    /// All kinds; the one that Linux would choose is marked.
    fn reset_kinds(&self, function: Sbdf, all: &[Reset], chosen: &Reset) -> Text {
        let mut table = Table::new(["", "KIND", "BY", "HITS"]);
        for reset in all {
            let first = chosen.resets_function && reset.kind == chosen.kind;
            table.row(vec![
                if first {
                    Line::new().toned(Tone::Good, "→")
                } else {
                    Line::new()
                },
                reset.kind.to_string().into(),
                reset
                    .port
                    .map_or_else(|| "itself".to_owned(), |port| self.names.of(port))
                    .into(),
                if reset.hits == [function] {
                    Line::new().toned(Tone::Good, "this function alone")
                } else {
                    self.names.list(&reset.hits).into()
                },
            ]);
        }
        let mut text = table.render(self.width);
        text.blank();
        let name = self.names.of(function);
        let line = if chosen.resets_function {
            format!("→ is the reset that Linux uses for {name} alone; the others must be requested")
        } else {
            format!("no reset hits {name} alone: the caller must own all functions that it hits")
        };
        text.push_wrapped(&Line::new().dim(line), self.width, 2);
        text
    }

    /// The reset that would be chosen, and all functions that it affects.
    fn chosen_reset(&self, args: &ResetScopeArgs, chosen: &Reset, foreign: &[Sbdf]) -> Text {
        let mut text = Text::new();
        let by = chosen
            .port
            .map_or_else(String::new, |port| format!(" by {}", self.names.of(port)));
        let function = self.names.of(args.function);
        let head = Line::new().strong(format_args!("{function}: "));
        let reset = format!("{} reset{by}", chosen.kind);
        let refused = !args.owned.is_empty() && !foreign.is_empty();
        if chosen.hits == [args.function] {
            text.push(
                head.plain(reset)
                    .toned(Tone::Good, " hits this function alone"),
            );
            return text;
        }
        text.push(if refused {
            head.toned(Tone::Bad, "refused").plain(format_args!(
                ", a {reset} hits {}",
                count(
                    foreign.len(),
                    "function that you do not own",
                    "functions that you do not own"
                )
            ))
        } else {
            head.plain(reset).toned(
                Tone::Warn,
                format_args!(" hits {} functions", chosen.hits.len()),
            )
        });
        text.blank();
        let mut table = Table::new(["", "FUNCTION", "", "GROUP", "DRIVER", ""]);
        for sbdf in &chosen.hits {
            let Some(function) = self.topology.get(*sbdf) else {
                continue;
            };
            let group = function
                .group()
                .map(|g| format!("g{g}"))
                .unwrap_or_default();
            let owned = args.owned.is_empty() || !foreign.contains(sbdf);
            table.row(vec![
                "  ".into(),
                self.names.of(*sbdf).into(),
                describe::what(function).into(),
                Line::new().toned(Tone::Name, group),
                function.driver().unwrap_or_default().into(),
                if owned {
                    Line::new()
                } else {
                    Line::new().toned(Tone::Bad, "not owned")
                },
            ]);
        }
        text.extend(table.render(self.width));
        text.blank();
        let advice = if refused {
            format!(
                "own all functions that it hits, or choose another kind: p2pctl reset-scope {function}"
            )
        } else if foreign.is_empty() {
            "you own all of them".to_owned()
        } else {
            "the caller must own all of them (--owned lists the functions that you own)".to_owned()
        };
        text.push_wrapped(&Line::from(advice), self.width, 2);
        if !chosen.hit_ports.is_empty() {
            let ports = self.names.list(&chosen.hit_ports);
            let line = format!("ACS of {ports} is reset too: Linux then sets its defaults");
            text.push_wrapped(&Line::new().toned(Tone::Warn, line), self.width, 2);
        }
        text
    }

    /// Text for a function without an acceptable reset.
    fn no_reset(&self, args: &ResetScopeArgs, all: &[Reset]) -> Text {
        let mut text = Text::new();
        let function = self.names.of(args.function);
        let kinds: Vec<String> = all.iter().map(|reset| reset.kind.to_string()).collect();
        let line = Line::new()
            .strong(format_args!("{function}: "))
            .toned(Tone::Bad, "refused");
        match args.kind {
            Some(mask) if !kinds.is_empty() => {
                text.push(line.plain(format_args!(
                    ", it has no reset of kind {}",
                    kinds_in_short(mask)
                )));
                text.push(format!(
                    "  it has {}: p2pctl reset-scope {function}",
                    kinds.join(", ")
                ));
            }
            _ => {
                text.push(line.plain(", it cannot be reset"));
                text.push("  only a power cycle of the host resets it");
            }
        }
        text
    }
}

fn count(count: usize, one: &str, several: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {several}"),
    }
}

/// The name of a set of kinds, or the names of its members.
fn kinds_in_short(mask: ResetMask) -> String {
    if mask == ResetMask::FUNC {
        "func".to_owned()
    } else if mask == ResetMask::LINK {
        "link".to_owned()
    } else {
        mask.to_string()
    }
}
