//! What a lab host's functions are set to.

use anyhow::Result;

use crate::host::Lab;

impl Lab {
    /// Driver, `driver_override`, power and ACS of every function, and whether drivers take what is found: all that
    /// whoever changes a host must leave as it was or say. Groups are not in it.
    ///
    /// # Errors
    /// The host is gone.
    pub fn settings(&self) -> Result<String> {
        self.sh(
            "cd /sys/bus/pci/devices; for f in *; do \
             echo $f $(basename \"$(readlink $f/driver)\") $(cat $f/driver_override $f/power/control); done; \
             cat /sys/bus/pci/drivers_autoprobe; lspci -vvv | grep -e '^[0-9a-f]' -e ACSCtl",
        )
    }
}
