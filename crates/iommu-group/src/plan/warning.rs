//! Unrequested effects of a plan.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::sbdf::List;
use crate::{AcsBits, Exposure, Route, Sbdf, UntranslatedReach};

/// An effect of a plan that was not requested. It has to be accepted by name.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error,
)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[cfg_attr(feature = "schema", schemars(rename = "Objection"))]
pub enum Warning {
    /// A function becomes reachable without the IOMMU from devices that it is not joined with.
    #[error("{} {} reachable without the IOMMU from {}", .0.function, becomes(.0.reach), List(&.0.to))]
    Exposes(Exposure),
    /// A function to be isolated is isolated only in Linux's groups: it and other devices still reach each other
    /// without the IOMMU, because no port between them can redirect.
    #[error(
        "{function} would not be isolated: the hardware routes between it and {} without the IOMMU, and no port between \
         them can redirect",
        List(from)
    )]
    NotApart {
        /// The function.
        function: Sbdf,
        /// The devices.
        from: Vec<Sbdf>,
    },
    /// A function that was not named can no longer be assigned on its own.
    #[error(
        "{function} can no longer be assigned on its own: it would be in a group with {}",
        List(with)
    )]
    Regroups {
        /// The function.
        function: Sbdf,
        /// The functions that it gets into a group with.
        with: Vec<Sbdf>,
    },
    /// Functions that are to be joined in separate sets end up in one group.
    #[error(
        "{function} would also be in a group with {}, which it is not to be joined with",
        List(with)
    )]
    Merges {
        /// The first function.
        function: Sbdf,
        /// The functions of other sets.
        with: Vec<Sbdf>,
    },
    /// A device that was not named has to be unplugged temporarily.
    #[error("{function} has to be unplugged for the change")]
    Interrupts {
        /// The device.
        function: Sbdf,
    },
    /// A virtual function is lost.
    #[error("the virtual function {function} is lost")]
    Loses {
        /// The function.
        function: Sbdf,
    },
    /// Requests do not take the requested route.
    #[error("requests from {from} to {to} {}", Taken(route))]
    RouteNotAsAsked {
        /// The initiator.
        from: Sbdf,
        /// The target.
        to: Sbdf,
        /// The route that the requests would take.
        route: Route,
    },
    /// Source validation or upstream forwarding would be cleared: a device could send requests with the requester ID of
    /// another device, or requests that turn around at the port would be lost.
    #[error("{port} would lose ACS {bits}, which isolation needs for every route")]
    ClearsSafety {
        /// The port.
        port: Sbdf,
        /// The bits.
        bits: AcsBits,
    },
}

impl Warning {
    /// The function to name and the option that accepts it, for warnings that can be accepted in this way.
    #[must_use]
    pub fn remedy(&self) -> Option<(&'static str, Sbdf)> {
        match self {
            Self::Exposes(Exposure { function, .. }) | Self::NotApart { function, .. } => {
                Some(("expose", *function))
            }
            Self::Regroups { function, .. }
            | Self::Interrupts { function }
            | Self::Loses { function } => Some(("with", *function)),
            Self::Merges { .. } | Self::RouteNotAsAsked { .. } | Self::ClearsSafety { .. } => None,
        }
    }
}

fn becomes(reach: UntranslatedReach) -> &'static str {
    match reach {
        UntranslatedReach::Yes => "becomes",
        UntranslatedReach::No | UntranslatedReach::Perhaps | UntranslatedReach::Unknown => {
            "may become"
        }
    }
}

/// The route that requests take although another one was requested.
struct Taken<'a>(&'a Route);

impl fmt::Display for Taken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Route::SwitchLocal | Route::SwitchLocalTranslated => {
                f.write_str("go directly and cannot be redirected to the IOMMU")
            }
            Route::HostBridge => f.write_str("go through the IOMMU and cannot go directly"),
            Route::Blocked(block) => write!(f, "have no route: {block}"),
        }
    }
}
