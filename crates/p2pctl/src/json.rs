//! The documents that `--json` prints. Every one starts with `schema`, a name and a version: fields may be added
//! within a version, none is taken away or changes its meaning. `JSON.md` describes them.

pub(crate) mod apply;
pub(crate) mod groups;
mod leak;
pub(crate) mod matrix;
pub(crate) mod plan;
pub(crate) mod reset;
pub(crate) mod topology;
