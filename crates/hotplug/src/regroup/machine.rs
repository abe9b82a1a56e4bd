//! A host in terms of functions: what is read of them, and what is done to them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use iommu_group::{AcsBits, EgressVector, Host as HostFacts, Sbdf, Topology};

use super::host::{Host, HostError};
use super::identity::{HEADER, Identity};
use super::place::Place;
use super::usage;

/// Whether a function may sleep: `auto` or `on`.
pub(super) const POWER: &str = "power/control";

/// How many virtual functions there are of a physical one. A removal destroys them, and so do drivers when they let go
/// (linux 7.2 drivers/vfio/pci/vfio_pci_core.c: `vfio_pci_core_unregister_device()`).
pub(super) const VIRTUAL: &str = "sriov_numvfs";

/// Attributes of a function that somebody may have set and that a removal forgets. Whether drivers take virtual
/// functions is set before there are any again.
pub(super) const KEPT: [&str; 5] = [
    POWER,
    "d3cold_allowed",
    RESETS,
    "sriov_drivers_autoprobe",
    VIRTUAL,
];

/// The ways to reset a function that the kernel may use. Which there are it finds out whenever it finds the function,
/// and it may find fewer when others are there already (linux 7.2 drivers/pci/pci.c: `pci_parent_bus_reset()`).
pub(super) const RESETS: &str = "reset_method";

const OVERRIDE: &str = "driver_override";

const RESET_BELOW: &str = "reset_subordinate";

/// A host in terms of functions.
#[derive(Clone, Copy)]
pub(super) struct Machine<'h> {
    host: &'h dyn Host,
}

impl<'h> Machine<'h> {
    pub(super) fn new(host: &'h dyn Host) -> Self {
        Self { host }
    }

