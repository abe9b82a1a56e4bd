//! The two VMMs: how each is started, and told to add and remove a drive.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{CMDLINE, GUEST, GUEST_INITRAMFS, GUEST_KERNEL, Lab, Running, Vm};

/// Directory in the lab host.
const DIR: &str = "/tmp/bench";

/// What the guest does: it says when a drive is there, and when it is there no more.
const GUEST_WORDS: &str = "modprobe nvme ; guest-probe watch /dev/nvme0n1";

/// A VMM, and how it is spoken to.
pub(super) enum Vmm {
    /// p2p-vmm, over its REST API.
    Ours,
    /// QEMU, started by these words, over QMP.
    Qemu(Vec<String>),
}

impl Vmm {
    fn argv(&self) -> Vec<String> {
        match self {
            Self::Ours => {
                let mut argv = Vm::new(GUEST_WORDS).argv();
                argv.extend(["--api-socket".to_owned(), format!("{DIR}/api")]);
                argv
            }
            Self::Qemu(program) => {
                let mut argv = program.clone();
                let cmdline = format!("{CMDLINE} -- run {GUEST_WORDS}");
                let words = [
                    "-machine",
                    "q35",
                    "-accel",
                    "kvm",
                    "-cpu",
                    "host",
                    "-smp",
                    "1",
                    "-m",
                    "512",
                    "-nodefaults",
                    "-no-user-config",
                    "-display",
                    "none",
                    "-nic",
                    "none",
                    "-serial",
                    "stdio",
                    "-chardev",
                    "pipe,id=qmp,path=/tmp/bench/qmp",
                    "-mon",
                    "chardev=qmp,mode=control",
                    "-device",
                    "pcie-root-port,id=rootport,chassis=1,mem-reserve=4M,pref64-reserve=64M",
                    "-kernel",
                    GUEST_KERNEL,
                    "-initrd",
                    GUEST_INITRAMFS,
                    "-append",
                    &cmdline,
                ];
                argv.extend(words.map(str::to_owned));
                argv
            }
        }
    }

    /// A line of shell that adds the drive.
    pub(super) fn add(&self, bdf: &str) -> String {
        match self {
            Self::Ours => format!(
                r#"vm-call {DIR}/api PUT vm.add-device '{{"id": "drive", "path": "/sys/bus/pci/devices/{bdf}", "p2p": true}}'"#
            ),
            Self::Qemu(_) => qmp(&format!(
                r#"{{"execute": "device_add", "arguments": {{"driver": "vfio-pci", "host": "{bdf}", "bus": "rootport", "id": "drive"}}}}"#
            )),
        }
    }

    /// A line of shell that removes it.
    pub(super) fn remove(&self) -> String {
        match self {
            Self::Ours => format!(
                r#"vm-call {DIR}/api PUT vm.remove-device '{{"id": "drive", "timeout_ms": 100000}}'"#
            ),
            Self::Qemu(_) => qmp(r#"{"execute": "device_del", "arguments": {"id": "drive"}}"#),
        }
    }
}

fn qmp(command: &str) -> String {
    format!("echo '{command}' > {DIR}/qmp.in")
}

/// A VM of one of them.
pub(super) struct Guest<'lab> {
    vmm: Running<'lab>,
}

impl<'lab> Guest<'lab> {
    /// Boots a guest that has no drive.
    pub(super) fn boot(lab: &'lab Lab, vmm: &Vmm) -> Result<Self> {
        let argv: Vec<String> = vmm.argv().iter().map(|word| format!("'{word}'")).collect();
        // Whoever opens a pipe for writing waits for a reader, so each has both.
        lab.sh(&format!(
            "rm -rf {DIR} && mkdir {DIR} && mkfifo {DIR}/qmp.in {DIR}/qmp.out"
        ))?;
        let script = format!(
            "exec 4<>{DIR}/qmp.in 5<>{DIR}/qmp.out; cat <&5 >{DIR}/qmp.log & exec {} </dev/null 4>&- 5>&-",
            argv.join(" ")
        );
        let vmm_process = lab
            .command(["sh", "-c", &script])
            .deadline(GUEST * 4)
            .spawn()?;
        let mut guest = Self { vmm: vmm_process };
        guest.wait_for("guest: up", GUEST)?;
        if matches!(vmm, Vmm::Qemu(_)) {
            lab.sh(&qmp(r#"{"execute": "qmp_capabilities"}"#))?;
        }
        Ok(guest)
    }

    /// Waits for a line on the guest's console.
    pub(super) fn wait_for(&mut self, line: &str, limit: Duration) -> Result<()> {
        self.vmm.wait_for(line, limit).map(drop)
    }

    /// Ends it, and waits until it has ended.
    pub(super) fn end(self) -> Result<()> {
        const TERM: i32 = 15;
        self.vmm.signal(TERM)?;
        let output = self.vmm.wait()?;
        ensure!(
            !output.truncated,
            "the guest's console was too much to keep"
        );
        Ok(())
    }
}
