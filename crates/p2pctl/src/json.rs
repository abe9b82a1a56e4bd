//! The documents that `--json` prints. Each starts with `schema`, a name and a version. Within a version, fields may be
//! added, but none is removed and none changes its meaning. `JSON.md` describes them.

pub(crate) mod apply;
pub(crate) mod groups;
mod leak;
pub(crate) mod matrix;
pub(crate) mod plan;
pub(crate) mod reset;
pub(crate) mod topology;
