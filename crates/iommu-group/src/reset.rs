//! Resets: which kinds a function has, and whom each would hit.

mod kind;
mod scope;

pub use kind::{ResetKind, ResetMask, ResetMaskError};
pub use scope::Reset;
