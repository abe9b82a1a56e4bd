//! A booted lab host.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::agent::{Agent, Command, Output, Transcript};
use crate::assets::{Assets, Systemd};
use crate::binaries::Binaries;
use crate::initramfs;
use crate::lock::FileLock;
use crate::machine::{Accel, Boot, Machine};
use crate::paths::{cache_dir, lab_dir};
use crate::profile::Profile;
use crate::progress::Progress;
use crate::protocol::{CHUNK_BYTES, Reply, Request};
use crate::vm::{GUEST, Vm};

/// How long a lab host may take until its agent answers.
pub const BOOT: Duration = Duration::from_secs(150);

/// How often a boot is attempted: on a busy machine an emulated host sometimes stops before its kernel prints anything.
const BOOT_ATTEMPTS: u32 = 3;

/// How long a command may run unless it sets another deadline.
pub const COMMAND: Duration = Duration::from_secs(120);

/// How long it may take to collect the state of the host after a failure.
const POST_MORTEM: Duration = Duration::from_secs(30);

/// How long earlier labs may hold all slots.
const SLOT_WAIT: Duration = Duration::from_secs(3600);

/// A lab host. QEMU is killed when this is dropped. If the test panics, the host's kernel log and `lspci -vvv` are
/// first saved beside the serial log.
pub struct Lab {
    // Fields are dropped in this order: the machine ends before the slot is free for another lab.
    machine: Machine,
    agent: Agent,
    dir: PathBuf,
    kernel: String,
    boot_time: Duration,
    _slot: Option<FileLock>,
    _dir_lock: FileLock,
}

impl Lab {
    /// Boots a machine, after waiting for a free slot. `name` is the directory below `target/lab`.
    ///
    /// # Errors
    /// The lab cannot be set up, or the host does not come up within [`BOOT`].
    pub fn boot(profile: &Profile, name: &str) -> Result<Self> {
        let progress = Progress::new();
        let slot = take_slot(&progress)?;
        Self::start(profile, name, Some(slot), &progress)
    }

    /// Boots a second machine beside this one, in this one's slot.
    ///
    /// # Errors
    /// As [`Lab::boot`].
    pub fn boot_beside(&self, profile: &Profile, name: &str) -> Result<Self> {
        Self::start(profile, name, None, &Progress::new())
    }

    fn start(
        profile: &Profile,
        name: &str,
        slot: Option<FileLock>,
        progress: &Progress,
    ) -> Result<Self> {
        profile.check()?;
        let accel = Accel::chosen()?;
        let assets = match profile.needs_routing() {
            true => Assets::ensure_routing(progress)?,
            false => Assets::ensure(progress)?,
        };
        let systemd = match profile.machine.systemd {
            true => Some(Systemd::ensure(progress)?),
            false => None,
        };
        let binaries = Binaries::build(progress)?;
        let dir = lab_dir().join(directory_name(name)?);
        let dir_lock = FileLock::try_take(&dir.with_extension("lock"))?
            .with_context(|| format!("another lab called {name} is running"))?;
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot clear {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let initramfs = dir.join("initramfs.cpio");
        initramfs::pack_host(&assets, &binaries, systemd.as_ref(), &initramfs, progress)?;
        let boot = Boot {
            assets: &assets,
            profile,
            accel,
            initramfs: &initramfs,
            dir: &dir,
        };
        let (machine, agent, kernel, boot_time) = boot_patiently(&boot, progress)?;
        progress.clear();
        // QEMU has copied it into the machine's memory.
        drop(fs::remove_file(&initramfs));
        let lab = Self {
            machine,
            agent,
            dir,
            kernel,
            boot_time,
            _slot: slot,
            _dir_lock: dir_lock,
        };
        if accel == Accel::Kvm {
            lab.run(["test", "-c", "/dev/kvm"])?.ok().context(
                "LAB_ACCEL=kvm: the lab host has no KVM of its own; nesting does not work here",
            )?;
        }
        Ok(lab)
    }

    /// Directory of the serial log and, after a failure, of everything else that is saved.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `uname -r` of the lab host.
    #[must_use]
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// Time from the start of QEMU to the agent's greeting.
    #[must_use]
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// Starts a VM; its serial console is the command's standard output.
    pub fn vm(&self, vm: &Vm) -> Command<'_> {
        self.command(vm.argv()).deadline(GUEST)
    }

