//! Text output for people: lines with tones, tables, trees, and terminal properties.

mod line;
mod table;
mod terminal;
mod tree;

pub(crate) use line::{Line, Text, Tone};
pub(crate) use table::Table;
pub(crate) use terminal::{Colour, Terminal};
pub(crate) use tree::branches;
