//! What of a host is not as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use iommu_group::{Groups, Sbdf, Topology};
use serde::{Deserialize, Serialize};

use super::baseline::{Baseline, Was};
use super::host::HostError;
use super::machine::{Machine, possible};
use super::vmm::{Vmm, VmmError};

/// Something that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "what", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Difference {
    /// A function is not there.
    Gone {
        /// The function.
        function: Sbdf,
    },
    /// Another device is where one was.
    Replaced {
        /// The function.
        function: Sbdf,
    },
    /// A function is there and could not be read.
    Unreadable {
        /// The function.
        function: Sbdf,
        /// What happened.
        error: String,
    },
    /// A function has another bus number.
    Renumbered {
        /// Its old address.
        function: Sbdf,
        /// Its address.
        now: Sbdf,
    },
    /// A function is in a group with others.
    Group {
        /// The function.
        function: Sbdf,
        /// Who was in its group, itself included.
        was: Vec<Sbdf>,
        /// Who is.
        is: Vec<Sbdf>,
    },
    /// The ACS of a port is another.
    Acs {
        /// The port.
        function: Sbdf,
        /// What its control register held, and its egress control vector if it has one.
        was: String,
        /// What they hold.
        is: String,
    },
    /// A function has another driver.
    Driver {
        /// The function.
        function: Sbdf,
        /// The driver it had.
        was: Option<String>,
        /// The driver it has.
        is: Option<String>,
    },
    /// An attribute of a function is another.
    Attribute {
        /// The function.
        function: Sbdf,
        /// Its name.
        name: String,
        /// What it was.
        was: String,
        /// What it is.
        is: String,
    },
    /// The kernel does not treat what it finds as it did.
    Autoprobe {
        /// Whether it gave it to drivers.
        was: bool,
    },
    /// A virtual machine does not have a device that it had.
    Unplugged {
        /// The function.
        function: Sbdf,
        /// The virtual machine.
        vm: String,
        /// Whether the virtual machine is there at all.
        alive: bool,
    },
}

fn list(functions: &[Sbdf]) -> String {
    let names: Vec<String> = functions.iter().map(Sbdf::to_string).collect();
    if names.is_empty() {
        "no group".to_owned()
    } else {
        names.join(" ")
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |driver: &Option<String>| driver.clone().unwrap_or_else(|| "none".to_owned());
        match self {
            Self::Gone { function } => write!(f, "{function} is gone"),
            Self::Replaced { function } => write!(f, "another device is where {function} was"),
            Self::Unreadable { function, error } => {
                write!(f, "{function} cannot be compared: {error}")
            }
            Self::Renumbered { function, now } => write!(f, "{function} is {now} now"),
            Self::Group { function, was, is } => write!(
                f,
                "the group of {function} is {}, and was {}",
                list(is),
                list(was)
            ),
            Self::Acs { function, was, is } => {
                write!(f, "ACS of {function} is {is}, and was {was}")
            }
            Self::Driver { function, was, is } => write!(
                f,
                "the driver of {function} is {}, and was {}",
                name(is),
                name(was)
            ),
            Self::Attribute {
                function,
                name,
                was,
                is,
            } => write!(f, "{name} of {function} is `{is}`, and was `{was}`"),
            Self::Autoprobe { was } => {
                write!(f, "drivers_autoprobe was {}", u8::from(*was))
            }
            Self::Unplugged {
                function,
                vm,
                alive: true,
            } => write!(f, "{vm} does not have {function} back"),
            Self::Unplugged { function, vm, .. } => {
                write!(f, "{vm} is gone; {function} is free")
            }
        }
    }
}

impl Difference {
    /// Whether nothing can be done about it.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Replaced { .. } | Self::Renumbered { .. } => true,
            Self::Unplugged { alive, .. } => !alive,
            Self::Gone { .. }
            | Self::Unreadable { .. }
            | Self::Group { .. }
            | Self::Acs { .. }
            | Self::Driver { .. }
            | Self::Attribute { .. }
            | Self::Autoprobe { .. } => false,
        }
    }

    /// Whether somebody has lost something, whatever was planned.
    pub(super) fn is_loss(&self) -> bool {
        match self {
            Self::Gone { .. } | Self::Replaced { .. } | Self::Unplugged { .. } => true,
            Self::Unreadable { .. }
            | Self::Renumbered { .. }
            | Self::Group { .. }
            | Self::Acs { .. }
            | Self::Driver { .. }
            | Self::Attribute { .. }
            | Self::Autoprobe { .. } => false,
        }
    }
}

/// Whether a virtual machine is there, or may be, and so is a device that it does not have back.
pub(super) fn is_waiting(found: &[Difference]) -> bool {
    let lost = |at: Sbdf| {
        let mut found = found.iter();
        found.any(|difference| match difference {
            Difference::Gone { function } | Difference::Replaced { function } => *function == at,
            _ => false,
        })
    };
    let mut waiting = found.iter().filter_map(|difference| match difference {
        Difference::Unplugged {
            function,
            alive: true,
            ..
        } => Some(*function),
        _ => None,
    });
    waiting.any(|function| !lost(function))
}

