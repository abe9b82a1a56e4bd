//! Differences between a host and its snapshot.

use iommu_group::{Groups, Sbdf, Topology};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

use super::action::list;
use super::host::HostError;
use super::snapshot::{FunctionState, Snapshot};
use super::sysfs_ops::{SysfsOps, possible};
use super::vmm::{Vmm, VmmError};

/// A difference between the host and its snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "what", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Difference {
    /// A function is gone.
    #[error("{function} is gone")]
    Gone {
        /// The function.
        function: Sbdf,
    },
    /// A different device is in the place of a function.
    #[error("{function} was replaced by another device")]
    Replaced {
        /// The function.
        function: Sbdf,
    },
    /// A function cannot be read.
    #[error("{function} cannot be compared: {error}")]
    Unreadable {
        /// The function.
        function: Sbdf,
        /// The error.
        error: String,
    },
    /// The bus number of a function changed.
    #[error("{function} has the address {now} now")]
    Renumbered {
        /// The recorded address.
        function: Sbdf,
        /// The current address.
        now: Sbdf,
    },
    /// The group of a function changed.
    #[error("the group of {function} is {}, and was {}", members(is), members(was))]
    Group {
        /// The function.
        function: Sbdf,
        /// The recorded members, the function included.
        was: Vec<Sbdf>,
        /// The current members.
        is: Vec<Sbdf>,
    },
    /// The ACS of a port changed.
    #[error("ACS of {function} is {is}, and was {was}")]
    Acs {
        /// The port.
        function: Sbdf,
        /// The recorded control register, and egress control vector if there is one.
        was: String,
        /// The current values.
        is: String,
    },
    /// The driver of a function changed.
    #[error("the driver of {function} is {}, and was {}", name(is), name(was))]
    Driver {
        /// The function.
        function: Sbdf,
        /// The recorded driver.
        was: Option<String>,
        /// The current driver.
        is: Option<String>,
    },
    /// An attribute of a function changed.
    #[error("{name} of {function} is `{is}`, and was `{was}`")]
    Attribute {
        /// The function.
        function: Sbdf,
        /// The name.
        name: String,
        /// The recorded value.
        was: String,
        /// The current value.
        is: String,
    },
    /// `drivers_autoprobe` changed.
    #[error("drivers_autoprobe was {}", u8::from(*was))]
    Autoprobe {
        /// The recorded value.
        was: bool,
    },
    /// A virtual machine does not have its device back.
    #[error("{}", unplugged_text(*function, vm, *alive))]
    Unplugged {
        /// The function.
        function: Sbdf,
        /// The virtual machine.
        vm: String,
        /// Whether the VMM still runs.
        alive: bool,
    },
}

fn members(group: &[Sbdf]) -> String {
    match group {
        [] => "no group".to_owned(),
        group => list(group),
    }
}

fn name(driver: &Option<String>) -> &str {
    driver.as_deref().unwrap_or("none")
}

fn unplugged_text(function: Sbdf, vm: &str, alive: bool) -> String {
    if alive {
        format!("{function} is not back in VM {vm}")
    } else {
        format!("VM {vm} has ended; {function} is not assigned")
    }
}

impl Difference {
    /// Whether the difference cannot be removed.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Unplugged { alive, .. } => !alive,
            _ => matches!(self, Self::Replaced { .. } | Self::Renumbered { .. }),
        }
    }

    /// Whether it is the group of a port, or that of a device which has the same devices in it. Such a group isolates the
    /// same devices, and a rescan cannot always restore it.
    pub(super) fn is_of_ports(&self, snapshot: &Snapshot, now: &Topology) -> bool {
        let Self::Group { function, was, is } = self else {
            return false;
        };
        let is_device = |function: &Sbdf| match snapshot.functions.get(function) {
            Some(state) => !state.bridge,
            None => now.get(*function).is_none_or(|f| !f.is_bridge()),
        };
        let devices = |group: &[Sbdf]| -> BTreeSet<Sbdf> {
            group.iter().copied().filter(is_device).collect()
        };
        !is_device(function) || devices(was) == devices(is)
    }

    /// Whether a device or setting was lost, whatever the plan.
    pub(super) fn is_loss(&self) -> bool {
        matches!(
            self,
            Self::Gone { .. } | Self::Replaced { .. } | Self::Unplugged { .. }
        )
    }
}

