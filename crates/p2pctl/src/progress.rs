//! Progress of a transaction: events of the daemon, and lines on standard error, one per step.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use hotplug::regroup::{Action, Progress, Record};
use iommu_group::Sbdf;
use serde::{Deserialize, Serialize};

use crate::names::Names;
use crate::show::{Line, Terminal, Text, Tone};

/// Progress of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub(crate) enum ProgressEvent {
    /// An action starts.
    Started {
        /// The kind of the action.
        step: String,
        /// The functions, separated by spaces.
        functions: String,
    },
    /// The action succeeded.
    Succeeded,
    /// The action failed.
    Failed { error: String },
    /// The actions that follow undo the change.
    Undo,
    /// Another process continues the transaction.
    Resumed,
    /// The transaction has ended.
    Ended,
}

impl ProgressEvent {
    /// The event of a journal record; `None` for the first one, which has the whole plan.
    pub(crate) fn of(progress: &Progress<'_>) -> Option<Self> {
        Some(match progress.record {
            Record::Begin(_) => return None,
            Record::Started { .. } | Record::UndoStarted { .. } => started(progress.action?),
            Record::Succeeded { .. } | Record::Undone { .. } => Self::Succeeded,
            Record::Failed { error, .. } | Record::UndoFailed { error, .. } => Self::Failed {
                error: error.clone(),
            },
            Record::Undo { .. } => Self::Undo,
            Record::Resumed { .. } => Self::Resumed,
            Record::End { .. } => Self::Ended,
        })
    }

    /// The properties of the daemon's event.
    pub(crate) fn properties(&self) -> serde_json::Result<BTreeMap<String, String>> {
        serde_json::from_value(serde_json::to_value(self)?)
    }

    /// Parses the properties of an event of the daemon.
    pub(crate) fn parse(properties: &BTreeMap<String, String>) -> serde_json::Result<Self> {
        serde_json::from_value(serde_json::to_value(properties)?)
    }
}

/// Prints the progress. Consecutive actions of the same kind are one step.
pub(crate) struct ProgressPrinter {
    names: Names,
    terminal: Terminal,
    quiet: bool,
    started: Instant,
    step: Option<Step>,
}

struct Step {
    words: String,
    functions: String,
    started: Instant,
}

impl ProgressPrinter {
    /// With `quiet`, nothing is printed and only the time is measured.
    pub(crate) fn new(names: Names, terminal: &Terminal, quiet: bool) -> Self {
        Self {
            names,
            terminal: *terminal,
            quiet,
            started: Instant::now(),
            step: None,
        }
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Handles the progress of a transaction in this process.
    pub(crate) fn record(&mut self, progress: &Progress<'_>) {
        if let Some(event) = ProgressEvent::of(progress) {
            self.event(event);
        }
    }

    pub(crate) fn event(&mut self, event: ProgressEvent) {
        match event {
            ProgressEvent::Started { step, functions } => self.start(step, &functions),
            ProgressEvent::Succeeded => {}
            ProgressEvent::Failed { error } => self.finish(Some(&error)),
            ProgressEvent::Undo => {
                self.finish(None);
                self.print(Line::new().plain("  ").toned(Tone::Warn, "undo"));
            }
            ProgressEvent::Resumed | ProgressEvent::Ended => self.finish(None),
        }
    }

    fn start(&mut self, words: String, functions: &str) {
        if self.step.as_ref().is_none_or(|step| step.words != words) {
            self.finish(None);
        }
        let step = self.step.get_or_insert_with(|| Step {
            words,
            functions: String::new(),
            started: Instant::now(),
        });
        if !functions.is_empty() {
            step.functions.push(' ');
            step.functions.push_str(functions);
        }
    }

    fn finish(&mut self, error: Option<&str>) {
        let Some(step) = self.step.take() else {
            return;
        };
        let (tone, tick) = match error {
            None => (Tone::Good, "✓"),
            Some(_) => (Tone::Bad, "✗"),
        };
        let words = step.words + &step.functions;
        let line = Line::new()
            .plain("  ")
            .toned(tone, tick)
            .dim(format_args!(" {:>7} ", seconds(step.started.elapsed())))
            .plain(self.names.shorten(&words));
        self.print(match error {
            None => line,
            Some(error) => line.toned(Tone::Bad, format_args!(": {}", self.names.shorten(error))),
        });
    }

    /// Prints a line.
    pub(crate) fn print(&self, line: Line) {
        if self.quiet {
            return;
        }
        let mut text = Text::new();
        text.push_wrapped(&line, self.terminal.width, 12);
        // A failure to write to stderr cannot be reported.
        let _ = io::stderr().write_all(text.render(self.terminal.stderr_colour).as_bytes());
    }
}

/// A duration as text.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn started(action: &Action) -> ProgressEvent {
    let (step, functions): (String, Vec<Sbdf>) = match action {
        Action::Unplug { devices } | Action::Plug { devices } => {
            let unplug = matches!(action, Action::Unplug { .. });
            let step = if unplug { "unplug" } else { "plug" };
            let functions = devices.iter().map(|device| device.function);
            (step.to_owned(), functions.collect())
        }
        Action::Unbind { function } => ("unbind".to_owned(), vec![*function]),
        Action::Attributes { function, values } => {
            let awake = values.len() == 1 && values.values().all(|value| value == "on");
            let step = if awake {
                "keep awake"
            } else {
                "restore settings of"
            };
            (step.to_owned(), vec![*function])
        }
        Action::Remove { function } => ("remove".to_owned(), vec![*function]),
        Action::Rescan { below } => ("rescan below".to_owned(), vec![*below]),
        Action::Bind {
            function, driver, ..
        } => (format!("bind to {driver}:"), vec![*function]),
        Action::Autoprobe { .. }
        | Action::Acs { .. }
        | Action::Egress { .. }
        | Action::Check { .. } => (action.to_string(), Vec::new()),
    };
    let functions: Vec<String> = functions.iter().map(Sbdf::to_string).collect();
    ProgressEvent::Started {
        step,
        functions: functions.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_survives_as_properties() {
        let action = Action::Unbind {
            function: "03:00.0".parse().unwrap(),
        };
        for record in [
            Record::Started { action: 3 },
            Record::Failed {
                action: 3,
                error: "no".to_owned(),
            },
        ] {
            let progress = Progress {
                record: &record,
                action: Some(&action),
            };
            let event = ProgressEvent::of(&progress).unwrap();
            let mut properties = event.properties().unwrap();
            properties.insert("transaction".to_owned(), "000007".to_owned());
            assert_eq!(ProgressEvent::parse(&properties).unwrap(), event);
        }
    }
}
