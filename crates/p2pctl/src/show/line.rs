//! Words with a tone, lines and texts.

use std::fmt::{self, Write};

use anstyle::{AnsiColor, Style};

/// Meaning of a word's style. Without colour the word alone carries the information.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Tone {
    /// No meaning.
    #[default]
    Plain,
    /// The result, or its subject.
    Strong,
    /// Secondary information.
    Dim,
    /// As it should be.
    Good,
    /// Open, for a reason.
    Warn,
    /// Refused, or dangerous.
    Bad,
    /// A name that appears in several places, such as a group.
    Name,
}

impl Tone {
    fn style(self) -> Style {
        let colour = |c: AnsiColor| Style::new().fg_color(Some(c.into()));
        match self {
            Self::Plain => Style::new(),
            Self::Strong => Style::new().bold(),
            Self::Dim => Style::new().dimmed(),
            Self::Good => colour(AnsiColor::Green),
            Self::Warn => colour(AnsiColor::Yellow),
            Self::Bad => colour(AnsiColor::Red).bold(),
            Self::Name => colour(AnsiColor::Cyan),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    text: String,
    tone: Tone,
}

/// A line that is built word by word.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Line {
    spans: Vec<Span>,
}

impl Line {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Appends text. Control characters, which may come from an untrusted file, are replaced by `?`, so that they do
    /// not reach the terminal.
    pub(crate) fn toned(mut self, tone: Tone, text: impl fmt::Display) -> Self {
        let text: String = text
            .to_string()
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        if text.is_empty() {
            return self;
        }
        match self.spans.last_mut() {
            Some(last) if last.tone == tone => last.text.push_str(&text),
            _ => self.spans.push(Span { text, tone }),
        }
        self
    }

    pub(crate) fn plain(self, text: impl fmt::Display) -> Self {
        self.toned(Tone::Plain, text)
    }

    pub(crate) fn strong(self, text: impl fmt::Display) -> Self {
        self.toned(Tone::Strong, text)
    }

    pub(crate) fn dim(self, text: impl fmt::Display) -> Self {
        self.toned(Tone::Dim, text)
    }

    /// Appends the words of another line.
    pub(crate) fn then(mut self, other: &Self) -> Self {
        for span in &other.spans {
            self = self.toned(span.tone, &span.text);
        }
        self
    }

    /// Appends spaces until the line is `width` columns wide.
    pub(crate) fn pad(self, width: usize) -> Self {
        let missing = width.saturating_sub(self.width());
        self.plain(" ".repeat(missing))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Width of the line in columns. All characters that are printed take one column.
    pub(crate) fn width(&self) -> usize {
        self.spans.iter().map(|s| s.text.chars().count()).sum()
    }

    /// Breaks the line at spaces into parts of at most `width` columns, if its words permit.
    pub(crate) fn wrap(&self, width: usize) -> Vec<Self> {
        self.wrap_hanging(width, width)
    }

    /// As `wrap`, with a different width for the first part.
    fn wrap_hanging(&self, first: usize, rest: usize) -> Vec<Self> {
        let mut lines = Vec::new();
        let mut current = Self::new();
        for (word, spaces) in self.words() {
            let needed = current.width() + spaces + word.width();
            let width = if lines.is_empty() { first } else { rest };
            if !current.is_empty() && needed > width {
                lines.push(std::mem::take(&mut current));
                current = word;
            } else {
                // A space inside a toned part has the tone of that part.
                let before = current.spans.last().map(|span| span.tone);
                let tone = match word.spans.first() {
                    Some(first) if before == Some(first.tone) => first.tone,
                    _ => Tone::Plain,
                };
                current = current.toned(tone, " ".repeat(spaces)).then(&word);
            }
        }
        lines.push(current);
        lines
    }

    /// The words, each with the number of spaces before it.
    fn words(&self) -> Vec<(Self, usize)> {
        let mut words = Vec::new();
        let mut word = Self::new();
        let mut spaces = 0;
        for span in &self.spans {
            for c in span.text.chars() {
                if c == ' ' {
                    if !word.is_empty() {
                        words.push((std::mem::take(&mut word), spaces));
                        spaces = 0;
                    }
                    spaces += 1;
                } else {
                    word = word.toned(span.tone, c);
                }
            }
        }
        if !word.is_empty() {
            words.push((word, spaces));
        }
        words
    }

    fn write(&self, colour: bool, out: &mut String) {
        let mut line = String::new();
        for span in &self.spans {
            if colour && span.tone != Tone::Plain {
                let style = span.tone.style();
                // Writing to a String cannot fail.
                let _ = write!(
                    line,
                    "{}{}{}",
                    style.render(),
                    span.text,
                    style.render_reset()
                );
            } else {
                line.push_str(&span.text);
            }
        }
        out.push_str(line.trim_end());
    }
}

impl fmt::Display for Line {
    /// Writes the words without tones.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.spans
            .iter()
            .try_for_each(|span| f.write_str(&span.text))
    }
}

impl From<&str> for Line {
    fn from(text: &str) -> Self {
        Self::new().plain(text)
    }
}

impl From<String> for Line {
    fn from(text: String) -> Self {
        Self::new().plain(text)
    }
}

/// A sequence of lines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Text {
    lines: Vec<Line>,
}

