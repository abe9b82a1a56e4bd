//! Settings of a lab host's functions.

use anyhow::Result;

use crate::host::Lab;

impl Lab {
    /// Driver, `driver_override`, power and ACS of every function, and whether drivers are probed automatically: the
    /// settings that a program that changes a host must restore or report. Groups are not included.
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