/// Whether a device is there that its virtual machine, which runs or may run, does not have back.
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

/// All differences between a host and its snapshot.
pub(super) fn differences(
    snapshot: &Snapshot,
    ops: SysfsOps<'_>,
    now: &Topology,
    vmms: &[&dyn Vmm],
) -> Result<Vec<Difference>, HostError> {
    let mut found = Vec::new();
    let mut places = BTreeMap::new();
    for (function, was) in &snapshot.functions {
        let function = *function;
        match was.find(now) {
            Some(at) => {
                places.insert(function, at);
            }
            None if was.topology_path.find(now).is_some() => {
                found.push(Difference::Replaced { function })
            }
            None => found.push(Difference::Gone { function }),
        }
    }
    found.extend(group_differences(snapshot, now));
    for (function, at) in places {
        let Some(was) = snapshot.functions.get(&function) else {
            continue;
        };
        if at != function {
            found.push(Difference::Renumbered { function, now: at });
        }
        let differences = register_differences(ops, function, at, was).and_then(|acs| {
            let driver = driver_differences(ops, function, at, was)?;
            Ok(acs.into_iter().chain(driver).collect())
        });
        // A function that vanished during the scan must not stop the restoration of the others.
        found.extend(differences.unwrap_or_else(|error| {
            vec![Difference::Unreadable {
                function,
                error: error.to_string(),
            }]
        }));
    }
    if ops.autoprobe()? != snapshot.autoprobe {
        found.push(Difference::Autoprobe {
            was: snapshot.autoprobe,
        });
    }
    found.extend(unplugged(snapshot, vmms));
    Ok(found)
}

fn group_differences(snapshot: &Snapshot, now: &Topology) -> Vec<Difference> {
    let then = snapshot.renamed(now);
    let old = |function: Sbdf| then.get(&function).copied().unwrap_or(function);
    let partition = Groups::found(now);
    let mut found = Vec::new();
    for group in snapshot.groups_with_devices() {
        for function in group {
            let Some(was) = snapshot.functions.get(function) else {
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
            // Functions that are gone are reported as gone.
            let there: BTreeSet<Sbdf> = group
                .iter()
                .copied()
                .filter(|member| match snapshot.functions.get(member) {
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
    ops: SysfsOps<'_>,
    function: Sbdf,
    at: Sbdf,
    was: &FunctionState,
) -> Result<Option<Difference>, HostError> {
    let Some(acs) = was
        .acs
        .filter(|_| was.involvement.removed || was.involvement.awake)
    else {
        return Ok(None);
    };
    let words =
        |vector: Vec<u32>| -> String { vector.iter().map(|word| format!(" {word:08x}")).collect() };
    let mut expected = format!("{:04x}", acs.control);
    let mut found = format!("{:04x}", ops.acs_control(at, acs.at)?);
    if let Some(vector) = &acs.egress {
        expected.push_str(&words(vector.words().collect()));
        found.push_str(&words(ops.egress(at, acs.vector_at, vector)?));
    }
    Ok((expected != found).then_some(Difference::Acs {
        function,
        was: expected,
        is: found,
    }))
}

fn driver_differences(
    ops: SysfsOps<'_>,
    function: Sbdf,
    at: Sbdf,
    was: &FunctionState,
) -> Result<Vec<Difference>, HostError> {
    let mut found = Vec::new();
    if !was.involvement.touched() {
        return Ok(found);
    }
    let is = ops.driver(at)?;
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
        ops.driver_override(at)?,
    );
    for (name, value) in &was.attributes {
        if let Some(is) = ops.attribute(at, name)? {
            attribute(name, &possible(name, value, &is), is);
        }
    }
    Ok(found)
}

/// The recorded devices that virtual machines do not have.
fn unplugged(snapshot: &Snapshot, vmms: &[&dyn Vmm]) -> Vec<Difference> {
    let mut found = Vec::new();
    for device in &snapshot.assigned {
        let vmm = vmms.iter().find(|vmm| vmm.name() == device.vm);
        let has = |devices: Vec<super::vmm::VmDevice>| devices.iter().any(|d| d.id == device.id);
        let (plugged, alive) = match vmm.map(|vmm| vmm.devices()) {
            Some(Err(VmmError::Gone { .. })) => (false, false),
            Some(Ok(devices)) => (has(devices), true),
            // It may run nevertheless.
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
