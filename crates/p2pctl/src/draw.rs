//! A machine as a picture: the tree from left to right, endpoints in rows, groups as colours.
//!
//! [`layout`] decides what is drawn and where, [`picture`] turns that into SVG.

pub(crate) mod layout;
pub(crate) mod palette;
pub(crate) mod picture;
mod svg;
