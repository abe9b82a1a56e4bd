//! The result of a command.

use iommu_group::assignment::UnsafeInterrupts;
use serde::Serialize;

use crate::show::{Line, Text, Tone};
use crate::source::Source;

/// Content for stdout.
#[derive(Debug)]
pub(crate) enum Body {
    /// Text for people.
    Text(Text),
    /// A file, printed unchanged: JSON, SVG or a manual page.
    Raw(String),
}

/// The result of a command that did not fail with an error.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The data.
    pub(crate) body: Body,
    /// Notes for stderr.
    pub(crate) notes: Text,
    /// Whether the request is refused.
    pub(crate) refused: bool,
    /// Whether the request was tried and failed.
    pub(crate) failed: bool,
}

impl Answer {
    pub(crate) fn text(text: Text) -> Self {
        Self::new(Body::Text(text))
    }

    pub(crate) fn raw(text: String) -> Self {
        Self::new(Body::Raw(text))
    }

    /// A JSON document, ending in a newline.
    pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<Self> {
        let mut text = serde_json::to_string_pretty(value)?;
        text.push('\n');
        Ok(Self::raw(text))
    }

    /// The document with `json`, otherwise the text.
    pub(crate) fn either(
        json: bool,
        document: &impl Serialize,
        text: impl FnOnce() -> Text,
    ) -> anyhow::Result<Self> {
        match json {
            true => Self::json(document),
            false => Ok(Self::text(text())),
        }
    }

    fn new(body: Body) -> Self {
        Self {
            body,
            notes: Text::new(),
            refused: false,
            failed: false,
        }
    }

    /// Adds a note.
    pub(crate) fn note(mut self, text: impl std::fmt::Display) -> Self {
        self.notes
            .push(Line::new().toned(Tone::Warn, "note: ").plain(text));
        self
    }

    /// Adds the notes that apply to every command on this machine: unreadable data, and interrupts that may not be
    /// isolated.
    pub(crate) fn about(mut self, source: &Source) -> Self {
        if source.topology().needs_privilege() {
            self = self.note(format_args!(
                "{} was read without root: port types, links and ACS are unknown, not off. Run as root",
                source.from
            ));
        }
        match UnsafeInterrupts::of(source.topology(), source.host.policy()) {
            Some(found) => self.note(found),
            None => self,
        }
    }

    /// Sets the failure flag.
    pub(crate) fn failed_if(mut self, failed: bool) -> Self {
        self.failed = failed;
        self
    }

    /// Sets the refusal flag.
    pub(crate) fn refused_if(mut self, refused: bool) -> Self {
        self.refused = refused;
        self
    }
}