impl<T: Into<Line>> From<T> for Text {
    fn from(line: T) -> Self {
        Self {
            lines: vec![line.into()],
        }
    }
}

impl Text {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn push(&mut self, line: impl Into<Line>) {
        self.lines.push(line.into());
    }

    /// Appends a line that is broken to `width` columns. All parts but the first are indented by `indent`.
    pub(crate) fn push_wrapped(&mut self, line: &Line, width: usize, indent: usize) {
        let rest = width.saturating_sub(indent);
        for (index, part) in line.wrap_hanging(width, rest).into_iter().enumerate() {
            let lead = if index == 0 { 0 } else { indent };
            self.push(Line::new().plain(" ".repeat(lead)).then(&part));
        }
    }

    /// Appends lines, the first of them with a label of `columns` columns.
    pub(crate) fn push_section(
        &mut self,
        (label, columns): (&str, usize),
        lines: Vec<Line>,
        width: usize,
    ) {
        for (index, line) in lines.into_iter().enumerate() {
            let label = if index == 0 { label } else { "" };
            let line = Line::new()
                .plain("  ")
                .dim(format_args!("{label:columns$}"))
                .then(&line);
            self.push_wrapped(&line, width, columns + 2);
        }
    }

    pub(crate) fn blank(&mut self) {
        self.push(Line::new());
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.lines.extend(other.lines);
    }

    /// The text with all lines broken to `width` columns.
    pub(crate) fn wrapped(&self, width: usize, indent: usize) -> Self {
        let mut text = Self::new();
        for line in &self.lines {
            text.push_wrapped(line, width, indent);
        }
        text
    }

    /// Renders the text, with escape sequences if `colour`.
    pub(crate) fn render(&self, colour: bool) -> String {
        let mut out = String::new();
        for line in &self.lines {
            line.write(colour, &mut out);
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_only_where_it_is_wanted() {
        let mut text = Text::new();
        text.push(Line::new().plain("verdict ").toned(Tone::Bad, "refused"));
        assert_eq!(text.render(false), "verdict refused\n");
        assert_eq!(
            text.render(true),
            "verdict \u{1b}[1m\u{1b}[31mrefused\u{1b}[0m\n"
        );
    }

    #[test]
    fn what_a_file_says_cannot_drive_the_terminal() {
        let line = Line::new().plain("driver \u{1b}[2Jevil\nline");
        assert_eq!(line, Line::from("driver ?[2Jevil?line"));
    }

    #[test]
    fn wrapping_keeps_tones_and_breaks_at_spaces() {
        let line = Line::new().plain("one two ").strong("three four");
        assert_eq!(
            line.wrap(9),
            [
                Line::from("one two"),
                Line::new().strong("three"),
                Line::new().strong("four"),
            ]
        );
        assert_eq!(Line::from("longer-than-that").wrap(4).len(), 1);
        assert_eq!(line.wrap(80), std::slice::from_ref(&line));
    }

    #[test]
    fn wrapped_parts_hang() {
        let mut text = Text::new();
        text.push_wrapped(&Line::from("! aaaaaaaaa bbbbbbbbb ccccccccc"), 22, 2);
        assert_eq!(text.render(false), "! aaaaaaaaa bbbbbbbbb\n  ccccccccc\n");
    }
}
