//! SVG writer for pictures of boxes.

use std::fmt::{self, Write};

/// An SVG document under construction.
pub(super) struct Svg {
    body: String,
}

/// Style of a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Font {
    pub(super) size: i32,
    pub(super) colour: &'static str,
    pub(super) bold: bool,
    pub(super) anchor: &'static str,
}

impl Font {
    pub(super) const fn new(size: i32, colour: &'static str) -> Self {
        Self {
            size,
            colour,
            bold: false,
            anchor: "start",
        }
    }

    pub(super) const fn bold(mut self) -> Self {
        self.bold = true;
        self
    }

    pub(super) const fn middle(mut self) -> Self {
        self.anchor = "middle";
        self
    }

    pub(super) const fn end(mut self) -> Self {
        self.anchor = "end";
        self
    }
}

/// Style and position of a rectangle.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rect {
    pub(super) x: i32,
    pub(super) y: i32,
    pub(super) width: i32,
    pub(super) height: i32,
    pub(super) radius: i32,
    pub(super) fill: &'static str,
    pub(super) stroke: &'static str,
}

impl Svg {
    pub(super) fn new() -> Self {
        Self {
            body: String::new(),
        }
    }

    /// Adds a line of markup. Writing to a string cannot fail.
    fn line(&mut self, markup: fmt::Arguments<'_>) {
        let _ = self.body.write_fmt(markup);
        self.body.push('\n');
    }

    pub(super) fn rect(&mut self, rect: Rect) {
        let Rect {
            x,
            y,
            width,
            height,
            radius,
            fill,
            stroke,
        } = rect;
        self.line(format_args!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"{radius}\" fill=\"{fill}\" \
             stroke=\"{stroke}\"/>"
        ));
    }

    pub(super) fn text(&mut self, x: i32, y: i32, font: Font, text: &str) {
        let Font {
            size,
            colour,
            anchor,
            bold,
        } = font;
        let weight = if bold { " font-weight=\"bold\"" } else { "" };
        let text = escaped(text);
        self.line(format_args!(
            "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\" fill=\"{colour}\" text-anchor=\"{anchor}\"{weight}>{text}</text>"
        ));
    }

    /// A line through points. A part is horizontal or vertical only if its points are.
    pub(super) fn path(&mut self, points: &[(i32, i32)], width: f32, colour: &str) {
        let mut d = String::new();
        for (index, (x, y)) in points.iter().enumerate() {
            let _ = write!(d, "{}{x} {y}", if index == 0 { "M" } else { " L" });
        }
        self.line(format_args!(
            "<path d=\"{d}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>"
        ));
    }

    /// Text that reads upwards.
    pub(super) fn upright(&mut self, x: i32, y: i32, font: Font, text: &str) {
        let Font { size, colour, .. } = font;
        let text = escaped(text);
        self.line(format_args!(
            "<text transform=\"translate({x},{y}) rotate(-90)\" font-size=\"{size}\" fill=\"{colour}\">{text}</text>"
        ));
    }

    pub(super) fn circle(&mut self, x: i32, y: i32, radius: i32, fill: &str, stroke: &str) {
        self.line(format_args!(
            "<circle cx=\"{x}\" cy=\"{y}\" r=\"{radius}\" fill=\"{fill}\" stroke=\"{stroke}\" stroke-width=\"2\"/>"
        ));
    }

    /// Opens a group whose tooltip is this text, until [`Svg::close`].
    pub(super) fn open(&mut self, title: &str) {
        let title = escaped(title);
        self.line(format_args!("<g><title>{title}</title>"));
    }

    pub(super) fn close(&mut self) {
        self.line(format_args!("</g>"));
    }

    /// Completes the document.
    pub(super) fn finish(self, width: i32, height: i32, title: &str) -> String {
        let title = escaped(title);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"DejaVu Sans, Verdana, Helvetica, sans-serif\" role=\"img\">\n\
             <title>{title}</title>\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n{}</svg>\n",
            self.body
        )
    }
}

fn escaped(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '&' => "&amp;".to_owned(),
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '"' => "&quot;".to_owned(),
            c if c.is_control() => "?".to_owned(),
            c => c.to_string(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_cannot_break_out() {
        assert_eq!(escaped("a<b>&\"c\"\n"), "a&lt;b&gt;&amp;&quot;c&quot;?");
    }
}
