//! The lab's own QEMU, whose switches route: built from Debian's sources with the files of `resources/qemu`.
//!
//! The build takes a few minutes, so the result stays in the cache until these files change. It runs with the firmware
//! and the libraries of the packaged QEMU.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::SETUP_WAIT;
use super::apt::{Apt, Package};
use super::build::{clear, ensure_tools, key, log_of, run};
use super::store::{Store, hash};
use crate::lock::FileLock;
use crate::paths::{cache_dir, resources};
use crate::progress::Progress;

/// Change this when something other than the files in `resources/qemu` changes the build.
const FORMAT: &str = "1";

/// Releases whose sources are tried. The files were written for QEMU 10.0.
const SUITES: [&str; 2] = ["bookworm-backports", "trixie"];

/// Tools that the build of QEMU needs, by program and Debian package.
const TOOLS: [(&str, &str); 7] = [
    ("gcc", "gcc"),
    ("ld", "binutils"),
    ("make", "make"),
    ("patch", "patch"),
    ("pkg-config", "pkgconf"),
    ("python3", "python3-venv"),
    ("xz", "xz-utils"),
];

/// Headers and libraries for the build, by Debian package. They are unpacked beside QEMU, not installed.
const LIBRARIES: [&str; 15] = [
    "libglib2.0-dev",
    "libglib2.0-0",
    "libpcre2-dev",
    "libpcre2-8-0",
    "libffi-dev",
    "zlib1g-dev",
    "zlib1g",
    "libmount-dev",
    "libblkid-dev",
    "libselinux1-dev",
    "libsepol-dev",
    "libpixman-1-dev",
    "libpixman-1-0",
    "libfdt-dev",
    "libfdt1",
];

/// The build system, from PyPI: QEMU 10 needs a newer one than Debian 12 has.
const PYTHON_PACKAGES: [&str; 7] = [
    "meson==1.5.0",
    "pycotap",
    "ninja",
    "tomli",
    "distlib",
    "setuptools",
    "wheel",
];

const CONFIGURE: [&str; 13] = [
    "--disable-download",
    "--disable-install-blobs",
    "--target-list=x86_64-softmmu",
    "--disable-docs",
    "--without-default-features",
    "--enable-trace-backends=log",
    "--enable-tcg",
    "--enable-kvm",
    "--enable-fdt=system",
    "--enable-system",
    "--enable-pixman",
    "--disable-werror",
    "--disable-debug-info",
];

/// Finds the program in the cache, or builds it.
///
/// # Errors
/// A tool is missing, the sources cannot be downloaded, or the build fails; the error says what to do.
pub(super) fn ensure(progress: &Progress) -> Result<PathBuf> {
    let cache = cache_dir();
    let _lock = FileLock::wait(
        &cache.join("own-qemu.lock"),
        SETUP_WAIT,
        "waiting for another build of QEMU",
        progress,
    )?;
    let files = Files::read()?;
    let place = files.place(&cache);
    if place.is_file() {
        return Ok(place);
    }
    ensure_tools("QEMU", &TOOLS, &[])?;
    let work = cache.join("own-qemu.work");
    clear(&work)?;
    let built = build(&files, &cache, &work, progress);
    let program =
        built.with_context(|| format!("cannot build QEMU; its log is in {}", log_of(&work)))?;
    // It is renamed into place when complete, so anything with this name is complete.
    fs::rename(&program, &place)
        .with_context(|| format!("cannot move {} into place", place.display()))?;
    clear(&work)?;
    progress.step("built a QEMU whose switches route");
    Ok(place)
}

/// The program, if it was built.
pub(super) fn find() -> Result<Option<PathBuf>> {
    let place = Files::read()?.place(&cache_dir());
    Ok(place.is_file().then_some(place))
}

/// Files to add to QEMU's tree: paths below it, and their text.
struct Files {
    patch: String,
    sources: Vec<(PathBuf, String)>,
}

