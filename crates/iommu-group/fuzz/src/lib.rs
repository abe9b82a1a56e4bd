//! What the fuzz targets share: machines made from arbitrary bytes, and what must hold for every machine.

mod check;
mod machine;

pub use check::{check_groups, check_resets, check_routes, check_text};
pub use machine::machine;
