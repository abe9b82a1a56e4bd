//! What is different after a plan, and while it is carried out.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::AcsBits;
use crate::{EgressVector, Route, Sbdf};

/// A function whose group is different in the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct GroupChange {
    /// The function.
    pub function: Sbdf,
    /// Its group before, itself included.
    pub before: Vec<Sbdf>,
    /// Its group in the end; empty if it is not there.
    pub after: Vec<Sbdf>,
}

/// The way of requests between two functions, before and in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RouteChange {
    /// From.
    pub from: Sbdf,
    /// To.
    pub to: Sbdf,
    /// How they went.
    pub before: Route,
    /// How they go.
    pub after: Route,
}

/// A port whose ACS is different in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PortChange {
    /// The port.
    pub port: Sbdf,
    /// What its control register held.
    pub before: AcsBits,
    /// What it holds.
    pub after: AcsBits,
    /// Whether the kernel would set another word when the port wakes or is reset, so that it has to be kept awake.
    pub hold: bool,
    /// What its egress control vector holds, if that is different.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressVector>,
}

/// A port that lacks something for the moment of a rescan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Transient {
    /// The port.
    pub port: Sbdf,
    /// What its control register holds before and after.
    pub from: AcsBits,
    /// What it holds for the moment.
    pub to: AcsBits,
    /// The devices below it that are alive meanwhile.
    pub alive: Vec<Sbdf>,
}

impl fmt::Display for Transient {
    /// What is off, and what that means for those who are alive.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let off = self.from & !self.to;
        f.write_str(if off.contains(AcsBits::RR) {
            "request redirect off; nothing is alive below"
        } else if off.contains(AcsBits::UF) {
            "upstream forwarding off; requests that turn around there are lost for the moment"
        } else {
            "completion redirect off; requests stay redirected"
        })
    }
}
