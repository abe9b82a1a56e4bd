//! `p2pctl reconcile`: brings the host into the state that a file describes.

mod config;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use config::Config;

use super::apply::{self, What};
use crate::answer::Answer;
use crate::cli::{ChangeArgs, Global};
use crate::show::Terminal;

/// Makes the missing changes, if any.
pub(crate) fn run(
    config: &Path,
    how: &ChangeArgs,
    global: &Global,
    terminal: &Terminal,
) -> Result<Answer> {
    let file = config.display();
    let text = fs::read_to_string(config).with_context(|| format!("cannot read {file}"))?;
    let config: Config = toml::from_str(&text).with_context(|| format!("cannot use {file}"))?;
    let (goals, options) = config.wish();
    let what = What::Wish {
        goals: &goals,
        options: &options,
    };
    apply::run(&what, how, global, terminal)
}
