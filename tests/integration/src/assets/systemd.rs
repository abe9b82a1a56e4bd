//! systemd, for labs that run it as the first process: the machine's own, or Debian's package.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::apt::Apt;
use super::store::Store;
use super::{libraries, lock_set_up};
use crate::paths::cache_dir;
use crate::progress::Progress;

/// Directories of its programs: the second applies to systems from before `/lib` and `/usr/lib` were merged.
const HOMES: [&str; 2] = ["usr/lib/systemd", "lib/systemd"];
const BINARIES: [&str; 2] = ["usr/bin", "bin"];

/// Programs that start services and keep their logs. The second exists since systemd 254.
const DAEMONS: [(&str, bool); 3] = [
    ("systemd", true),
    ("systemd-executor", false),
    ("systemd-journald", true),
];
const COMMANDS: [&str; 3] = ["systemctl", "journalctl", "systemd-analyze"];

/// Units that a service may be ordered by, and the journal. No others: each unit costs time under emulation.
const UNITS: [&str; 16] = [
    "basic.target",
    "final.target",
    "local-fs-pre.target",
    "local-fs.target",
    "multi-user.target",
    "paths.target",
    "shutdown.target",
    "slices.target",
    "sockets.target",
    "swap.target",
    "sysinit.target",
    "systemd-journald-dev-log.socket",
    "systemd-journald.service",
    "systemd-journald.socket",
    "timers.target",
    "umount.target",
];

/// A systemd that can be packed.
pub(crate) struct Systemd {
    /// Path in the lab and source of each program.
    pub(crate) programs: Vec<(String, PathBuf)>,
    /// Path in the lab and source of each unit.
    pub(crate) units: Vec<(String, PathBuf)>,
    /// Libraries that the programs are linked with.
    pub(crate) libraries: Vec<PathBuf>,
}

impl Systemd {
    const SET: &str = "systemd";

    /// Finds or downloads it.
    pub(crate) fn ensure(progress: &Progress) -> Result<Self> {
        if let Ok(own) = Self::below(Path::new("/"), None) {
            return Ok(own);
        }
        let cache = cache_dir();
        let _lock = lock_set_up(&cache, progress)?;
        let store = Store::new(&cache);
        let found = store.find(Self::SET);
        if let Some(found) = found.and_then(|root| Self::below(&root, Some(&root)).ok()) {
            return Ok(found);
        }
        let apt = Apt::new(&cache)?;
        let packages = apt
            .scope(&[apt.codename()], progress)?
            .closure(&[Self::SET], apt.codename())?;
        let root = store.install(Self::SET, &packages, progress)?;
        Self::below(&root, Some(&root))
    }

    /// The systemd whose files are below a directory. `fetched` is the directory of libraries that the machine lacks.
    fn below(root: &Path, fetched: Option<&Path>) -> Result<Self> {
        let find = |dirs: &[&str], name: &str| {
            let mut paths = dirs.iter().map(|dir| root.join(dir).join(name));
            paths.find(|path| path.is_file())
        };
        let must = |found: Option<PathBuf>, name: &str| {
            found.with_context(|| format!("there is no {name} below {}", root.display()))
        };
        let mut systemd = Self {
            programs: Vec::new(),
            units: Vec::new(),
            libraries: Vec::new(),
        };
        for (name, needed) in DAEMONS {
            let found = find(&HOMES, name);
            if found.is_some() || needed {
                let target = format!("/usr/lib/systemd/{name}");
                systemd.programs.push((target, must(found, name)?));
            }
        }
        for name in COMMANDS {
            let found = must(find(&BINARIES, name), name)?;
            systemd.programs.push((format!("/bin/{name}"), found));
        }
        for name in UNITS {
            let found = must(find(&HOMES, &format!("system/{name}")), name)?;
            let target = format!("/usr/lib/systemd/system/{name}");
            systemd.units.push((target, found));
        }
        for (_, program) in &systemd.programs {
            systemd.libraries.extend(libraries(program, fetched)?);
        }
        Ok(systemd)
    }
}
