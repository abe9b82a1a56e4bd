//! Unrequested effects of a plan.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{AcsBits, Exposure, Route, Sbdf, UntranslatedReach};

/// An effect of a plan that was not requested. It has to be accepted by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[cfg_attr(feature = "schema", schemars(rename = "Objection"))]
pub enum Warning {
    /// A function becomes reachable without the IOMMU from devices that it is not joined with.
    Exposes(Exposure),
    /// A function to be isolated is isolated only in Linux's groups: it and other devices still reach each other
    /// without the IOMMU, because no port between them can redirect.
    NotApart {
        /// The function.
        function: Sbdf,
        /// The devices.
        from: Vec<Sbdf>,
    },
    /// A function that was not named can no longer be assigned on its own.
    Regroups {
        /// The function.
        function: Sbdf,
        /// The functions that it gets into a group with.
        with: Vec<Sbdf>,
    },
    /// Functions that are to be joined in separate sets end up in one group.
    Merges {
        /// The first function.
        function: Sbdf,
        /// The functions of other sets.
        with: Vec<Sbdf>,
    },
    /// A device that was not named has to be unplugged temporarily.
    Interrupts {
        /// The device.
        function: Sbdf,
    },
    /// A virtual function is lost.
    Loses {
        /// The function.
        function: Sbdf,
    },
    /// Requests do not take the requested route.
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

fn list(f: &mut fmt::Formatter<'_>, functions: &[Sbdf]) -> fmt::Result {
    for (index, sbdf) in functions.iter().enumerate() {
        let gap = if index == 0 { "" } else { ", " };
        write!(f, "{gap}{sbdf}")?;
    }
    Ok(())
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exposes(exposure) => {
                let may = match exposure.reach {
                    UntranslatedReach::Yes => "becomes",
                    UntranslatedReach::No
                    | UntranslatedReach::Perhaps
                    | UntranslatedReach::Unknown => "may become",
                };
                write!(
                    f,
                    "{} {may} reachable without the IOMMU from ",
                    exposure.function
                )?;
                list(f, &exposure.to)
            }
            Self::NotApart { function, from } => {
                write!(
                    f,
                    "{function} would not be isolated: the hardware routes between it and "
                )?;
                list(f, from)?;
                f.write_str(" without the IOMMU, and no port between them can redirect")
            }
            Self::Regroups { function, with } => {
                write!(
                    f,
                    "{function} can no longer be assigned on its own: it gets into a group with "
                )?;
                list(f, with)
            }
            Self::Merges { function, with } => {
                write!(f, "{function} gets into one group also with ")?;
                list(f, with)?;
                f.write_str(", which it was not to be joined with")
            }
            Self::Interrupts { function } => write!(f, "{function} has to be unplugged meanwhile"),
            Self::Loses { function } => write!(f, "the virtual function {function} is lost"),
            Self::RouteNotAsAsked { from, to, route } => match route {
                Route::SwitchLocal | Route::SwitchLocalTranslated => {
                    write!(
                        f,
                        "requests from {from} to {to} go straight and cannot be made to go through the IOMMU"
                    )
                }
                Route::HostBridge => {
                    write!(
                        f,
                        "requests from {from} to {to} go through the IOMMU and cannot be made to go straight"
                    )
                }
                Route::Blocked(block) => {
                    write!(f, "no way for requests from {from} to {to}: {block}")
                }
            },
            Self::ClearsSafety { port, bits } => {
                write!(
                    f,
                    "{port} would lose ACS {bits}, which isolation depends on whatever the route"
                )
            }
        }
    }
}