    pub(super) fn host(self) -> &'h dyn Host {
        self.host
    }

    pub(super) fn scan(self) -> Result<Topology, HostError> {
        let facts = HostFacts::read(self.host.proc(), self.host.sysfs());
        Ok(Topology::scan(self.host.sysfs(), facts)?)
    }

    /// What is different after each start of the machine.
    pub(super) fn boot_id(self) -> Result<String, HostError> {
        let path = self.host.proc().join("sys/kernel/random/boot_id");
        let text = fs::read_to_string(&path).map_err(HostError::io("read", &path))?;
        Ok(text.trim().to_owned())
    }

    /// Where a function is now that was called `function`. Another device in its place is not it.
    pub(super) fn locate(
        self,
        function: Sbdf,
        place: &Place,
        identity: Identity,
    ) -> Result<Sbdf, HostError> {
        let at = self.find(place).ok_or(HostError::Gone { function })?;
        let mut header = [0; HEADER];
        self.read_config(at, 0, &mut header)?;
        let found = Identity::read(&header, &self.dir(at));
        if found != Some(identity) {
            return Err(HostError::Replaced { function });
        }
        Ok(at)
    }

    /// The function at a place now.
    fn find(self, place: &Place) -> Option<Sbdf> {
        let mut at = place.root();
        let dir = fs::read_link(self.dir(at)).ok()?;
        let above = dir.parent()?.file_name()?.to_str()?;
        if above.parse::<Sbdf>().is_ok() {
            // Not a root bus any more.
            return None;
        }
        for devfn in place.below() {
            at = self.children(at).find(|child| child.devfn() == *devfn)?;
        }
        Some(at)
    }

    /// The functions on the bus below a bridge, without virtual ones: those may have the number of a real one on the
    /// next bus.
    fn children(self, bridge: Sbdf) -> impl Iterator<Item = Sbdf> {
        let entries = fs::read_dir(self.dir(bridge)).into_iter().flatten();
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<Sbdf>().ok())
            .filter(move |child| !self.is_virtual(*child))
    }

    /// All functions below a bridge, without virtual ones.
    pub(super) fn below(self, bridge: Sbdf) -> Vec<Sbdf> {
        let mut found: Vec<Sbdf> = self.children(bridge).collect();
        let mut next = 0;
        while let Some(at) = found.get(next).copied() {
            found.extend(self.children(at));
            next += 1;
        }
        found
    }

    pub(super) fn is_virtual(self, function: Sbdf) -> bool {
        fs::symlink_metadata(self.dir(function).join("physfn")).is_ok()
    }

    fn dir(self, function: Sbdf) -> PathBuf {
        self.host.sysfs().device_dir(function)
    }

    fn bus(self, file: &str) -> PathBuf {
        self.host.sysfs().root().join("bus/pci").join(file)
    }

    fn write(self, verb: &'static str, path: &Path, text: &str) -> Result<(), HostError> {
        let result = self.host.write(path, 0, text.as_bytes());
        result.map_err(HostError::io(verb, path))
    }

    pub(super) fn driver(self, function: Sbdf) -> Result<Option<String>, HostError> {
        Ok(self.host.sysfs().driver_of(function)?)
    }

    /// An attribute without its line end; `None` if the function has none of that name.
    pub(super) fn attribute(self, function: Sbdf, name: &str) -> Result<Option<String>, HostError> {
        let path = self.dir(function).join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim_end().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(HostError::io("read", &path)(error)),
        }
    }

    /// Sees to it that an attribute has a value, as far as it can.
    pub(super) fn set_attribute(
        self,
        function: Sbdf,
        name: &str,
        value: &str,
    ) -> Result<(), HostError> {
        // What has no such attribute cannot have lost it.
        let Some(now) = self.attribute(function, name)? else {
            return Ok(());
        };
        let value = possible(name, value, &now);
        if now == value {
            return Ok(());
        }
        let path = self.dir(function).join(name);
        self.write("write to", &path, &format!("{value}\n"))
    }

    /// The only driver that may take the function; empty if any may.
    pub(super) fn driver_override(self, function: Sbdf) -> Result<String, HostError> {
        let text = self.attribute(function, OVERRIDE)?.unwrap_or_default();
        Ok(if text == "(null)" {
            String::new()
        } else {
            text
        })
    }

    pub(super) fn set_driver_override(self, function: Sbdf, driver: &str) -> Result<(), HostError> {
        if self.driver_override(function)? == driver {
            return Ok(());
        }
        let path = self.dir(function).join(OVERRIDE);
        self.write("write to", &path, &format!("{driver}\n"))
    }

    /// Sees to it that no driver is bound. Fails if a process has the function open: the kernel would wait for it.
    pub(super) fn unbind(self, function: Sbdf) -> Result<(), HostError> {
        self.ensure_unused(function)?;
        self.unbind_now(function)
    }

    /// Fails if a driver is bound and a process has the function, or its group, open.
    pub(super) fn ensure_unused(self, function: Sbdf) -> Result<(), HostError> {
        if self.driver(function)?.is_none() {
            return Ok(());
        }
        match usage::vfio_user(self.host, function)? {
            None => Ok(()),
            Some(user) => Err(HostError::InUse {
                function,
                user: user.to_string(),
            }),
        }
    }

    /// The same, whoever has its group open.
    pub(super) fn unbind_now(self, function: Sbdf) -> Result<(), HostError> {
        if self.driver(function)?.is_none() {
            return Ok(());
        }
        let path = self.dir(function).join("driver/unbind");
        self.write("write to", &path, &function.to_string())?;
        match self.driver(function)? {
            None => Ok(()),
            found => Err(HostError::NotBound {
                function,
                wanted: "no driver".to_owned(),
                found,
            }),
        }
    }

    /// Sees to it that a driver is bound, and that the override is as it shall be then.
    pub(super) fn bind(
        self,
        function: Sbdf,
        driver: &str,
        then_override: &str,
    ) -> Result<(), HostError> {
        if self.driver(function)?.as_deref() != Some(driver) {
            self.unbind(function)?;
            self.set_driver_override(function, driver)?;
            let probe = self.bus("drivers_probe");
            self.write("write to", &probe, &function.to_string())?;
            let found = self.driver(function)?;
            if found.as_deref() != Some(driver) {
                return Err(HostError::NotBound {
                    function,
                    wanted: driver.to_owned(),
                    found,
                });
            }
        }
        self.set_driver_override(function, then_override)
    }

    /// Whether functions that are found are given to drivers at once. `true` where the kernel has no such switch.
    pub(super) fn autoprobe(self) -> Result<bool, HostError> {
        let path = self.bus("drivers_autoprobe");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim() != "0"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(HostError::io("read", &path)(error)),
        }
    }

    pub(super) fn set_autoprobe(self, on: bool) -> Result<(), HostError> {
        if self.autoprobe()? == on {
            return Ok(());
        }
        let path = self.bus("drivers_autoprobe");
        self.write("write to", &path, if on { "1" } else { "0" })
    }

    /// Removes a function and all below it from the kernel.
    pub(super) fn remove(self, function: Sbdf) -> Result<(), HostError> {
        let path = self.dir(function).join("remove");
        self.write("write to", &path, "1")
    }

    /// Sets the ways in which a function may be reset, all of which it has had.
    pub(super) fn set_resets(self, function: Sbdf, methods: &str) -> Result<(), HostError> {
        let path = self.dir(function).join(RESETS);
        self.write("write to", &path, &format!("{methods}\n"))
    }

    /// Resets a function by the first of its `reset_method`.
    pub(super) fn reset(self, function: Sbdf) -> Result<(), HostError> {
        let path = self.dir(function).join("reset");
        self.write("write to", &path, "1")
    }

    /// Whether the kernel resets the bus below a port when it is asked to (since linux 6.13).
    pub(super) fn can_reset_below(self, port: Sbdf) -> bool {
        self.dir(port).join(RESET_BELOW).exists()
    }

    /// Resets the bus below a port.
    pub(super) fn reset_below(self, port: Sbdf) -> Result<(), HostError> {
        let path = self.dir(port).join(RESET_BELOW);
        self.write("write to", &path, "1")
    }

    /// Scans the bus below a bridge and all below that.
    pub(super) fn rescan_below(self, bridge: Sbdf) -> Result<(), HostError> {
        let dir = self.dir(bridge);
        let children = fs::read_dir(&dir)
            .map_err(HostError::io("list", &dir))?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<Sbdf>().ok());
        // With nothing on the bus the kernel would also size the bridge's windows anew; a scan of the bus that the
        // bridge is on does not (linux 7.2 drivers/pci/pci-sysfs.c: `bus_rescan_store()`, `dev_rescan_store()`).
        let own = if children.count() == 0 {
            None
        } else {
            self.secondary_bus_dir(&dir)
        };
        let path = own.unwrap_or(dir).join("rescan");
        self.write("write to", &path, "1")
    }

    fn secondary_bus_dir(self, bridge: &Path) -> Option<PathBuf> {
        let mut buses = fs::read_dir(bridge.join("pci_bus")).ok()?;
        Some(buses.next()?.ok()?.path())
    }

    pub(super) fn acs_control(self, port: Sbdf, at: u16) -> Result<AcsBits, HostError> {
        let mut word = [0; 2];
        self.read_config(port, at, &mut word)?;
        Ok(AcsBits::from_bits(u16::from_le_bytes(word)))
    }

    /// Writes an ACS control register and reads it back.
    pub(super) fn set_acs_control(
        self,
        port: Sbdf,
        at: u16,
        bits: AcsBits,
    ) -> Result<(), HostError> {
        if self.acs_control(port, at)? == bits {
            return Ok(());
        }
        self.write_config(port, at, &bits.bits().to_le_bytes())?;
        let found = self.acs_control(port, at)?;
        if found != bits {
            return Err(HostError::Register {
                function: port,
                register: "ACS control",
                expected: format!("{bits:04x}"),
                found: format!("{found:04x}"),
            });
        }
        Ok(())
    }

    /// The words of an egress control vector.
    pub(super) fn egress(
        self,
        port: Sbdf,
        at: u16,
        like: &EgressVector,
    ) -> Result<Vec<u32>, HostError> {
        let mut words = Vec::new();
        let mut offset = at;
        for _ in like.words() {
            let mut bytes = [0; 4];
            self.read_config(port, offset, &mut bytes)?;
            words.push(u32::from_le_bytes(bytes));
            offset = offset.saturating_add(4);
        }
        Ok(words)
    }

    /// Writes an egress control vector and reads it back.
    pub(super) fn set_egress(
        self,
        port: Sbdf,
        at: u16,
        vector: &EgressVector,
    ) -> Result<(), HostError> {
        let mut offset = at;
        for word in vector.words() {
            self.write_config(port, offset, &word.to_le_bytes())?;
            offset = offset.saturating_add(4);
        }
        let found = self.egress(port, at, vector)?;
        let expected: Vec<u32> = vector.words().collect();
        if found != expected {
            return Err(HostError::Register {
                function: port,
                register: "egress control vector",
                expected: format!("{expected:08x?}"),
                found: format!("{found:08x?}"),
            });
        }
        Ok(())
    }

    fn read_config(self, function: Sbdf, at: u16, bytes: &mut [u8]) -> Result<(), HostError> {
        let path = self.dir(function).join("config");
        let read = File::open(&path).and_then(|file| file.read_exact_at(bytes, u64::from(at)));
        read.map_err(HostError::io("read", &path))
    }

    fn write_config(self, function: Sbdf, at: u16, bytes: &[u8]) -> Result<(), HostError> {
        let path = self.dir(function).join("config");
        let written = self.host.write(&path, u64::from(at), bytes);
        written.map_err(HostError::io("write to", &path))
    }
}

/// What of the value of an attribute can be had, where `now` is what it is without it.
pub(super) fn possible(name: &str, value: &str, now: &str) -> String {
    if name != RESETS || value.is_empty() {
        return value.to_owned();
    }
    let there: Vec<&str> = now.split_ascii_whitespace().collect();
    let words = value.split_ascii_whitespace();
    let words: Vec<&str> = words.filter(|word| there.contains(word)).collect();
    if words.is_empty() {
        now.to_owned()
    } else {
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_reset_that_are_gone_are_not_asked_for() {
        for (was, now, wanted) in [
            ("flr bus", "flr", "flr"),
            ("flr", "flr bus", "flr"),
            ("bus flr", "flr bus", "bus flr"),
            ("bus", "flr", "flr"),
            ("", "flr", ""),
        ] {
            assert_eq!(possible(RESETS, was, now), wanted, "{was} of {now}");
        }
        assert_eq!(possible(POWER, "auto", "on"), "auto");
    }
}
