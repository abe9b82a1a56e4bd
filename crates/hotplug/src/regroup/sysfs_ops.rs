//! Operations on the functions of a host.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use iommu_group::{AcsBits, EgressVector, Host as HostFacts, Sbdf, Topology};

use super::host::{Host, HostError};
use super::identity::{HEADER, Identity};
use super::topology_path::TopologyPath;
use super::usage;

/// Power management of a function: `auto` or `on`.
pub(super) const POWER: &str = "power/control";

/// Number of virtual functions of a physical function. Removing the function resets it, and so does unbinding some
/// drivers (linux 7.2 drivers/vfio/pci/vfio_pci_core.c: `vfio_pci_core_unregister_device()`).
pub(super) const VIRTUAL: &str = "sriov_numvfs";

/// Attributes that an administrator may have set and that are lost on removal. Autoprobe of virtual functions is
/// restored before their number.
pub(super) const KEPT: [&str; 5] = [
    POWER,
    "d3cold_allowed",
    RESETS,
    "sriov_drivers_autoprobe",
    VIRTUAL,
];

/// Reset methods that the kernel may use for a function. The kernel determines them when it finds the function, and it
/// may find fewer if other functions are on the bus already (linux 7.2 drivers/pci/pci.c: `pci_parent_bus_reset()`).
pub(super) const RESETS: &str = "reset_method";

const OVERRIDE: &str = "driver_override";

const RESET_BELOW: &str = "reset_subordinate";

/// Operations on the functions of a host.
#[derive(Clone, Copy)]
pub(super) struct SysfsOps<'h> {
    host: &'h dyn Host,
}

impl<'h> SysfsOps<'h> {
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

    /// The boot ID.
    pub(super) fn boot_id(self) -> Result<String, HostError> {
        let path = self.host.proc().join("sys/kernel/random/boot_id");
        let text = fs::read_to_string(&path).map_err(HostError::io("read", &path))?;
        Ok(text.trim().to_owned())
    }

    /// The current address of the function with the recorded address `function`. A different device in its place is an
    /// error.
    pub(super) fn locate(
        self,
        function: Sbdf,
        topology_path: &TopologyPath,
        identity: Identity,
    ) -> Result<Sbdf, HostError> {
        let at = self
            .find(topology_path)
            .ok_or(HostError::Gone { function })?;
        let mut header = [0; HEADER];
        self.read_config(at, 0, &mut header)?;
        let found = Identity::read(&header, &self.dir(at));
        if found != Some(identity) {
            return Err(HostError::Replaced { function });
        }
        Ok(at)
    }

    /// The function at a topology path now.
    fn find(self, topology_path: &TopologyPath) -> Option<Sbdf> {
        let mut at = topology_path.root();
        let dir = fs::read_link(self.dir(at)).ok()?;
        let above = dir.parent()?.file_name()?.to_str()?;
        if above.parse::<Sbdf>().is_ok() {
            // The root bus is gone.
            return None;
        }
        for devfn in topology_path.below() {
            at = self.children(at).find(|child| child.devfn() == *devfn)?;
        }
        Some(at)
    }

    /// The functions on the bus below a bridge, without virtual functions: those may have addresses on the next bus.
    fn children(self, bridge: Sbdf) -> impl Iterator<Item = Sbdf> {
        let entries = fs::read_dir(self.dir(bridge)).into_iter().flatten();
        entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<Sbdf>().ok())
            .filter(move |child| !self.is_virtual(*child))
    }

    /// All functions below a bridge, without virtual functions.
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

    /// An attribute without the trailing newline; `None` if the function does not have it.
    pub(super) fn attribute(self, function: Sbdf, name: &str) -> Result<Option<String>, HostError> {
        let path = self.dir(function).join(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim_end().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(HostError::io("read", &path)(error)),
        }
    }

    /// Sets an attribute to a value, as far as possible.
    pub(super) fn set_attribute(
        self,
        function: Sbdf,
        name: &str,
        value: &str,
    ) -> Result<(), HostError> {
        // A function without the attribute cannot have lost its value.
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

    /// The `driver_override`; empty if there is none.
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

    /// Unbinds the driver. Fails if a process has the function open, because the kernel would wait for it.
    pub(super) fn unbind(self, function: Sbdf) -> Result<(), HostError> {
        self.ensure_unused(function)?;
        self.unbind_now(function)
    }

    /// Fails if a driver is bound and a process has the function or its group open.
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

    /// Unbinds the driver, even if a process has the function's group open.
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

    /// Binds a driver, and sets `driver_override` to its final value.
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

    /// Whether the kernel binds drivers to functions that it finds. `true` if the kernel has no such switch.
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

    /// Removes a function and everything below it from the kernel.
    pub(super) fn remove(self, function: Sbdf) -> Result<(), HostError> {
        let path = self.dir(function).join("remove");
        self.write("write to", &path, "1")
    }

    /// Sets the reset methods of a function; it must have had all of them.
    pub(super) fn set_resets(self, function: Sbdf, methods: &str) -> Result<(), HostError> {
        let path = self.dir(function).join(RESETS);
        self.write("write to", &path, &format!("{methods}\n"))
    }

    /// Resets a function with the first method of its `reset_method`.
    pub(super) fn reset(self, function: Sbdf) -> Result<(), HostError> {
        let path = self.dir(function).join("reset");
        self.write("write to", &path, "1")
    }

    /// Whether the kernel can reset the bus below a port on request (since linux 6.13).
    pub(super) fn can_reset_below(self, port: Sbdf) -> bool {
        self.dir(port).join(RESET_BELOW).exists()
    }

    /// Resets the bus below a port.
    pub(super) fn reset_below(self, port: Sbdf) -> Result<(), HostError> {
        let path = self.dir(port).join(RESET_BELOW);
        self.write("write to", &path, "1")
    }

    /// Scans the bus below a bridge and all buses below that.
    pub(super) fn rescan_below(self, bridge: Sbdf) -> Result<(), HostError> {
        let dir = self.dir(bridge);
        let children = fs::read_dir(&dir)
            .map_err(HostError::io("list", &dir))?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<Sbdf>().ok());
        // If the bus is empty, the kernel would also resize the bridge windows. Scanning the bus that the bridge is on
        // avoids that (linux 7.2 drivers/pci/pci-sysfs.c: `bus_rescan_store()`, `dev_rescan_store()`).
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
        Ok(AcsBits::from_bits_retain(u16::from_le_bytes(word)))
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
            return Err(HostError::acs_control(port, bits, found));
        }
        Ok(())
    }

    /// Reads the dwords of an egress control vector.
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

/// The part of an attribute's value that the function supports; `now` is its current value.
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
    fn missing_reset_methods_are_left_out() {
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
