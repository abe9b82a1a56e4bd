//! Initial file systems of the lab host and its guests.
//!
//! An initramfs is a sequence of cpio archives. The parts that rarely change (busybox, modules, init) are packed once
//! and cached under a name derived from the versions of the contents. The parts that change from run to run (the
//! programs under test) are appended. Nothing is compressed: under emulation, unpacking costs more than copying.

mod archive;
mod module;
mod systemd;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::assets::{Assets, Systemd, hex};
use crate::binaries::Binaries;
use crate::paths::{cache_dir, resources};
use crate::progress::Progress;
use archive::Archive;
use module::ModuleTree;

/// Change this when the layout of a packed base changes.
const FORMAT: &str = "2";

/// Path of the guest's kernel in the lab host.
pub const GUEST_KERNEL: &str = "/lab/vmlinuz";

/// Path of the guest's initramfs in the lab host.
pub const GUEST_INITRAMFS: &str = "/lab/guest.cpio";

/// `resources/lab/initramfs/modules.toml`: kernel modules of the lab host and of guests.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModuleLists {
    host: Vec<String>,
    guest: Vec<String>,
}

/// Packs the lab host's initramfs, with a guest's kernel and initramfs inside, into `target`; with systemd, if it is
/// the first process.
pub(crate) fn pack_host(
    assets: &Assets,
    binaries: &Binaries,
    systemd: Option<&Systemd>,
    target: &Path,
    progress: &Progress,
) -> Result<()> {
    let lists = fs::read_to_string(resources().join("initramfs/modules.toml"))
        .context("cannot read the module lists")?;
    let lists: ModuleLists =
        toml::from_str(&lists).context("resources/lab/initramfs/modules.toml")?;
    let host = Base::new(assets, Role::Host, lists.host)?.packed(progress)?;
    let guest = Base::new(assets, Role::Guest, lists.guest)?.packed(progress)?;

    let mut guest_initramfs = fs::read(&guest).context("cannot read the guest's initramfs")?;
    let mut changing = Archive::default();
    changing.program("/bin/guest-probe", binaries.path("guest-probe")?);
    changing.write(&mut guest_initramfs)?;

    let mut out =
        fs::File::create(target).with_context(|| format!("cannot create {}", target.display()))?;
    io::copy(&mut fs::File::open(&host)?, &mut out)
        .with_context(|| format!("cannot copy {}", host.display()))?;
    let mut changing = Archive::default();
    for (name, path) in binaries.iter() {
        changing.program(&format!("/bin/{name}"), path);
    }
    changing.bytes(GUEST_INITRAMFS, guest_initramfs);
    let mut tail = Vec::new();
    changing.write(&mut tail)?;
    if let Some(systemd) = systemd {
        systemd::archive(systemd)?.write(&mut tail)?;
    }
    out.write_all(&tail)
        .with_context(|| format!("cannot write {}", target.display()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Host,
    Guest,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Guest => "guest",
        }
    }
}

/// The part of an initramfs that does not change from run to run.
struct Base<'a> {
    assets: &'a Assets,
    role: Role,
    modules: Vec<String>,
    init: String,
}

impl<'a> Base<'a> {
    fn new(assets: &'a Assets, role: Role, modules: Vec<String>) -> Result<Self> {
        let path = resources().join(format!("initramfs/{}-init", role.name()));
        let init =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self {
            assets,
            role,
            modules,
            init,
        })
    }

    /// Path of the packed archive. It is packed first if it does not exist.
    fn packed(&self, progress: &Progress) -> Result<PathBuf> {
        let dir = cache_dir().join("initramfs");
        let path = dir.join(format!("{}-{}.cpio", self.role.name(), self.key()?));
        if path.is_file() {
            return Ok(path);
        }
        progress.step(&format!("packing the {}'s file system", self.role.name()));
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        // Two processes may pack at the same time; the last rename wins, with equal contents.
        let unfinished = dir.join(format!("{}-{}", self.role.name(), std::process::id()));
        let staging = unfinished.join("staging");
        fs::create_dir_all(&staging)
            .with_context(|| format!("cannot create {}", staging.display()))?;
        let result = self.pack(&staging).and_then(|bytes| {
            let file = unfinished.join("cpio");
            fs::write(&file, bytes).context("cannot write the archive")?;
            fs::rename(&file, &path)
                .with_context(|| format!("cannot move {} into place", path.display()))
        });
        // If it remains, it only takes up space.
        drop(fs::remove_dir_all(&unfinished));
        result.map(|()| path)
    }

    /// Key that identifies the archive's contents.
    fn key(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        let mut part = |text: &str| {
            hasher.update(text.as_bytes());
            hasher.update([0]);
        };
        part(FORMAT);
        part(&self.init);
        for module in &self.modules {
            part(module);
        }
        let (kernel, tools) = (&self.assets.kernel, &self.assets.tools);
        for file in [&kernel.image, &tools.busybox, &tools.lspci] {
            let meta = file
                .metadata()
                .with_context(|| format!("cannot look at {}", file.display()))?;
            part(&format!("{} {:?}", meta.len(), meta.modified().ok()));
        }
        let modules = kernel.modules.iter();
        part(
            &modules
                .map(|dir| dir.display().to_string())
                .collect::<String>(),
        );
        let digest = hex(&hasher.finalize());
        Ok(digest.get(..16).unwrap_or(&digest).to_owned())
    }

    /// Programs other than busybox.
    fn programs(&self) -> Vec<&Path> {
        let tools = &self.assets.tools;
        match self.role {
            Role::Host => vec![&tools.lspci, &tools.setpci],
            Role::Guest => vec![&tools.lspci],
        }
    }

    fn pack(&self, staging: &Path) -> Result<Vec<u8>> {
        let (kernel, tools) = (&self.assets.kernel, &self.assets.tools);
        let mut archive = Archive::default();
        for dir in ["/dev", "/proc", "/sys", "/tmp", "/run", "/root", "/etc"] {
            archive.directory(dir);
        }
        archive.script("/init", &self.init);
        archive.program("/bin/busybox", &tools.busybox);
        if let Some(modules) = ModuleTree::of(kernel) {
            modules.select(&self.modules, staging)?;
            self.depmod(staging)?;
            archive.tree("/", staging)?;
        }
        for program in self.programs() {
            let name = program.file_name().unwrap_or_default().to_string_lossy();
            archive.program(&format!("/bin/{name}"), program);
            for library in tools.libraries(program)? {
                archive.library(&library);
            }
        }
        if self.role == Role::Host {
            archive.file(GUEST_KERNEL, &kernel.image);
        }
        let mut bytes = Vec::new();
        archive.write(&mut bytes)?;
        Ok(bytes)
    }

    fn depmod(&self, staging: &Path) -> Result<()> {
        let (kernel, tools) = (&self.assets.kernel, &self.assets.tools);
        let depmod = tools
            .depmod()
            .arg("-b")
            .arg(staging)
            .arg(&kernel.version)
            .output()
            .context("cannot run depmod")?;
        anyhow::ensure!(
            depmod.status.success(),
            "depmod: {}: {}",
            depmod.status,
            String::from_utf8_lossy(&depmod.stderr).trim()
        );
        Ok(())
    }
}
