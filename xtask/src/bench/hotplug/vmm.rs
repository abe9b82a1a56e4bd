//! The VMMs: their command lines, and the commands to add and remove a drive.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{CMDLINE, GUEST, GUEST_INITRAMFS, GUEST_KERNEL, Lab, Running, Vm};

/// Path of the release build of p2p-vmm in the lab host.
pub(super) const OURS: &str = "/bin/released-p2p-vmm";

/// Directory in the lab host.
const DIR: &str = "/tmp/bench";

/// The guest's program: it prints a line when a drive appears and when it disappears.
const GUEST_WORDS: &str = "modprobe nvme ; guest-probe watch /dev/nvme0n1";

/// Memory of a guest, in KiB.
pub(super) const MEMORY_KB: u32 = 512 << 10;

/// A VMM and its control interface.
pub(super) enum Vmm {
    /// p2p-vmm, over its REST API.
    Ours,
    /// QEMU with this program and options, over QMP.
    Qemu(Vec<String>),
    /// cloud-hypervisor, over its REST API.
    CloudHypervisor,
}

impl Vmm {
    fn argv(&self, devices: &[&str]) -> Vec<String> {
        let api = ["--api-socket".to_owned(), format!("{DIR}/api")];
        let vm = Vm::new(GUEST_WORDS).platform(None);
        match self {
            Self::Ours => {
                let vm = devices.iter().fold(vm, |vm, bdf| vm.device(bdf));
                let argv = vm.vmm(&[OURS]).argv();
                argv.into_iter().chain(api).collect()
            }
            Self::CloudHypervisor => {
                let vm = devices.iter().fold(vm, |vm, bdf| vm.device(bdf));
                let vm = vm.vmm(&["cloud-hypervisor"]);
                let argv = vm.platform(Some("vfio_p2p_dma=off")).argv();
                // cloud-hypervisor would place the drives' 64-bit BARs above the addresses that the IOMMU translates.
                let one = |word: String| match word.as_str() {
                    "boot=1" => "boot=1,max_phys_bits=39".to_owned(),
                    _ => word,
                };
                argv.into_iter().map(one).chain(api).collect()
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
                for bdf in devices {
                    argv.extend(["-device".to_owned(), format!("vfio-pci,host={bdf}")]);
                }
                argv
            }
        }
    }

    /// The shell command that adds the drive. Only p2p-vmm has the option `p2p`.
    pub(super) fn add(&self, bdf: &str, p2p: bool) -> String {
        match self {
            Self::Ours => format!(
                r#"vm-call {DIR}/api PUT vm.add-device '{{"id": "drive", "path": "/sys/bus/pci/devices/{bdf}", "p2p": {p2p}}}'"#
            ),
            Self::CloudHypervisor => format!(
                r#"vm-call {DIR}/api PUT vm.add-device '{{"id": "drive", "path": "/sys/bus/pci/devices/{bdf}"}}'"#
            ),
            Self::Qemu(_) => qmp(&format!(
                r#"{{"execute": "device_add", "arguments": {{"driver": "vfio-pci", "host": "{bdf}", "bus": "rootport", "id": "drive"}}}}"#
            )),
        }
    }

    /// The shell command that removes the drive.
    pub(super) fn remove(&self) -> String {
        match self {
            Self::Ours => format!(
                r#"vm-call {DIR}/api PUT vm.remove-device '{{"id": "drive", "timeout_ms": 100000}}'"#
            ),
            Self::CloudHypervisor => {
                format!(r#"vm-call {DIR}/api PUT vm.remove-device '{{"id": "drive"}}'"#)
            }
            Self::Qemu(_) => qmp(r#"{"execute": "device_del", "arguments": {"id": "drive"}}"#),
        }
    }
}

fn qmp(command: &str) -> String {
    format!("echo '{command}' > {DIR}/qmp.in")
}

/// A running VM.
pub(super) struct Guest<'lab> {
    lab: &'lab Lab,
    vmm: Running<'lab>,
}

impl<'lab> Guest<'lab> {
    /// Boots a guest with these devices.
    pub(super) fn boot(lab: &'lab Lab, vmm: &Vmm, devices: &[&str]) -> Result<Self> {
        let argv = vmm.argv(devices);
        let argv: Vec<String> = argv.iter().map(|word| format!("'{word}'")).collect();
        // Opening a pipe for writing blocks until there is a reader, so both are opened for reading and writing.
        lab.sh(&format!(
            "rm -rf {DIR} && mkdir {DIR} && mkfifo {DIR}/qmp.in {DIR}/qmp.out"
        ))?;
        let script = format!(
            "exec 4<>{DIR}/qmp.in 5<>{DIR}/qmp.out; cat <&5 >{DIR}/qmp.log & echo $$ > {DIR}/pid; exec {} </dev/null 4>&- 5>&-",
            argv.join(" ")
        );
        let vmm_process = lab
            .command(["sh", "-c", &script])
            .deadline(GUEST * 4)
            .spawn()?;
        let mut guest = Self {
            lab,
            vmm: vmm_process,
        };
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

    /// Resident memory of the VMM including the guest's memory, in KiB.
    pub(super) fn resident_kb(&self) -> Result<u32> {
        let status = self.lab.sh(&format!("cat /proc/$(cat {DIR}/pid)/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number
            .and_then(|number| number.parse().ok())
            .with_context(|| format!("no VmRSS in {status}"))
    }

    /// Ends the VMM and waits for it.
    pub(super) fn end(self) -> Result<()> {
        const TERM: i32 = 15;
        self.vmm.signal(TERM)?;
        let output = self.vmm.wait()?;
        ensure!(
            !output.truncated,
            "the output of the guest's console was truncated"
        );
        Ok(())
    }
}
