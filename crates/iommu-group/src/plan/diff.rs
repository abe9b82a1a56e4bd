//! Changes after a plan and while it is carried out.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::AcsBits;
use crate::{EgressVector, Route, Sbdf};

/// A function whose group differs in the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct GroupChange {
    /// The function.
    pub function: Sbdf,
    /// Its group before, including itself.
    pub before: Vec<Sbdf>,
    /// Its group in the end; empty if the function is not present.
    pub after: Vec<Sbdf>,
}

/// The route of requests between two functions, before and in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RouteChange {
    /// The initiator.
    pub from: Sbdf,
    /// The target.
    pub to: Sbdf,
    /// The route before.
    pub before: Route,
    /// The route in the end.
    pub after: Route,
}

/// A port whose ACS differs in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PortChange {
    /// The port.
    pub port: Sbdf,
    /// Its control register before.
    pub before: AcsBits,
    /// Its control register in the end.
    pub after: AcsBits,
    /// Whether the kernel would set another value when the port wakes or is reset. The port has to be kept awake if so.
    pub hold: bool,
    /// Its egress control vector in the end, if it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressVector>,
}

/// A port whose ACS control differs during a rescan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Transient {
    /// The port.
    pub port: Sbdf,
    /// Its control register before and after the rescan.
    pub from: AcsBits,
    /// Its control register during the rescan.
    pub to: AcsBits,
    /// The devices below it that are active during the rescan.
    pub alive: Vec<Sbdf>,
}

impl fmt::Display for Transient {
    /// Writes which control is off, and the effect on active devices.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let off = self.from & !self.to;
        f.write_str(if off.contains(AcsBits::RR) {
            "request redirect off; no device below is active"
        } else if off.contains(AcsBits::UF) {
            "upstream forwarding off; requests that turn around there are lost during the rescan"
        } else {
            "completion redirect off; requests stay redirected"
        })
    }
}
