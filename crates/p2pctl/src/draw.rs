//! A machine as a picture: the tree from left to right, endpoints in rows, groups as colours.
//!
//! [`layout`] decides what is drawn and where, [`picture`] turns that into SVG, [`routes`] puts beside each device
//! what it may reach.

mod layout;
mod palette;
pub(crate) mod picture;
mod routes;
mod svg;
