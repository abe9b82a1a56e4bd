//! A running QEMU.

mod spawn;

use std::env;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::assets::Assets;
use crate::profile::{Machine as ProfileMachine, Profile};

/// Kernel command line of every lab host. `quiet` is set because each character on the serial port costs time under
/// emulation. Mitigations are off because they protect nobody here and cost more. Without `no_timer_check`, a boot on a
/// busy machine sometimes ends in "timer doesn't work through Interrupt-remapped IO-APIC": the emulated timer comes too
/// late. Stall warnings are off because a processor that waits for the machine's processor is not stalled, and the call
/// trace would be taken for a fault.
const CMDLINE: [&str; 9] = [
    "console=ttyS0",
    "quiet",
    "panic=-1",
    "mitigations=off",
    "nowatchdog",
    "random.trust_cpu=on",
    "audit=0",
    "no_timer_check",
    "rcupdate.rcu_cpu_stall_suppress=1",
];

/// Additional argument for a kernel that `LAB_KERNEL` names: its clock rate in kHz. KVM is built into this kernel, so
/// it uses the rate that was measured first, on a machine that may be busy, for all guests. When the kernel has
/// measured the rate more precisely, the clock of each new guest stands still, because it cannot be scaled (linux 7.2
/// arch/x86/kvm/x86.c: set_tsc_khz()). The emulator's clock is that of the machine.
#[allow(
    unsafe_code,
    reason = "the time stamp counter has no other way to be read"
)]
fn clock_of_own_kernel() -> Option<String> {
    use std::arch::x86_64::_rdtsc;
    env::var_os("LAB_KERNEL").filter(|path| !path.is_empty())?;
    // SAFETY: every x86-64 processor has RDTSC, and the instruction changes nothing.
    let ticks = || unsafe { _rdtsc() };
    let (started, first) = (Instant::now(), ticks());
    thread::sleep(CLOCK);
    let (last, elapsed) = (ticks(), started.elapsed());
    let khz = u128::from(last.wrapping_sub(first)) * 1_000_000 / elapsed.as_nanos().max(1);
    Some(format!("tsc_early_khz={khz}"))
}

/// How long the machine's clock is measured.
const CLOCK: Duration = Duration::from_millis(200);

/// All features that can be emulated, except those that advertise fast string operations. The emulator moves strings
/// byte by byte. A kernel that sees these features clears and copies memory with string operations, five times slower
/// than without.
const EMULATED_CPU: &str = "max,-erms,-fsrm,-fzrm,-fsrs";

/// How the lab host's instructions are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accel {
    /// Software emulation, with an emulated SVM. It works everywhere.
    Tcg,
    /// The machine's own KVM, if it supports nesting.
    Kvm,
}

impl Accel {
    /// The accelerator that `LAB_ACCEL` requests, if the machine supports it.
    pub(crate) fn chosen() -> Result<Self> {
        match env::var("LAB_ACCEL").as_deref() {
            Err(_) | Ok("tcg") => Ok(Self::Tcg),
            Ok("kvm") => {
                nested(Path::new("/sys/module")).context("LAB_ACCEL=kvm")?;
                fs::OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open("/dev/kvm")
                    .context("LAB_ACCEL=kvm: cannot open /dev/kvm")?;
                Ok(Self::Kvm)
            }
            Ok(other) => bail!("LAB_ACCEL={other}: it is tcg or kvm"),
        }
    }

    /// QEMU's arguments, with the processors of the profile.
    fn args(self, machine: &ProfileMachine) -> [String; 4] {
        let (accel, cpu, limit) = match self {
            Self::Tcg => ("tcg,thread=multi", EMULATED_CPU, "phys-bits"),
            Self::Kvm => ("kvm", "host", "host-phys-bits-limit"),
        };
        let mut cpu = cpu.to_owned();
        if let Some(bits) = machine.address_bits {
            cpu.push_str(&format!(",{limit}={bits}"));
        }
        if let Some(family) = machine.cpu_family {
            cpu.push_str(&format!(",family={family}"));
        }
        ["-accel", accel, "-cpu", &cpu].map(str::to_owned)
    }
}

/// Checks that one of the KVM modules allows nested KVM.
fn nested(modules: &Path) -> Result<()> {
    for name in ["kvm_intel", "kvm_amd"] {
        let path = modules.join(name).join("parameters/nested");
        if let Ok(value) = fs::read_to_string(&path) {
            ensure!(
                matches!(value.trim(), "Y" | "1"),
                "nested virtualisation is off: {} says {}",
                path.display(),
                value.trim()
            );
            return Ok(());
        }
    }
    bail!("neither kvm_intel nor kvm_amd is loaded here")
}

/// Parameters of a machine's start.
pub(crate) struct Boot<'a> {
    pub(crate) assets: &'a Assets,
    pub(crate) profile: &'a Profile,
    pub(crate) accel: Accel,
    pub(crate) initramfs: &'a Path,
    /// Directory for the serial log, QEMU's messages and the drives.
    pub(crate) dir: &'a Path,
}

/// A QEMU process. It is killed when this is dropped, or when this process ends.
pub(crate) struct Machine {
    child: Child,
    dir: PathBuf,
}

