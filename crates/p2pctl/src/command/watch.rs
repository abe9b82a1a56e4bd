//! `p2pctl watch`: what the daemon does and finds, as it happens.

use std::path::Path;

use anyhow::{Context, Result};
use vmm_api::Client;

use super::vm::events;
use crate::answer::Answer;

/// Prints events until the daemon ends.
pub(crate) fn run(socket: &Path, json: bool) -> Result<Answer> {
    events::run(&Client::new(socket), json).context("is the daemon running? p2pctl serve")
}
