//! What people read: lines of toned words, tables, trees, and how they get onto a terminal.

mod line;
mod table;
mod terminal;
mod tree;

pub(crate) use line::{Line, Text, Tone};
pub(crate) use table::Table;
pub(crate) use terminal::{Colour, Terminal};
pub(crate) use tree::branches;