impl Machine {
    /// Starts QEMU. Returns it with the harness's end of the agent's connection.
    pub(crate) fn start(boot: &Boot<'_>) -> Result<(Self, UnixStream)> {
        for drive in &boot.profile.drives {
            let path = boot.dir.join(boot.profile.drive_file(&drive.id));
            make_file(&path, drive.size_mib)?;
        }
        for memory in &boot.profile.shared_memories {
            let path = boot.dir.join(boot.profile.memory_file(&memory.id));
            make_file(&path, memory.size_mib)?;
        }
        let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
        let log = boot.dir.join("qemu.log");
        let messages =
            fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut command = boot.assets.qemu.command();
        if boot.profile.machine.trace {
            command.args(["-d", "trace:lab_fabric", "-D"]);
            command.arg(boot.dir.join(crate::trace::FILE));
        }
        command
            .args(["-machine", "q35,kernel-irqchip=split"])
            .args(boot.accel.args(&boot.profile.machine))
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-no-reboot", "-nic", "none"])
            .arg("-serial")
            .arg(format!(
                "file:{}",
                crate::profile::escape(&serial_log(boot.dir))
            ))
            .arg("-kernel")
            .arg(&boot.assets.kernel.image)
            .arg("-initrd")
            .arg(boot.initramfs)
            .arg("-append")
            .arg(cmdline(boot.profile))
            .args(boot.profile.device_args(boot.dir))
            .args(agent_args(theirs.as_raw_fd()))
            .stdin(Stdio::null())
            .stdout(messages.try_clone()?)
            .stderr(messages);
        let child = spawn::spawn(command, theirs.into()).context("cannot start QEMU")?;
        let dir = boot.dir.to_owned();
        Ok((Self { child, dir }, ours))
    }

    /// Returns an error with QEMU's messages if QEMU has ended.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait().context("cannot look after QEMU")? {
            None => Ok(()),
            Some(status) => bail!("QEMU ended ({status}){}", self.last_words()),
        }
    }

    /// The last messages of QEMU and of the lab host's console.
    pub(crate) fn last_words(&self) -> String {
        let mut words = String::new();
        for path in [self.dir.join("qemu.log"), serial_log(&self.dir)] {
            let text = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            let last = lines.get(lines.len().saturating_sub(20)..).unwrap_or(&[]);
            if !last.is_empty() {
                words.push_str(&format!("\n{}:\n  {}", path.display(), last.join("\n  ")));
            }
        }
        words
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // QEMU may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Path of the lab host's console log.
pub(crate) fn serial_log(dir: &Path) -> PathBuf {
    dir.join("serial.log")
}

fn cmdline(profile: &Profile) -> String {
    let iommu = match profile.iommu {
        Some(_) => "intel_iommu=on",
        None => "intel_iommu=off",
    };
    let clock = clock_of_own_kernel();
    CMDLINE
        .into_iter()
        .chain([iommu])
        .chain(clock.as_deref())
        .chain(profile.machine.cmdline.iter().map(String::as_str))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Arguments for the agent's port. It uses the highest free slot of the root complex, which the profiles do not use.
/// Without event indices each frame raises an interrupt, even if an earlier one was not handled: see `agent::NUDGE`.
fn agent_args(fd: i32) -> Vec<String> {
    [
        "-chardev",
        &format!("socket,id=agent,fd={fd}"),
        "-device",
        "virtio-serial-pci,id=agent-bus,bus=pcie.0,addr=1e.0,event_idx=off",
        "-device",
        &format!(
            "virtserialport,bus=agent-bus.0,chardev=agent,name={}",
            crate::protocol::PORT_NAME
        ),
    ]
    .map(str::to_owned)
    .to_vec()
}

/// An empty file of that size; holes take no space.
fn make_file(path: &Path, size_mib: u32) -> Result<()> {
    fs::File::create(path)
        .and_then(|file| file.set_len(u64::from(size_mib) << 20))
        .with_context(|| format!("cannot create {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nesting_is_believed_only_if_the_module_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let error = nested(dir.path()).unwrap_err();
        assert!(error.to_string().contains("neither kvm_intel nor kvm_amd"));
        let parameters = dir.path().join("kvm_amd/parameters");
        fs::create_dir_all(&parameters).unwrap();
        fs::write(parameters.join("nested"), "0\n").unwrap();
        let error = nested(dir.path()).unwrap_err();
        assert!(error.to_string().contains("is off"));
        fs::write(parameters.join("nested"), "1\n").unwrap();
        assert!(nested(dir.path()).is_ok());
    }

    #[test]
    fn processors_are_as_the_profile_says() {
        let machine = |text| Profile::parse(text).unwrap().machine;
        let plain = machine("description = 'x'");
        let narrow = machine("description = 'x'\n[machine]\naddress_bits = 39");
        let zen = machine("description = 'x'\n[machine]\naddress_bits = 39\ncpu_family = 25");
        assert_eq!(Accel::Tcg.args(&plain)[3], EMULATED_CPU);
        assert_eq!(
            Accel::Tcg.args(&zen)[3],
            format!("{EMULATED_CPU},phys-bits=39,family=25")
        );
        assert_eq!(Accel::Kvm.args(&narrow)[3], "host,host-phys-bits-limit=39");
    }

    #[test]
    fn a_machine_without_an_iommu_boots_without_one() {
        let mut profile = Profile::parse("description = 'x'").unwrap();
        profile.machine.cmdline = vec!["pci=noaer".into()];
        assert!(cmdline(&profile).ends_with("intel_iommu=off pci=noaer"));
    }
}
