//! Prints the progress of a transaction on standard error, one line per step.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use hotplug::regroup::{Action, Progress, Record};
use iommu_group::Sbdf;

use crate::names::Names;
use crate::show::{Line, Terminal, Text, Tone};

/// Prints the progress. Consecutive actions of the same kind are one step.
pub(crate) struct Teller {
    names: Names,
    terminal: Terminal,
    quiet: bool,
    started: Instant,
    step: Option<Step>,
}

struct Step {
    words: String,
    functions: Vec<Sbdf>,
    started: Instant,
}

impl Teller {
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

    /// Handles a journal record.
    pub(crate) fn tell(&mut self, progress: &Progress<'_>) {
        match progress.record {
            Record::Started { .. } | Record::UndoStarted { .. } => {
                if let Some(action) = progress.action {
                    self.start(action);
                }
            }
            Record::Failed { error, .. } | Record::UndoFailed { error, .. } => {
                self.finish(Some(error));
            }
            Record::Undo { .. } => {
                self.finish(None);
                self.say(Line::new().plain("  ").toned(Tone::Warn, "undo"));
            }
            Record::Resumed { .. } | Record::End { .. } => self.finish(None),
            Record::Begin(_) | Record::Succeeded { .. } | Record::Undone { .. } => {}
        }
    }

    fn start(&mut self, action: &Action) {
        let (words, functions) = describe(action);
        if let Some(step) = self.step.as_mut().filter(|step| step.words == words) {
            step.functions.extend(functions);
            return;
        }
        self.finish(None);
        self.step = Some(Step {
            words,
            functions,
            started: Instant::now(),
        });
    }

    fn finish(&mut self, error: Option<&str>) {
        let Some(step) = self.step.take() else {
            return;
        };
        let (tone, tick) = match error {
            None => (Tone::Good, "✓"),
            Some(_) => (Tone::Bad, "✗"),
        };
        let mut words = step.words;
        for function in step.functions {
            words.push(' ');
            words.push_str(&self.names.of(function));
        }
        let line = Line::new()
            .plain("  ")
            .toned(tone, tick)
            .dim(format_args!(" {:>7} ", seconds(step.started.elapsed())))
            .plain(self.names.shorten(&words));
        self.say(match error {
            None => line,
            Some(error) => line.toned(Tone::Bad, format_args!(": {}", self.names.shorten(error))),
        });
    }

    /// Prints a line that is not a step.
    pub(crate) fn say(&self, line: Line) {
        if self.quiet {
            return;
        }
        let mut text = Text::new();
        text.push_wrapped(&line, self.terminal.width, 12);
        // A failure to write to stderr cannot be reported.
        let _ = io::stderr().write_all(text.render(self.terminal.talk_colour).as_bytes());
    }
}

/// A duration as text.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// The kind of an action as text, and its functions.
fn describe(action: &Action) -> (String, Vec<Sbdf>) {
    let (words, functions) = match action {
        Action::Unplug { devices } => (
            "unplug".to_owned(),
            devices.iter().map(|device| device.function).collect(),
        ),
        Action::Plug { devices } => (
            "plug".to_owned(),
            devices.iter().map(|device| device.function).collect(),
        ),
        Action::Unbind { function } => ("unbind".to_owned(), vec![*function]),
        Action::Attributes { function, values } => {
            let awake = values.len() == 1 && values.values().all(|value| value == "on");
            let words = if awake { "keep awake" } else { "settings of" };
            (words.to_owned(), vec![*function])
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
    (words, functions)
}
