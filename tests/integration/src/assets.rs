//! Components of the lab: QEMU, a kernel with its modules, and a few tools.
//!
//! Components installed on this machine are used; the rest is downloaded with apt into the cache, without installing
//! anything.

mod apt;
mod build;
mod kernel;
mod nested;
mod own_kernel;
mod own_qemu;
mod source;
mod store;
mod systemd;

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::binaries::ensure_static;
use crate::lock::FileLock;
use crate::paths::{cache_dir, find_program};
use crate::progress::Progress;
use apt::Apt;
pub(crate) use kernel::Kernel;
pub use own_kernel::OwnKernel;
use store::Store;
pub(crate) use store::hex;
pub(crate) use systemd::Systemd;

/// Variable that names the QEMU to use.
const LAB_QEMU: &str = "LAB_QEMU";

/// Oldest major version of QEMU whose nested SVM can run a current guest kernel under TCG.
const MIN_QEMU_MAJOR: u32 = 10;

/// How long another process may take to set up the cache.
const SETUP_WAIT: Duration = Duration::from_secs(1800);

/// Everything needed to boot a lab, found or downloaded.
#[derive(Debug, Clone)]
pub struct Assets {
    /// The QEMU that runs the lab host.
    pub(crate) qemu: Qemu,
    pub(crate) kernel: Kernel,
    pub(crate) tools: Tools,
}

/// A QEMU that runs on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Qemu {
    program: PathBuf,
    /// Root of the unpacked packages that it came from; `None` for the installed QEMU.
    root: Option<PathBuf>,
    version: String,
}

/// Programs that are packed into the initramfs or help to build it.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    pub(crate) busybox: PathBuf,
    pub(crate) lspci: PathBuf,
    pub(crate) setpci: PathBuf,
    /// `kmod`, which acts as depmod when started under that name.
    kmod: PathBuf,
    root: Option<PathBuf>,
}

/// Waits until no other process sets up the cache.
fn lock_set_up(cache: &Path, progress: &Progress) -> Result<FileLock> {
    FileLock::wait(
        &cache.join("lock"),
        SETUP_WAIT,
        "waiting for another set-up",
        progress,
    )
}

impl Assets {
    /// Finds or downloads everything.
    ///
    /// # Errors
    /// Something is missing and cannot be downloaded; the error lists what, and how to provide it.
    pub fn ensure(progress: &Progress) -> Result<Self> {
        let cache = cache_dir();
        let _lock = lock_set_up(&cache, progress)?;
        let store = Store::new(&cache);
        let found = (
            Qemu::find(&store)?,
            Kernel::find(&store)?,
            Tools::find(&store),
        );
        let mut assets = match found {
            (Some(qemu), Some(kernel), Some(tools)) => Self {
                qemu,
                kernel,
                tools,
            },
            found => {
                let missing = missing(&found);
                Self::fetch(found, &cache, &store, progress).map_err(|error| {
                    anyhow!(
                        "{error:#}\nthe lab lacks, and can fetch on Debian with apt only:{missing}"
                    )
                })?
            }
        };
        if env::var_os(LAB_QEMU).is_none()
            && let Some(program) = own_qemu::find()?
        {
            assets.qemu = assets.qemu.with_program(program)?;
        }
        Ok(assets)
    }

    /// Finds or downloads everything, with a QEMU whose switches route: the one that `LAB_QEMU` names, or the lab's
    /// own, which takes some minutes to build.
    ///
    /// # Errors
    /// As [`Assets::ensure`]; or the build fails; or the switches of `LAB_QEMU` do not route.
    pub fn ensure_routing(progress: &Progress) -> Result<Self> {
        let mut assets = Self::ensure(progress)?;
        if env::var_os(LAB_QEMU).is_some() {
            ensure!(
                assets.qemu.routes()?,
                "LAB_QEMU has no lab-downstream-port: its switches do not route; unset LAB_QEMU to have one built"
            );
            return Ok(assets);
        }
        assets.qemu = assets.qemu.with_program(own_qemu::ensure(progress)?)?;
        Ok(assets)
    }

    fn fetch(
        (qemu, kernel, tools): (Option<Qemu>, Option<Kernel>, Option<Tools>),
        cache: &Path,
        store: &Store,
        progress: &Progress,
    ) -> Result<Self> {
        let apt = Apt::new(cache)?;
        Ok(Self {
            qemu: qemu.map_or_else(|| Qemu::fetch(&apt, store, progress), Ok)?,
            kernel: kernel.map_or_else(|| Kernel::fetch(&apt, store, progress), Ok)?,
            tools: tools.map_or_else(|| Tools::fetch(&apt, store, progress), Ok)?,
        })
    }

    /// The components in use, one line each.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        vec![
            format!(
                "QEMU {} ({})",
                self.qemu.version,
                self.qemu.program.display()
            ),
            format!(
                "Linux {} ({})",
                self.kernel.version,
                self.kernel.image.display()
            ),
            format!("busybox {}", self.tools.busybox.display()),
        ]
    }
}

