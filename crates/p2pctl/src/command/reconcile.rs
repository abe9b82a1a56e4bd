//! `p2pctl reconcile`: brings the host into the state that a file describes.

mod config;

use std::fs;

use anyhow::{Context, Result};

use config::Config;

use super::apply::{self, Wanted};
use crate::answer::Answer;
use crate::cli::{Global, ReconcileArgs};
use crate::show::Terminal;

/// Makes the missing changes, if any.
pub(crate) fn run(args: &ReconcileArgs, global: &Global, terminal: &Terminal) -> Result<Answer> {
    let file = args.config.display();
    let text = fs::read_to_string(&args.config).with_context(|| format!("cannot read {file}"))?;
    let config: Config = toml::from_str(&text).with_context(|| format!("cannot use {file}"))?;
    let (goals, options) = config.desired();
    let wanted = Wanted::State {
        goals: &goals,
        options: &options,
    };
    apply::run(&wanted, &args.how, global, terminal)
}
