//! `p2pctl status`: running, interrupted and completed changes, and the settings that are held for them.

use anyhow::Result;
use hotplug::regroup::{Regroup, StateDir, Status};

use crate::answer::Answer;
use crate::cli::{Global, StateArgs};
use crate::host;
use crate::json;
use crate::show::{Line, Text, Tone};

/// Number of completed changes that are shown.
const LAST: usize = 5;

/// Shows the contents of the state directory. Reads nothing else of the host.
pub(crate) fn run(global: &Global, state: &StateArgs, width: usize) -> Result<Answer> {
    let host = host::live(global)?;
    let state = StateDir::new(&state.state_dir);
    let boot = Regroup::new(&host, &[], state.clone()).boot_id()?;
    let status = state.status(&boot)?;
    let interrupted = status.unfinished.is_some() && !status.busy;
    let document = json::status(&status);
    let answer = Answer::either(global.json, &document, || text(&status, width))?;
    Ok(answer.failed_if(interrupted))
}

fn text(status: &Status, width: usize) -> Text {
    let mut text = Text::new();
    let first = match (&status.unfinished, status.busy) {
        (Some(unfinished), false) => Line::new()
            .toned(Tone::Bad, "a change was interrupted: p2pctl recover")
            .dim(format_args!("  {}", unfinished.journal.display())),
        (Some(unfinished), true) => Line::new()
            .toned(Tone::Warn, "a change is under way")
            .dim(format_args!("  {}", unfinished.journal.display())),
        (None, true) => {
            Line::new().toned(Tone::Warn, "a change is about to begin or has just ended")
        }
        (None, false) => Line::new().toned(Tone::Good, "nothing is under way"),
    };
    text.push_wrapped(&first, width, 2);
    if !status.held.is_empty() {
        let ports: Vec<String> = status
            .held
            .iter()
            .map(|held| held.port.to_string())
            .collect();
        let line = Line::new().dim("kept awake  ").plain(ports.join(" "));
        text.push_wrapped(&line, width, 12);
    }
    for (finished, index) in status.finished.iter().take(LAST).zip(0..) {
        let label = if index == 0 { "over" } else { "" };
        let line = Line::new().dim(format_args!("{label:12}"));
        let journal = finished.journal.display().to_string();
        text.push_wrapped(&line.plain(journal), width, 12);
    }
    text
}