/// One line for each missing component: what it is, and how to provide it.
fn missing((qemu, kernel, tools): &(Option<Qemu>, Option<Kernel>, Option<Tools>)) -> String {
    let mut text = String::new();
    if qemu.is_none() {
        text.push_str("\n  qemu-system-x86_64, version 10 or newer: on PATH, or named by LAB_QEMU");
    }
    if kernel.is_none() {
        text.push_str(
            "\n  Linux 7.2 or newer: LAB_KERNEL names its bzImage, LAB_MODULES its lib/modules/<version> if it has one",
        );
    }
    if tools.is_none() {
        for name in Tools::missing() {
            text.push_str(&format!("\n  {name}: on PATH"));
        }
    }
    text
}

impl Qemu {
    const SET: &str = "qemu";
    const PROGRAM: &str = "qemu-system-x86_64";

    fn find(store: &Store) -> Result<Option<Self>> {
        if let Some(path) = env::var_os(LAB_QEMU) {
            let qemu = Self::probe(PathBuf::from(path), None).context("LAB_QEMU")?;
            return Ok(Some(qemu));
        }
        if let Some(path) = find_program(Self::PROGRAM)
            && let Ok(qemu) = Self::probe(path, None)
        {
            return Ok(Some(qemu));
        }
        Ok(store.find(Self::SET).and_then(|root| {
            Self::probe(root.join("usr/bin").join(Self::PROGRAM), Some(root)).ok()
        }))
    }

    fn fetch(apt: &Apt, store: &Store, progress: &Progress) -> Result<Self> {
        // The machine's own release has it from Debian 13 on; for older releases, backports have it.
        let mut last = None;
        for suite in [
            format!("{}-backports", apt.codename()),
            apt.codename().to_owned(),
        ] {
            let attempt = apt
                .scope(&[apt.codename(), &suite], progress)
                .and_then(|scope| scope.closure(&["qemu-system-x86"], &suite))
                .and_then(|packages| store.install(Self::SET, &packages, progress))
                .and_then(|root| Self::probe(root.join("usr/bin").join(Self::PROGRAM), Some(root)));
            match attempt {
                Ok(qemu) => return Ok(qemu),
                Err(error) => last = last.or(Some(error)),
            }
        }
        let error = last.unwrap_or_else(|| anyhow!("no suite to try"));
        Err(error.context("cannot fetch QEMU 10 or newer"))
    }

    /// Checks that the program starts and is new enough.
    fn probe(program: PathBuf, root: Option<PathBuf>) -> Result<Self> {
        let mut qemu = Self {
            program,
            root,
            version: String::new(),
        };
        let output = qemu
            .command()
            .arg("--version")
            .output()
            .with_context(|| format!("cannot run {}", qemu.program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(version) = parse_version(&text) else {
            let missing = missing_libraries(&qemu.program, qemu.root.as_deref());
            bail!(
                "{} does not run: {}{}",
                qemu.program.display(),
                String::from_utf8_lossy(&output.stderr).trim(),
                if missing.is_empty() {
                    String::new()
                } else {
                    format!("; missing libraries: {}", missing.join(", "))
                }
            );
        };
        let major = version
            .split('.')
            .next()
            .and_then(|major| major.parse().ok());
        ensure!(
            major.is_some_and(|major: u32| major >= MIN_QEMU_MAJOR),
            "{} is QEMU {version}; {MIN_QEMU_MAJOR} or newer is needed",
            qemu.program.display()
        );
        version.clone_into(&mut qemu.version);
        Ok(qemu)
    }

    /// Another program, with the firmware and libraries of this one.
    fn with_program(self, program: PathBuf) -> Result<Self> {
        Self::probe(
            program,
            Some(self.root.unwrap_or_else(|| PathBuf::from("/"))),
        )
    }

    /// Whether it has the device models of `resources/qemu`.
    fn routes(&self) -> Result<bool> {
        let output = self.command().args(["-device", "help"]).output();
        let output = output.with_context(|| format!("cannot run {}", self.program.display()))?;
        Ok(String::from_utf8_lossy(&output.stdout).contains("lab-downstream-port"))
    }

    /// A command that starts it, with the firmware and libraries that belong to it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(root) = &self.root {
            command.env("LD_LIBRARY_PATH", library_path(root));
            for dir in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
                command.arg("-L").arg(root.join(dir));
            }
        }
        command
    }
}

impl Tools {
    const SET: &str = "tools";
    const PACKAGES: [&str; 3] = ["busybox-static", "pciutils", "kmod"];

    fn find(store: &Store) -> Option<Self> {
        if Self::missing().is_empty() {
            return Some(Self {
                busybox: find_program("busybox")?,
                lspci: find_program("lspci")?,
                setpci: find_program("setpci")?,
                kmod: find_program("depmod")?,
                root: None,
            });
        }
        Self::in_root(store.find(Self::SET)?)
    }

