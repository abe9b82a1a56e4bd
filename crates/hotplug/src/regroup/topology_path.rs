//! Path to a function that does not depend on bus numbers.

use std::fmt;
use std::str::FromStr;

use iommu_group::{Sbdf, Topology};
use serde::{Deserialize, Serialize};

/// The path to a function from its root bus: the function on the root bus, then device and function numbers below each
/// bridge. A rescan may change bus numbers, but not this path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TopologyPath {
    root: Sbdf,
    /// Device and function number in one byte each, in the kernel's devfn format.
    below: Vec<u8>,
}

impl TopologyPath {
    /// The path to a function; `None` if there is no such function, or it is virtual and has no path.
    #[must_use]
    pub fn of(topology: &Topology, function: Sbdf) -> Option<Self> {
        let found = topology.get(function)?;
        if found.is_virtual() {
            return None;
        }
        let mut way: Vec<Sbdf> = topology.with_ancestors(function).collect();
        let root = way.pop()?;
        way.reverse();
        Some(Self {
            root,
            below: way.into_iter().map(Sbdf::devfn).collect(),
        })
    }

    /// The function at this path.
    #[must_use]
    pub fn find(&self, topology: &Topology) -> Option<Sbdf> {
        let mut at = topology.get(self.root)?.sbdf();
        if topology.upstream(at).is_some() {
            return None;
        }
        for devfn in &self.below {
            at = topology
                .children(at)
                .find(|child| child.sbdf().devfn() == *devfn && !child.is_virtual())?
                .sbdf();
        }
        Some(at)
    }

    /// Whether the path leads through a bridge at another path.
    pub(super) fn is_below(&self, other: &Self) -> bool {
        self != other && self.root == other.root && self.below.starts_with(&other.below)
    }

    /// The function on the root bus.
    pub(super) fn root(&self) -> Sbdf {
        self.root
    }

    /// Device and function numbers below each bridge, top down.
    pub(super) fn below(&self) -> &[u8] {
        &self.below
    }
}

impl fmt::Display for TopologyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.root)?;
        self.below
            .iter()
            .try_for_each(|devfn| write!(f, "/{:02x}.{}", devfn >> 3, devfn & 7))
    }
}

/// Parse error of a topology path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{part}` in `{text}`: expected a topology path, such as 0000:00:04.0/00.0/01.0")]
pub struct TopologyPathError {
    text: String,
    part: String,
}

impl FromStr for TopologyPath {
    type Err = TopologyPathError;

    fn from_str(text: &str) -> Result<Self, TopologyPathError> {
        let bad = |part: &str| TopologyPathError {
            text: text.to_owned(),
            part: part.to_owned(),
        };
        let mut parts = text.split('/');
        let first = parts.next().unwrap_or_default();
        let root = first.parse().map_err(|_| bad(first))?;
        let number = |part: &str| -> Option<u8> {
            let (device, function) = part.split_once('.')?;
            let device = u8::from_str_radix(device, 16).ok().filter(|d| *d < 32)?;
            let function = function.parse::<u8>().ok().filter(|f| *f < 8)?;
            Some(device << 3 | function)
        };
        let below = parts
            .map(|part| number(part).ok_or_else(|| bad(part)))
            .collect::<Result<_, _>>()?;
        Ok(Self { root, below })
    }
}

impl TryFrom<String> for TopologyPath {
    type Error = TopologyPathError;

    fn try_from(text: String) -> Result<Self, TopologyPathError> {
        text.parse()
    }
}

impl From<TopologyPath> for String {
    fn from(topology_path: TopologyPath) -> Self {
        topology_path.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWITCH: &str = include_str!("../../../../resources/topologies/switch-four-nvme.json");

    #[test]
    fn a_path_resolves_after_bus_numbers_changed() {
        let before = Topology::from_fixture(SWITCH).unwrap();
        let moved = SWITCH.replace("0000:03:00.0", "0000:17:00.0");
        let after = Topology::from_fixture(&moved).unwrap();
        let drive: Sbdf = "03:00.0".parse().unwrap();
        let topology_path = TopologyPath::of(&before, drive).unwrap();
        assert_eq!(topology_path.to_string(), "0000:00:04.0/00.0/00.0/00.0");
        assert_eq!(topology_path.find(&before), Some(drive));
        assert_eq!(topology_path.find(&after), "17:00.0".parse().ok());
        let elsewhere: TopologyPath = "0000:00:04.0/00.0/00.0/01.0".parse().unwrap();
        assert_eq!(elsewhere.find(&before), None);
    }

    #[test]
    fn text_round_trips() {
        for text in ["0000:00:04.0", "0000:00:04.0/00.0/1f.7"] {
            assert_eq!(text.parse::<TopologyPath>().unwrap().to_string(), text);
        }
        for (text, part) in [
            ("", ""),
            ("x/00.0", "x"),
            ("0000:00:04.0/", ""),
            ("0000:00:04.0/20.0", "20.0"),
            ("0000:00:04.0/00.8", "00.8"),
        ] {
            assert_eq!(
                text.parse::<TopologyPath>().unwrap_err().part,
                part,
                "{text}"
            );
        }
    }
}
