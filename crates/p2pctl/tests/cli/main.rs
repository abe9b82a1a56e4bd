//! `p2pctl` as an operator runs it, on machines in the shape of `/sys` and on the fixtures of `resources/topologies`.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test that cannot set up should stop"
)]

mod applies;
mod draw;
mod fixtures;
mod groups;
mod interrupts;
mod json;
mod launch;
mod plans;
mod proxy;
mod readme;
mod resets;
mod routes;
mod run;
mod sources;
mod stopped;
mod topology;
