//! Resets: the kinds that a function supports, and the functions that each affects.

mod kind;
mod scope;

pub use kind::{ResetKind, ResetMask, ResetMaskError};
pub use scope::Reset;
