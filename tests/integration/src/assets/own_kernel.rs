//! The lab's own kernel, with iommufd: built from Debian's sources with `resources/lab/kernel.config`.
//!
//! The build takes minutes, so it runs on request, and the result stays in the cache until the configuration changes.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::iter;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};

use super::SETUP_WAIT;
use super::apt::Apt;
use super::build::{clear, ensure_tools, key, log_of, run};
use super::kernel::{KERNEL_SUITE, version_of};
use super::store::Store;
use crate::lock::FileLock;
use crate::paths::{cache_dir, resources};
use crate::progress::Progress;

/// The kernel that the configuration was made for and that the lab's tests are known to pass with. If Debian no longer
/// has this package, its newest one is used.
const SOURCE: &str = "linux-source-7.2";
const NEWEST_SOURCE: &str = "linux-source";

/// Tools that the build of Linux needs, by program and Debian package.
const TOOLS: [(&str, &str); 8] = [
    ("gcc", "gcc"),
    ("make", "make"),
    ("ld", "binutils"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
];
/// A library that objtool is linked with, by header and Debian package.
const LIBELF: (&str, &str) = ("/usr/include/gelf.h", "libelf-dev");

/// Change this when something other than the configuration changes the build.
const FORMAT: &str = "1";

/// A built kernel.
#[derive(Debug, Clone)]
pub struct OwnKernel {
    image: PathBuf,
    modules: Option<PathBuf>,
}

impl OwnKernel {
    /// Returns the kernel that `LAB_KERNEL` names, if it is set. Otherwise finds one in the cache or builds it: ten
    /// minutes on two processors, 165 MB of sources.
    ///
    /// # Errors
    /// A tool is missing, the sources cannot be downloaded, or the build fails; the error says what to do.
    pub fn ensure(progress: &Progress) -> Result<Self> {
        if let Some(image) = env::var_os("LAB_KERNEL") {
            return Ok(Self {
                image: image.into(),
                modules: env::var_os("LAB_MODULES").map(PathBuf::from),
            });
        }
        let cache = cache_dir();
        let _lock = FileLock::wait(
            &cache.join("own-kernel.lock"),
            SETUP_WAIT,
            "waiting for another build of the kernel",
            progress,
        )?;
        let path = resources().join("kernel.config");
        let fragment =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let place = cache.join(format!("own-kernel-{}", key([FORMAT, &fragment])));
        if let Ok(found) = Self::at(&place) {
            return Ok(found);
        }
        ensure_tools("a kernel", &TOOLS, &[LIBELF])?;
        let store = Store::new(&cache);
        let sources = fetch_sources(&cache, &store, progress)?;
        let work = cache.join("own-kernel.work");
        clear(&work)?;
        let built = build(&sources, &fragment, &work, progress)
            .and_then(|tree| pack(&tree, &work.join("root"), progress));
        built.with_context(|| format!("cannot build a kernel; its log is in {}", log_of(&work)))?;
        // It is renamed into place when complete, so anything with this name is complete.
        clear(&place)?;
        fs::rename(work.join("root"), &place)
            .with_context(|| format!("cannot move {} into place", place.display()))?;
        clear(&work)?;
        Self::at(&place)
    }

    /// Names and values of the environment variables that make the lab boot it.
    pub fn variables(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let modules = self.modules.as_deref();
        let modules = modules.map(|path| ("LAB_MODULES", path));
        iter::once(("LAB_KERNEL", self.image.as_path())).chain(modules)
    }

    fn at(place: &Path) -> Result<Self> {
        let modules = fs::read_dir(place.join("lib/modules"))?
            .next()
            .context("no version")??
            .path();
        let image = modules.join("vmlinuz");
        ensure!(image.is_file(), "no image");
        Ok(Self {
            image,
            modules: Some(modules),
        })
    }
}

/// The source archive in Debian's package.
fn fetch_sources(cache: &Path, store: &Store, progress: &Progress) -> Result<PathBuf> {
    const SET: &str = "linux-source";
    let root = match store.find(SET) {
        Some(root) => root,
        None => {
            let scope = Apt::new(cache)?.scope(&[KERNEL_SUITE], progress)?;
            let packages = scope.sources(SOURCE, NEWEST_SOURCE)?;
            store.install(SET, &packages, progress)?
        }
    };
    let dir = root.join("usr/src");
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut paths = entries.flatten().map(|entry| entry.path());
    paths
        .find(|path| path.to_string_lossy().ends_with(".tar.xz"))
        .with_context(|| format!("{} has no sources", dir.display()))
}

/// Unpacks, configures and compiles. Returns the source tree with the results.
fn build(sources: &Path, fragment: &str, work: &Path, progress: &Progress) -> Result<PathBuf> {
    let tree = work.join("tree");
    fs::create_dir_all(&tree)?;
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--file").arg(sources);
    tar.args(["--strip-components", "1", "--directory"])
        .arg(&tree);
    run(&mut tar, work, "unpacking the kernel's sources", progress)?;
    let given = tree.join("lab.config");
    fs::write(&given, fragment).context("cannot write the configuration")?;
    let make = |target: &str| {
        let mut make = Command::new("nice");
        let jobs = thread::available_parallelism().map_or(1, usize::from);
        make.arg("make").arg(format!("-j{jobs}")).arg(target);
        make.current_dir(&tree);
        make
    };
    let configuring = "configuring the kernel";
    run(&mut make("tinyconfig"), work, configuring, progress)?;
    let mut merge = Command::new(tree.join("scripts/kconfig/merge_config.sh"));
    merge.args(["-m", ".config", "lab.config"]);
    run(merge.current_dir(&tree), work, configuring, progress)?;
    run(&mut make("olddefconfig"), work, configuring, progress)?;
    let config = fs::read_to_string(tree.join(".config")).context("no configuration")?;
    let refused = refused(fragment, &config);
    ensure!(
        refused.is_empty(),
        "this kernel does not take {} of resources/lab/kernel.config",
        refused.join(", ")
    );
    run(&mut make("bzImage"), work, "building the kernel", progress)?;
    Ok(tree)
}

/// Lines of a fragment that are missing from the final configuration.
fn refused<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    let taken: BTreeSet<&str> = config.lines().collect();
    let wanted = fragment.lines().filter(|line| line.starts_with("CONFIG_"));
    wanted.filter(|line| !taken.contains(line)).collect()
}