    /// Tools that are not installed on this machine.
    fn missing() -> Vec<&'static str> {
        let mut missing = Vec::new();
        if find_program("busybox").is_none_or(|path| ensure_static(&path).is_err()) {
            missing.push("busybox (statically linked)");
        }
        for name in ["lspci", "setpci", "depmod"] {
            if find_program(name).is_none() {
                missing.push(name);
            }
        }
        missing
    }

    fn fetch(apt: &Apt, store: &Store, progress: &Progress) -> Result<Self> {
        let packages = apt
            .scope(&[apt.codename()], progress)?
            .closure(&Self::PACKAGES, apt.codename())?;
        let root = store.install(Self::SET, &packages, progress)?;
        Self::in_root(root.clone())
            .with_context(|| format!("{} lacks a tool after unpacking", root.display()))
    }

    fn in_root(root: PathBuf) -> Option<Self> {
        let in_root = |name: &str| {
            ["bin", "sbin", "usr/bin", "usr/sbin"]
                .iter()
                .map(|dir| root.join(dir).join(name))
                .find(|path| path.is_file())
        };
        let tools = Self {
            busybox: in_root("busybox")?,
            lspci: in_root("lspci")?,
            setpci: in_root("setpci")?,
            kmod: in_root("kmod")?,
            root: Some(root.clone()),
        };
        // A package omitted because it was installed on the machine may have been uninstalled since.
        [&tools.lspci, &tools.setpci, &tools.kmod]
            .iter()
            .all(|program| tools.libraries(program).is_ok())
            .then_some(tools)
    }

    /// depmod, which is one of the names of kmod.
    pub(crate) fn depmod(&self) -> Command {
        let mut command = Command::new(&self.kmod);
        command.arg0("depmod");
        if let Some(root) = &self.root {
            command.env("LD_LIBRARY_PATH", library_path(root));
        }
        command
    }

    /// The libraries that a program needs, and the loader.
    pub(crate) fn libraries(&self, program: &Path) -> Result<Vec<PathBuf>> {
        libraries(program, self.root.as_deref())
    }
}

/// The libraries that a program needs, and the loader.
fn libraries(program: &Path, root: Option<&Path>) -> Result<Vec<PathBuf>> {
    let listing = ldd(program, root)?;
    let missing = missing_in(&listing);
    ensure!(
        missing.is_empty(),
        "{} lacks libraries: {}",
        program.display(),
        missing.join(", ")
    );
    Ok(paths_in(&listing))
}

/// The `lspci` of this machine, or the one that was downloaded for the lab, in that case with its library path. Nothing
/// is downloaded.
#[must_use]
pub fn find_lspci() -> Option<(PathBuf, Option<OsString>)> {
    if let Some(program) = find_program("lspci") {
        return Some((program, None));
    }
    let tools = Tools::find(&Store::new(&cache_dir()))?;
    Some((tools.lspci, tools.root.as_deref().map(library_path)))
}

fn library_path(root: &Path) -> OsString {
    let dirs = [
        "usr/lib/x86_64-linux-gnu",
        "lib/x86_64-linux-gnu",
        // Directory of systemd's private libraries.
        "usr/lib/x86_64-linux-gnu/systemd",
    ];
    let dirs = dirs.map(|dir| root.join(dir));
    env::join_paths(dirs).unwrap_or_default()
}

fn ldd(program: &Path, root: Option<&Path>) -> Result<String> {
    let mut command = Command::new("ldd");
    if let Some(root) = root {
        command.env("LD_LIBRARY_PATH", library_path(root));
    }
    let output = command.arg(program).output().context("cannot run ldd")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn missing_libraries(program: &Path, root: Option<&Path>) -> Vec<String> {
    ldd(program, root).map_or_else(|_| Vec::new(), |listing| missing_in(&listing))
}

/// Names of libraries that ldd did not find: `libx.so.1 => not found`.
fn missing_in(listing: &str) -> Vec<String> {
    listing
        .lines()
        .filter_map(|line| line.trim().strip_suffix("=> not found"))
        .map(|name| name.trim().to_owned())
        .collect()
}

/// Paths of libraries that ldd found: `libx.so.1 => /lib/libx.so.1 (0x…)`, and the loader, which has no arrow.
fn paths_in(listing: &str) -> Vec<PathBuf> {
    listing
        .lines()
        .filter_map(|line| {
            let line = line.trim();
            let path = line.split_once("=> ").map_or(line, |(_, path)| path);
            let path = path.split(" (").next()?;
            path.starts_with('/').then(|| PathBuf::from(path))
        })
        .collect()
}

/// `QEMU emulator version 10.0.2 (Debian …)`.
fn parse_version(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("version ")?;
    rest.split(|c: char| !(c.is_ascii_digit() || c == '.'))
        .next()
        .filter(|version| !version.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_found_in_what_qemu_prints() {
        let text = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright";
        assert_eq!(parse_version(text), Some("10.0.2"));
        assert_eq!(parse_version("error while loading shared libraries"), None);
    }

    #[test]
    fn what_ldd_found_is_told_from_what_it_missed() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffc)\n\
            \tlibpci.so.3 => /usr/lib/libpci.so.3 (0x00007f)\n\
            \tlibgone.so.1 => not found\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(missing_in(listing), ["libgone.so.1"]);
        assert_eq!(
            paths_in(listing),
            [
                Path::new("/usr/lib/libpci.so.3"),
                Path::new("/lib64/ld-linux-x86-64.so.2")
            ]
        );
    }
}
