//! Selects kernel modules and their dependencies.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::assets::Kernel;

/// The modules of a kernel package.
pub(super) struct ModuleTree<'a> {
    modules: &'a Path,
    version: &'a str,
}

impl<'a> ModuleTree<'a> {
    /// `None` for a kernel without modules.
    pub(super) fn of(kernel: &'a Kernel) -> Option<Self> {
        Some(Self {
            modules: kernel.modules.as_deref()?,
            version: &kernel.version,
        })
    }

    /// Puts the named modules and all their dependencies, uncompressed, below `staging`, with the files that depmod
    /// needs.
    pub(super) fn select(&self, names: &[String], staging: &Path) -> Result<()> {
        let mut known = BTreeMap::new();
        let loadable = self.modules.join("kernel");
        // The directory does not exist for a kernel that has all of them built in.
        if loadable.exists() {
            find_modules(&loadable, &mut known)?;
        }
        let built_in = self.built_in()?;
        let target = staging.join("lib/modules").join(self.version);
        let mut waiting: Vec<String> = names.iter().map(|name| canonical(name)).collect();
        let mut done = BTreeSet::new();
        while let Some(name) = waiting.pop() {
            if built_in.contains(&name) || !done.insert(name.clone()) {
                continue;
            }
            let path = known
                .get(&name)
                .with_context(|| format!("Linux {} has no module {name}", self.version))?;
            let image = read_module(path)?;
            waiting.extend(dependencies(&image));
            let place = path
                .strip_prefix(self.modules)
                .unwrap_or(path)
                .with_file_name(format!("{name}.ko"));
            write(&target.join(place), &image)?;
        }
        for file in [
            "modules.order",
            "modules.builtin",
            "modules.builtin.modinfo",
        ] {
            let source = self.modules.join(file);
            let bytes =
                fs::read(&source).with_context(|| format!("cannot read {}", source.display()))?;
            write(&target.join(file), &bytes)?;
        }
        Ok(())
    }

    fn built_in(&self) -> Result<BTreeSet<String>> {
        let path = self.modules.join("modules.builtin");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(text.lines().filter_map(module_name).collect())
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
    }
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn find_modules(dir: &Path, known: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            find_modules(&path, known)?;
        } else if let Some(name) = path.to_str().and_then(module_name) {
            known.insert(name, path);
        }
    }
    Ok(())
}

/// `kernel/…/kvm-amd.ko.xz` is the module `kvm_amd`.
fn module_name(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (name, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".gz" | ".zst").then(|| canonical(name))
}

/// Canonical form of a module's name: the kernel treats `-` and `_` as equal.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut image = Vec::new();
    let result = match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => (&file).read_to_end(&mut image),
        Some("xz") => lzma_rust2::XzReader::new(&file, true).read_to_end(&mut image),
        other => bail!(
            "{}: compressed as {other:?}, which is not known",
            path.display()
        ),
    };
    result.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(image)
}

/// Dependencies of a module, which `modinfo` shows as `depends:`: a string in the section `.modinfo`. The key cannot
/// occur elsewhere after a zero byte, so the section is not looked up.
fn dependencies(image: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = image.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value: Vec<u8> = image
        .iter()
        .skip(start + KEY.len())
        .take_while(|byte| **byte != 0)
        .copied()
        .collect();
    String::from_utf8_lossy(&value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(canonical)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_becomes_a_module_name() {
        assert_eq!(module_name("kernel/a/kvm-amd.ko.xz").unwrap(), "kvm_amd");
        assert_eq!(module_name("kernel/a/nvme.ko").unwrap(), "nvme");
        assert_eq!(module_name("kernel/a/Makefile"), None);
    }

    #[test]
    fn dependencies_are_read_out_of_the_image() {
        let image = b"\x7fELF...\0license=GPL\0depends=vfio,vfio-pci-core\0name=x\0";
        assert_eq!(dependencies(image), ["vfio", "vfio_pci_core"]);
        assert!(dependencies(b"\0depends=\0").is_empty());
        assert!(dependencies(b"no such key").is_empty());
    }

    #[test]
    fn a_compressed_module_and_its_dependency_are_selected() {
        let dir = tempfile::tempdir().unwrap();
        let modules = dir.path().join("7.2.0-test");
        fs::create_dir_all(modules.join("kernel/drivers")).unwrap();
        let put = |name: &str, bytes: &[u8]| fs::write(modules.join(name), bytes).unwrap();
        put("kernel/drivers/vfio-pci.ko", b"x\0depends=vfio,built-in\0");
        put("kernel/drivers/vfio.ko", b"x\0depends=\0");
        put("kernel/drivers/other.ko", b"x\0depends=\0");
        put("modules.builtin", b"kernel/lib/built-in.ko\n");
        put("modules.order", b"");
        put("modules.builtin.modinfo", b"");
        let kernel = Kernel {
            image: modules.join("vmlinuz"),
            modules: Some(modules.clone()),
            version: "7.2.0-test".into(),
        };
        let staging = dir.path().join("staging");
        let tree = ModuleTree::of(&kernel).unwrap();
        tree.select(&["vfio-pci".into()], &staging).unwrap();
        let out = staging.join("lib/modules/7.2.0-test");
        assert!(out.join("kernel/drivers/vfio_pci.ko").is_file());
        assert!(out.join("kernel/drivers/vfio.ko").is_file());
        assert!(!out.join("kernel/drivers/other.ko").exists());
        let error = tree.select(&["nope".into()], &staging).unwrap_err();
        assert_eq!(error.to_string(), "Linux 7.2.0-test has no module nope");

        fs::remove_dir_all(modules.join("kernel")).unwrap();
        tree.select(&["built_in".into()], &staging).unwrap();
        assert!(tree.select(&["vfio-pci".into()], &staging).is_err());
    }
}