/// Copies what the lab needs from the tree, in the layout of a kernel package.
fn pack(tree: &Path, root: &Path, progress: &Progress) -> Result<()> {
    let image = fs::read(tree.join("arch/x86/boot/bzImage")).context("no image")?;
    let version = version_of(&image).context("the image has no version")?;
    let modules = root.join("lib/modules").join(&version);
    fs::create_dir_all(&modules).with_context(|| format!("cannot create {}", modules.display()))?;
    fs::write(modules.join("vmlinuz"), image)?;
    for (from, to) in [
        (".config", "config"),
        ("modules.builtin", "modules.builtin"),
        ("modules.builtin.modinfo", "modules.builtin.modinfo"),
    ] {
        fs::copy(tree.join(from), modules.join(to)).with_context(|| format!("no {from}"))?;
    }
    // There are no loadable modules.
    fs::write(modules.join("modules.order"), "")?;
    progress.step(&format!("built Linux {version}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_does_not_take_is_named() {
        let fragment = "# words\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_C=\"x\"\n";
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x\"\n";
        assert_eq!(refused(fragment, config), ["CONFIG_B=y"]);
    }

    #[test]
    fn another_configuration_is_another_kernel() {
        assert_eq!(key([FORMAT, "CONFIG_A=y"]), key([FORMAT, "CONFIG_A=y"]));
        assert_ne!(key([FORMAT, "CONFIG_A=y"]), key([FORMAT, "CONFIG_A=n"]));
    }

    #[test]
    fn a_kernel_without_an_image_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let modules = dir.path().join("lib/modules/7.2.12");
        fs::create_dir_all(&modules).unwrap();
        assert!(OwnKernel::at(dir.path()).is_err());
        fs::write(modules.join("vmlinuz"), b"").unwrap();
        let found = OwnKernel::at(dir.path()).unwrap();
        assert_eq!(
            found.variables().last(),
            Some(("LAB_MODULES", modules.as_path()))
        );
    }
}