    /// A command to run. It starts with `run` or `spawn`.
    pub fn command<S: Into<String>>(&self, argv: impl IntoIterator<Item = S>) -> Command<'_> {
        Command::new(&self.agent, argv, COMMAND)
    }

    /// Runs a command until it ends.
    ///
    /// # Errors
    /// It cannot be started, or the host is gone. The failure of the command itself is not an error here.
    pub fn run<S: Into<String>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Output> {
        self.command(argv).run()
    }

    /// Runs a shell command line and returns its standard output.
    ///
    /// # Errors
    /// Its exit code is not 0.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.run(["sh", "-c", script])?.ok()
    }

    /// Copies a file into the host.
    ///
    /// # Errors
    /// One of the two files cannot be read or written.
    pub fn put(&self, source: &Path, target: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let read = || format!("cannot read {}", source.display());
        let mode = source.metadata().with_context(read)?.permissions().mode() & 0o7777;
        self.put_bytes(&fs::read(source).with_context(read)?, target, mode)
    }

    /// Writes a file in the host.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn put_bytes(&self, bytes: &[u8], target: &str, mode: u32) -> Result<()> {
        let mut offset = 0;
        let mut rest = bytes;
        loop {
            let (piece, after) = rest.split_at(rest.len().min(CHUNK_BYTES));
            let request = Request::Put {
                path: target.to_owned(),
                mode,
                offset,
            };
            self.agent.ask(&request, piece, Duration::ZERO)?;
            offset += u64::try_from(piece.len())?;
            rest = after;
            if rest.is_empty() {
                return Ok(());
            }
        }
    }

    /// Reads a file in the host.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn get(&self, path: &str) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        loop {
            let request = Request::Get {
                path: path.to_owned(),
                offset: u64::try_from(content.len())?,
            };
            match self.agent.ask(&request, &[], Duration::ZERO)? {
                (Reply::Content { end }, piece) => {
                    content.extend_from_slice(&piece);
                    if end {
                        return Ok(content);
                    }
                }
                (other, _) => bail!("the agent answered {other:?} to a read of {path}"),
            }
        }
    }

    /// Reads a text file in the host, without the line end that sysfs adds.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, path: &str) -> Result<String> {
        let text = String::from_utf8_lossy(&self.get(path)?).into_owned();
        Ok(text.trim_end().to_owned())
    }

    /// Binds a function to vfio-pci, whatever driver it has now.
    ///
    /// # Errors
    /// A file in sysfs cannot be written, or vfio-pci does not bind the function.
    pub fn bind_vfio(&self, bdf: &str) -> Result<()> {
        self.bind(bdf, "vfio-pci")
    }

    /// Binds a function to a driver, whatever driver it has now.
    ///
    /// # Errors
    /// A file in sysfs cannot be written, or the driver does not bind the function.
    pub fn bind(&self, bdf: &str, wanted: &str) -> Result<()> {
        if self.driver(bdf)?.as_deref() == Some(wanted) {
            return Ok(());
        }
        let device = format!("/sys/bus/pci/devices/{bdf}");
        self.sh(&format!(
            "set -e
             [ ! -e {device}/driver ] || echo {bdf} > {device}/driver/unbind
             echo {wanted} > {device}/driver_override
             echo {bdf} > /sys/bus/pci/drivers_probe"
        ))
        .with_context(|| format!("cannot bind {bdf} to {wanted}"))?;
        let driver = self.driver(bdf)?;
        ensure!(
            driver.as_deref() == Some(wanted),
            "{wanted} did not take {bdf}; its driver is {driver:?}"
        );
        Ok(())
    }

    /// The driver that a function is bound to.
    ///
    /// # Errors
    /// The host is gone.
    pub fn driver(&self, bdf: &str) -> Result<Option<String>> {
        self.link_name(&format!("/sys/bus/pci/devices/{bdf}/driver"))
    }

    /// The IOMMU group of a function.
    ///
    /// # Errors
    /// It has none, or the host is gone.
    pub fn group(&self, bdf: &str) -> Result<u32> {
        let name = self.link_name(&format!("/sys/bus/pci/devices/{bdf}/iommu_group"))?;
        let name = name.with_context(|| format!("{bdf} has no IOMMU group"))?;
        name.parse()
            .with_context(|| format!("{bdf} is in group {name:?}"))
    }

    /// Bus address of a function's first BAR on the host, in hexadecimal.
    ///
    /// # Errors
    /// The function does not exist, or the host is gone.
    pub fn bus_address(&self, bdf: &str) -> Result<String> {
        let text = self.read(&format!("/sys/bus/pci/devices/{bdf}/resource"))?;
        let first = text.split_ascii_whitespace().next();
        let first = first.with_context(|| format!("{bdf} has no resources"))?;
        let address = u64::from_str_radix(first.trim_start_matches("0x"), 16)?;
        Ok(format!("{address:#x}"))
    }

    /// Every IOMMU group with its members.
    ///
    /// # Errors
    /// The host is gone.
    pub fn groups(&self) -> Result<Vec<(u32, Vec<String>)>> {
        let listing = self.sh(
            "for d in /sys/kernel/iommu_groups/*/devices/*; do [ -e $d ] && echo $d; done; true",
        )?;
        let mut groups: std::collections::BTreeMap<u32, Vec<String>> = Default::default();
        for line in listing.lines() {
            let mut parts = line.rsplit('/');
            let (bdf, group) = (parts.next(), parts.nth(1));
            let group = group.and_then(|group| group.parse().ok());
            let (Some(bdf), Some(group)) = (bdf, group) else {
                bail!("a member of an IOMMU group is at {line:?}");
            };
            groups.entry(group).or_default().push(bdf.to_owned());
        }
        Ok(groups.into_iter().collect())
    }

    /// Functions of a vendor and device id (hexadecimal, as `1234:11e8`), in address order.
    ///
    /// # Errors
    /// The host is gone.
    pub fn find_devices(&self, ids: &str) -> Result<Vec<String>> {
        let listing = self.run(["lspci", "-Dnd", ids])?.ok()?;
        Ok(listing
            .lines()
            .filter_map(|line| line.split_ascii_whitespace().next())
            .map(str::to_owned)
            .collect())
    }

    /// The host kernel's log.
    ///
    /// # Errors
    /// The host is gone.
    pub fn dmesg(&self) -> Result<String> {
        self.run(["dmesg"])?.ok()
    }

    /// Saves the kernel's log, `lspci -vvv` and the groups beside the serial log.
    ///
    /// # Errors
    /// The host no longer answers, or the files cannot be written. Everything that can be saved is saved.
    pub fn save_artifacts(&self) -> Result<()> {
        let mut result = Ok(());
        let sources: [(&str, &[&str]); 3] = [
            ("dmesg.txt", &["dmesg"]),
            ("lspci.txt", &["lspci", "-vvv"]),
            (
                "groups.txt",
                &["sh", "-c", "ls -d /sys/kernel/iommu_groups/*/devices/*"],
            ),
        ];
        for (file, argv) in sources {
            let saved = self
                .command(argv.iter().copied())
                .deadline(POST_MORTEM)
                .run()
                .and_then(|output| {
                    let path = self.dir.join(file);
                    fs::write(&path, output.stdout + &output.stderr)
                        .with_context(|| format!("cannot write {}", path.display()))
                });
            result = result.and(saved);
        }
        result
    }

    /// Saves the state of the host after a failure as far as possible, and reports where it is.
    pub(crate) fn post_mortem(&self) {
        let saved = self.save_artifacts();
        eprintln!("lab: what it left behind is in {}", self.dir.display());
        if let Err(error) = saved {
            eprintln!("lab: {error:#}{}", self.machine.last_words());
        }
    }

    fn link_name(&self, path: &str) -> Result<Option<String>> {
        let target = self.run(["readlink", path])?;
        Ok(match target.code() {
            Some(0) => target.stdout.trim().rsplit('/').next().map(str::to_owned),
            _ => None,
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            self.post_mortem();
        }
    }
}