/// Everything in which a host differs from what it was.
pub(super) fn differences(
    baseline: &Baseline,
    machine: Machine<'_>,
    now: &Topology,
    vmms: &[&dyn Vmm],
) -> Result<Vec<Difference>, HostError> {
    let mut found = Vec::new();
    let mut places = BTreeMap::new();
    for (function, was) in &baseline.functions {
        let function = *function;
        match was.find(now) {
            Some(at) => {
                places.insert(function, at);
            }
            None if was.place.find(now).is_some() => found.push(Difference::Replaced { function }),
            None => found.push(Difference::Gone { function }),
        }
    }
    found.extend(group_differences(baseline, now));
    for (function, at) in places {
        let Some(was) = baseline.functions.get(&function) else {
            continue;
        };
        if at != function {
            found.push(Difference::Renumbered { function, now: at });
        }
        let differences = register_differences(machine, function, at, was).and_then(|acs| {
            let driver = driver_differences(machine, function, at, was)?;
            Ok(acs.into_iter().chain(driver).collect())
        });
        // One that has gone since it was looked at must not keep the others from being restored.
        found.extend(differences.unwrap_or_else(|error| {
            vec![Difference::Unreadable {
                function,
                error: error.to_string(),
            }]
        }));
    }
    if machine.autoprobe()? != baseline.autoprobe {
        found.push(Difference::Autoprobe {
            was: baseline.autoprobe,
        });
    }
    found.extend(unplugged(baseline, vmms));
    Ok(found)
}

fn group_differences(baseline: &Baseline, now: &Topology) -> Vec<Difference> {
    let then = baseline.renamed(now);
    let old = |function: Sbdf| then.get(&function).copied().unwrap_or(function);
    let partition = Groups::found(now);
    let mut found = Vec::new();
    for group in baseline.groups_with_devices() {
        for function in group {
            let Some(was) = baseline.functions.get(function) else {
                continue;
            };
            let Some(at) = was.find(now) else {
                continue;
            };
            let is: BTreeSet<Sbdf> = partition
                .group_of(at)
                .unwrap_or_default()
                .iter()
                .map(|f| old(*f))
                .collect();
            // Those that are gone are told of as such.
            let there: BTreeSet<Sbdf> = group
                .iter()
                .copied()
                .filter(|member| match baseline.functions.get(member) {
                    Some(was) => was.find(now).is_some(),
                    None => now.get(*member).is_some(),
                })
                .collect();
            if is != there {
                found.push(Difference::Group {
                    function: *function,
                    was: there.into_iter().collect(),
                    is: is.into_iter().collect(),
                });
            }
        }
    }
    found
}

fn register_differences(
    machine: Machine<'_>,
    function: Sbdf,
    at: Sbdf,
    was: &Was,
) -> Result<Option<Difference>, HostError> {
    let Some(acs) = was.acs.filter(|_| was.part.removed || was.part.awake) else {
        return Ok(None);
    };
    let words =
        |vector: Vec<u32>| -> String { vector.iter().map(|word| format!(" {word:08x}")).collect() };
    let mut expected = format!("{:04x}", acs.control);
    let mut found = format!("{:04x}", machine.acs_control(at, acs.at)?);
    if let Some(vector) = &acs.egress {
        expected.push_str(&words(vector.words().collect()));
        found.push_str(&words(machine.egress(at, acs.vector_at, vector)?));
    }
    Ok((expected != found).then_some(Difference::Acs {
        function,
        was: expected,
        is: found,
    }))
}

fn driver_differences(
    machine: Machine<'_>,
    function: Sbdf,
    at: Sbdf,
    was: &Was,
) -> Result<Vec<Difference>, HostError> {
    let mut found = Vec::new();
    if !was.part.touched() {
        return Ok(found);
    }
    let is = machine.driver(at)?;
    if is != was.driver {
        found.push(Difference::Driver {
            function,
            was: was.driver.clone(),
            is,
        });
    }
    let mut attribute = |name: &str, was: &str, is: String| {
        if was != is {
            found.push(Difference::Attribute {
                function,
                name: name.to_owned(),
                was: was.to_owned(),
                is,
            });
        }
    };
    attribute(
        "driver_override",
        &was.driver_override,
        machine.driver_override(at)?,
    );
    for (name, value) in &was.attributes {
        if let Some(is) = machine.attribute(at, name)? {
            attribute(name, &possible(name, value, &is), is);
        }
    }
    Ok(found)
}

/// The devices that virtual machines had and have not now.
fn unplugged(baseline: &Baseline, vmms: &[&dyn Vmm]) -> Vec<Difference> {
    let mut found = Vec::new();
    for device in &baseline.assigned {
        let vmm = vmms.iter().find(|vmm| vmm.name() == device.vm);
        let has = |devices: Vec<super::vmm::Assigned>| devices.iter().any(|d| d.id == device.id);
        let (plugged, alive) = match vmm.map(|vmm| vmm.devices()) {
            Some(Err(VmmError::Gone { .. })) => (false, false),
            Some(Ok(devices)) => (has(devices), true),
            // It may be there all the same.
            Some(Err(_)) | None => (false, true),
        };
        if !plugged {
            found.push(Difference::Unplugged {
                function: device.function,
                vm: device.vm.clone(),
                alive,
            });
        }
    }
    found
}
