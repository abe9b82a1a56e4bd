//! `p2pctl watch`: the daemon's events as they occur.

use std::path::Path;

use anyhow::{Context, Result};
use vmm_api::Client;

use super::vm::events;
use crate::answer::Answer;

/// Prints events until the daemon ends.
pub(crate) fn run(socket: &Path, json: bool) -> Result<Answer> {
    events::run(&Client::new(socket), json).context("is the daemon running? p2pctl serve")
}
