//! The operator's rules for devices that are no ordinary peers.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use p2p_vfio::Policy;

/// Reads a file of rules; there are none without a file.
pub(crate) fn read(file: Option<&Path>) -> Result<Policy> {
    let Some(file) = file else {
        return Ok(Policy::default());
    };
    let name = file.display().to_string();
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {name}"))?;
    Ok(Policy::parse(&name, &text)?)
}
