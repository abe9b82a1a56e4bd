//! The kernel of the lab host and of guests.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::apt::Apt;
use super::store::Store;
use crate::progress::Progress;

/// Suite with a kernel that has `PCI_P2PDMA` and `VFIO_PCI_DMABUF`.
pub(super) const KERNEL_SUITE: &str = "trixie-backports";

/// Offset of the field that holds the distance of the version string from [`HEADER_END`], and the magic number of the
/// header (linux Documentation/arch/x86/boot.rst: kernel_version, header).
const VERSION_AT: usize = 0x20e;
const MAGIC_AT: usize = 0x202;
const MAGIC: &[u8] = b"HdrS";
const HEADER_END: usize = 0x200;

/// A kernel and its modules.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    pub(crate) image: PathBuf,
    /// A `lib/modules/<version>` directory. A kernel with everything built in may have none.
    pub(crate) modules: Option<PathBuf>,
    pub(crate) version: String,
}

impl Kernel {
    const SET: &str = "kernel";

    pub(super) fn find(store: &Store) -> Result<Option<Self>> {
        match (env::var_os("LAB_KERNEL"), env::var_os("LAB_MODULES")) {
            (Some(image), Some(modules)) => {
                Self::at(PathBuf::from(image), PathBuf::from(modules)).map(Some)
            }
            (Some(image), None) => Self::alone(PathBuf::from(image)).map(Some),
            (None, None) => Ok(store
                .find(Self::SET)
                .and_then(|root| Self::in_root(&root).ok())),
            (None, Some(_)) => bail!("LAB_MODULES belongs to a LAB_KERNEL, which is not set"),
        }
    }

    pub(super) fn fetch(apt: &Apt, store: &Store, progress: &Progress) -> Result<Self> {
        apt.scope(&[KERNEL_SUITE], progress)
            .and_then(|scope| scope.kernel())
            .and_then(|packages| store.install(Self::SET, &packages, progress))
            .and_then(|root| Self::in_root(&root))
            .context("cannot fetch a kernel")
    }

    /// The kernel in the unpacked packages.
    fn in_root(root: &Path) -> Result<Self> {
        let dir = root.join("usr/lib/modules");
        let mut versions = fs::read_dir(&dir)
            .with_context(|| format!("cannot list {}", dir.display()))?
            .flatten();
        let modules = versions
            .next()
            .with_context(|| format!("{} is empty", dir.display()))?
            .path();
        Self::at(modules.join("vmlinuz"), modules)
    }

    fn at(image: PathBuf, modules: PathBuf) -> Result<Self> {
        ensure!(image.is_file(), "no kernel image at {}", image.display());
        let built_in = modules.join("modules.builtin");
        ensure!(
            built_in.is_file(),
            "{} is not there: is this a lib/modules/<version>?",
            built_in.display()
        );
        let version = modules
            .canonicalize()?
            .file_name()
            .with_context(|| format!("{} names no version", modules.display()))?
            .to_string_lossy()
            .into_owned();
        Ok(Self {
            image,
            modules: Some(modules),
            version,
        })
    }

    /// A kernel without modules.
    fn alone(image: PathBuf) -> Result<Self> {
        let bytes = fs::read(&image)
            .with_context(|| format!("cannot read LAB_KERNEL {}", image.display()))?;
        let version = version_of(&bytes)
            .with_context(|| format!("LAB_KERNEL {} is no bzImage", image.display()))?;
        Ok(Self {
            image,
            modules: None,
            version,
        })
    }
}

/// `7.2.12 (builder@host) #1 …` in a bzImage, up to the blank: the output of `uname -r`.
pub(super) fn version_of(image: &[u8]) -> Option<String> {
    let magic = image.get(MAGIC_AT..MAGIC_AT + MAGIC.len())?;
    let [low, high] = *image.get(VERSION_AT..VERSION_AT + 2)? else {
        return None;
    };
    let text = image.get(HEADER_END + usize::from(u16::from_le_bytes([low, high]))..)?;
    let end = text.iter().position(|byte| matches!(byte, b' ' | 0))?;
    let version = String::from_utf8(text.get(..end)?.to_vec()).ok()?;
    (magic == MAGIC && !version.is_empty()).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 0x400];
        image[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(MAGIC);
        image[VERSION_AT..VERSION_AT + 2].copy_from_slice(&0x100_u16.to_le_bytes());
        image[0x300..0x300 + text.len()].copy_from_slice(text);
        image
    }

    #[test]
    fn a_bzimage_says_its_version() {
        let found = version_of(&image(b"7.2.12-lab (root@host) #1 SMP"));
        assert_eq!(found.as_deref(), Some("7.2.12-lab"));
    }

    #[test]
    fn what_is_no_bzimage_has_no_version() {
        assert_eq!(version_of(&image(b"")), None);
        assert_eq!(version_of(b"\x7fELF"), None);
        let mut broken = image(b"7.2");
        broken[VERSION_AT + 1] = 0xff;
        assert_eq!(version_of(&broken), None);
        broken[MAGIC_AT] = 0;
        assert_eq!(version_of(&broken), None);
    }

    #[test]
    fn modules_are_told_from_any_other_directory() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("vmlinuz");
        fs::write(&image, b"").unwrap();
        let error = Kernel::at(image.clone(), dir.path().to_owned()).unwrap_err();
        assert!(error.to_string().contains("modules.builtin"), "{error}");
        let modules = dir.path().join("7.2.12-lab");
        fs::create_dir(&modules).unwrap();
        fs::write(modules.join("modules.builtin"), b"").unwrap();
        assert_eq!(Kernel::at(image, modules).unwrap().version, "7.2.12-lab");
    }
}