impl Files {
    fn read() -> Result<Self> {
        let dir = resources().with_file_name("qemu");
        let text = |path: &Path| {
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let below = Path::new("hw/pci");
        let listed = fs::read_dir(dir.join(below))
            .with_context(|| format!("cannot list {}", dir.join(below).display()))?;
        let mut names = listed
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<Result<Vec<_>, _>>()?;
        names.sort();
        let sources = names.iter().map(|name| below.join(name));
        Ok(Self {
            patch: text(&dir.join("lab.patch"))?,
            sources: sources
                .map(|path| Ok((path.clone(), text(&dir.join(path))?)))
                .collect::<Result<_>>()?,
        })
    }

    fn place(&self, cache: &Path) -> PathBuf {
        let sources = self.sources.iter().map(|(_, text)| text.as_str());
        let key = key([FORMAT, &self.patch].into_iter().chain(sources));
        cache.join(format!("own-qemu-{key}"))
    }

    fn put_into(&self, tree: &Path, work: &Path, progress: &Progress) -> Result<()> {
        for (path, text) in &self.sources {
            fs::write(tree.join(path), text)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        let patch = work.join("lab.patch");
        fs::write(&patch, &self.patch).context("cannot write the patch")?;
        let mut command = Command::new("patch");
        command.args(["--strip", "1", "--input"]).arg(&patch);
        run(command.current_dir(tree), work, "patching QEMU", progress)
    }
}

fn build(files: &Files, cache: &Path, work: &Path, progress: &Progress) -> Result<PathBuf> {
    let tree = work.join("tree");
    fs::create_dir_all(&tree).with_context(|| format!("cannot create {}", tree.display()))?;
    let tarball = fetch_sources(cache, work, progress)?;
    let libraries = fetch_libraries(cache, progress)?;
    let mut tar = Command::new("tar");
    tar.arg("--extract").arg("--file").arg(tarball);
    tar.args(["--strip-components", "1", "--directory"])
        .arg(&tree);
    run(&mut tar, work, "unpacking QEMU's sources", progress)?;
    files.put_into(&tree, work, progress)?;
    // Debian's tarball does not include the UEFI firmware.
    let blobs = tree.join("pc-bios/meson.build");
    let text = fs::read_to_string(&blobs).context("QEMU's sources lack pc-bios")?;
    fs::write(
        &blobs,
        text.replace("if unpack_edk2_blobs", "if false and unpack_edk2_blobs"),
    )?;
    let venv = build_system(work, progress)?;
    let build = tree.join("build");
    fs::create_dir_all(&build)?;
    let path = env::var_os("PATH").unwrap_or_default();
    let paths = [venv.join("bin")]
        .into_iter()
        .chain(env::split_paths(&path));
    let path = env::join_paths(paths).context("the cache has a colon in its path")?;
    let lib = libraries.join("usr/lib/x86_64-linux-gnu");
    let in_build = |program: &Path| {
        let mut command = Command::new("nice");
        command.arg(program).current_dir(&build);
        command.env("PATH", &path);
        command.env("PKG_CONFIG_SYSROOT_DIR", &libraries);
        command.env("PKG_CONFIG_LIBDIR", lib.join("pkgconfig"));
        command
    };
    let mut configure = in_build(&tree.join("configure"));
    configure
        .args(CONFIGURE)
        .arg(format!("--python={}", venv.join("bin/python3").display()));
    let include = libraries.join("usr/include");
    configure.arg(format!("--extra-cflags=-I{}", include.display()));
    let low = libraries.join("lib/x86_64-linux-gnu");
    let flags = format!("-L{} -L{}", lib.display(), low.display());
    configure.arg(format!("--extra-ldflags={flags}"));
    run(&mut configure, work, "configuring QEMU", progress)?;
    let mut ninja = in_build(&venv.join("bin/ninja"));
    ninja.args(["--verbose", "qemu-system-x86_64"]);
    run(&mut ninja, work, "building QEMU, 1600 files", progress)?;
    let program = build.join("qemu-system-x86_64");
    let mut strip = Command::new("strip");
    run(strip.arg(&program), work, "stripping QEMU", progress)?;
    Ok(program)
}

/// The upstream tarball of Debian's QEMU.
fn fetch_sources(cache: &Path, work: &Path, progress: &Progress) -> Result<PathBuf> {
    let apt = Apt::new(cache)?;
    let mut errors = String::new();
    for suite in SUITES {
        let fetched = apt
            .source_scope(suite, progress)
            .and_then(|scope| scope.upstream_tarball("qemu", work, progress));
        match fetched {
            Ok(file) => {
                ensure!(
                    hash(&file.path)? == file.sha256,
                    "{} arrived damaged",
                    file.path.display()
                );
                return Ok(file.path);
            }
            Err(error) => errors.push_str(&format!("\n  {suite}: {error:#}")),
        }
    }
    bail!("cannot fetch the sources of QEMU:{errors}")
}

/// Root of the unpacked libraries.
fn fetch_libraries(cache: &Path, progress: &Progress) -> Result<PathBuf> {
    const SET: &str = "qemu-libraries";
    let store = Store::new(cache);
    if let Some(root) = store.find(SET) {
        return Ok(root);
    }
    let apt = Apt::new(cache)?;
    let scope = apt.scope(&[apt.codename()], progress)?;
    let packages: Vec<Package> = scope.packages(&LIBRARIES)?;
    store.install(SET, &packages, progress)
}

/// A Python environment with meson and ninja.
fn build_system(work: &Path, progress: &Progress) -> Result<PathBuf> {
    let venv = work.join("venv");
    let what = "setting up meson and ninja";
    let mut python = Command::new("python3");
    run(python.args(["-m", "venv"]).arg(&venv), work, what, progress)?;
    let mut pip = Command::new(venv.join("bin/pip"));
    pip.args(["install", "--disable-pip-version-check", "--no-input"]);
    run(pip.args(PYTHON_PACKAGES), work, what, progress)?;
    Ok(venv)
}
