//! QEMU inside the lab host, as another VMM to compare with.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{Assets, Qemu, ldd, missing_in, paths_in};
use crate::host::Lab;
use crate::progress::Progress;

/// QEMU's directory in the lab host.
const DIR: &str = "/lab/qemu";

/// Firmware that QEMU needs for a kernel started with `-kernel`.
const FIRMWARE: [&str; 3] = ["bios-256k.bin", "kvmvapic.bin", "linuxboot_dma.bin"];

impl Lab {
    /// Copies the QEMU that runs this lab host into the lab host. Returns the program and arguments that start it
    /// there.
    ///
    /// # Errors
    /// A part of it is missing, or the host is gone.
    pub fn put_qemu(&self) -> Result<Vec<String>> {
        Assets::ensure(&Progress::new())?.qemu.put_into(self)
    }
}

impl Qemu {
    fn put_into(&self, lab: &Lab) -> Result<Vec<String>> {
        let libraries = ldd(&self.program, self.root.as_deref())?;
        let lacking = missing_in(&libraries);
        ensure!(lacking.is_empty(), "QEMU lacks libraries: {lacking:?}");
        let firmware = FIRMWARE.map(|name| self.firmware(name));
        let firmware = firmware.into_iter().collect::<Result<Vec<_>>>()?;
        let program = [self.program.clone()];
        let files = program
            .into_iter()
            .chain(paths_in(&libraries))
            .chain(firmware);
        for file in files {
            let name = file.file_name().context("a file without a name")?;
            lab.put(&file, &format!("{DIR}/{}", name.to_string_lossy()))?;
        }
        let name = self.program.file_name().context("QEMU has no name")?;
        let program = format!("{DIR}/{}", name.to_string_lossy());
        let words = [
            "env",
            &format!("LD_LIBRARY_PATH={DIR}"),
            &program,
            "-L",
            DIR,
        ];
        Ok(words.map(str::to_owned).into())
    }

    fn firmware(&self, name: &str) -> Result<PathBuf> {
        let root = self.root.clone().unwrap_or_else(|| PathBuf::from("/"));
        let dirs = ["usr/share/qemu", "usr/share/seabios"];
        let mut paths = dirs.into_iter().map(|dir| root.join(dir).join(name));
        let found = paths.find(|path| path.is_file());
        found.with_context(|| format!("QEMU's {name} is not there"))
    }
}
