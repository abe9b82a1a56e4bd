//! Draws a machine as SVG: the tree from left to right, endpoints in rows, groups as colours.
//!
//! [`layout`] selects and places the functions, [`picture`] renders them as SVG, and [`routes`] adds the verdicts
//! beside each device.

mod layout;
mod palette;
pub(crate) mod picture;
mod routes;
mod svg;