/// Boots, and boots again if the host is silent for too long. The logs of a failed attempt are kept.
fn boot_patiently(
    boot: &Boot<'_>,
    progress: &Progress,
) -> Result<(Machine, Agent, String, Duration)> {
    let mut attempt = 1;
    loop {
        let started = Instant::now();
        let (mut machine, socket) = Machine::start(boot)?;
        let agent = Agent::new(socket, Transcript::create(&boot.dir.join("commands.log"))?)?;
        match wait_for_agent(&mut machine, &agent, started, progress) {
            Ok(kernel) => return Ok((machine, agent, kernel, started.elapsed())),
            Err(error) if attempt < BOOT_ATTEMPTS && started.elapsed() >= BOOT => {
                drop(machine);
                progress.step(&format!("lab: {error:#}; trying again"));
                for log in ["serial.log", "qemu.log"] {
                    let kept = boot.dir.join(format!("boot-{attempt}-{log}"));
                    drop(fs::rename(boot.dir.join(log), kept));
                }
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

fn wait_for_agent(
    machine: &mut Machine,
    agent: &Agent,
    started: Instant,
    progress: &Progress,
) -> Result<String> {
    loop {
        progress.alive("booting the lab host", started);
        match agent.greeting(Duration::from_millis(200)) {
            Ok(Some((kernel, _))) => return Ok(kernel),
            Ok(None) => machine.check_alive()?,
            Err(error) => {
                // QEMU closes the connection shortly before its process ends.
                thread::sleep(Duration::from_millis(200));
                machine.check_alive()?;
                return Err(error);
            }
        }
        ensure!(
            started.elapsed() < BOOT,
            "the lab host did not come up within {} s{}",
            BOOT.as_secs(),
            machine.last_words()
        );
    }
}

/// Takes one of the slots in which labs run: every lab keeps about as many processors busy as it has.
fn take_slot(progress: &Progress) -> Result<FileLock> {
    let jobs = match env::var("LAB_JOBS") {
        Ok(text) => text
            .parse()
            .ok()
            .filter(|jobs| *jobs > 0)
            .with_context(|| format!("LAB_JOBS={text}: it is a number above 0"))?,
        Err(_) => thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1)),
    };
    let slots: Vec<PathBuf> = (0..jobs)
        .map(|slot| cache_dir().join(format!("slots/{slot}")))
        .collect();
    FileLock::wait_any(&slots, SLOT_WAIT, "waiting for other labs to end", progress)
}

fn directory_name(name: &str) -> Result<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    ensure!(
        !name.is_empty() && name.chars().all(good),
        "{name:?} cannot be a lab's name: only letters, digits, - and _"
    );
    ensure!(
        !matches!(name, "cache" | "bin-target"),
        "{name:?} cannot be a lab's name: it is taken"
    );
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::directory_name;

    #[test]
    fn a_name_stays_within_the_labs_directory() {
        assert!(directory_name("edu-one_2").is_ok());
        for name in ["", "..", "a/b", "cache", "bin-target"] {
            assert!(directory_name(name).is_err(), "{name:?}");
        }
    }
}
