//! Queries and downloads packages with apt, without changing the machine's package lists and without installing
//! anything.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::source::Source;
use crate::paths::find_program;
use crate::progress::Progress;

/// The machine's apt.
pub(super) struct Apt {
    dir: PathBuf,
    codename: String,
    sources: Vec<Source>,
}

/// A file of a source package.
pub(super) struct SourceFile {
    pub(super) path: PathBuf,
    /// In hexadecimal digits, as in the archive's lists.
    pub(super) sha256: String,
}

/// apt with separate package lists for some suites.
pub(super) struct Scope {
    dir: PathBuf,
}

/// A package that can be downloaded.
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) size_bytes: u64,
    pub(super) sha256: String,
    scope: PathBuf,
}

impl Apt {
    /// Determines which mirror the machine uses.
    pub(super) fn new(cache: &Path) -> Result<Self> {
        for program in ["apt-get", "apt-cache", "dpkg-deb"] {
            ensure!(
                find_program(program).is_some(),
                "there is no {program} here"
            );
        }
        let release = fs::read_to_string("/etc/os-release").context("cannot read os-release")?;
        let codename = release
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .context("/etc/os-release names no release")?
            .trim_matches('"')
            .to_owned();
        let sources = read_sources(Path::new("/etc/apt"))?;
        ensure!(
            sources.iter().any(|source| source.has_suite(&codename)),
            "no apt source of this machine has the suite {codename}"
        );
        Ok(Self {
            dir: cache.join("apt"),
            codename,
            sources,
        })
    }

    pub(super) fn codename(&self) -> &str {
        &self.codename
    }

    /// Downloads the package lists of suites. The machine's own release includes its updates.
    pub(super) fn scope(&self, suites: &[&str], progress: &Progress) -> Result<Scope> {
        let dir = self.dir.join(suites.join("+"));
        let text = self.stanzas(suites)?;
        Self::update(dir, &text, &suites.join(" and "), progress)
    }

    /// Downloads the list of the source packages of a suite.
    pub(super) fn source_scope(&self, suite: &str, progress: &Progress) -> Result<Scope> {
        let dir = self.dir.join(format!("{suite}+src"));
        let text = self.stanzas(&[suite])?;
        let text = text.replace("Types: deb\n", "Types: deb-src\n");
        Self::update(dir, &text, &format!("{suite}'s sources"), progress)
    }

    /// The sources of suites, in deb822 format.
    fn stanzas(&self, suites: &[&str]) -> Result<String> {
        let archive = self
            .sources
            .iter()
            .find(|source| source.has_suite(&self.codename))
            .context("no source to copy")?;
        let mut text = String::new();
        for suite in suites {
            if *suite == self.codename {
                let own = self.sources.iter().filter(|s| s.belongs_to(suite));
                text.extend(own.map(Source::to_deb822));
            } else {
                text.push_str(&archive.with_suite(suite).to_deb822());
            }
        }
        Ok(text)
    }

    fn update(dir: PathBuf, sources: &str, what: &str, progress: &Progress) -> Result<Scope> {
        for sub in ["lists/partial", "cache/archives/partial"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path)
                .with_context(|| format!("cannot create {}", path.display()))?;
        }
        fs::write(dir.join("lab.sources"), sources).context("cannot write the apt source")?;
        let scope = Scope { dir };
        let what = format!("reading the package lists of {what}");
        let started = Instant::now();
        watch(
            apt("apt-get", &scope.dir).args(["-o", "APT::Update::Error-Mode=any", "update"]),
            &scope.dir,
            &what,
            || progress.alive(&what, started),
        )?;
        Ok(scope)
    }
}

impl Scope {
    /// Packages and all their dependencies that are not installed on the machine.
    pub(super) fn closure(&self, names: &[&str], suite: &str) -> Result<Vec<Package>> {
        let mut command = apt("apt-get", &self.dir);
        command
            .args(["-t", suite, "--print-uris", "--yes", "--reinstall"])
            .args(["--no-install-recommends", "install"])
            .args(names);
        let listing = output(&mut command)?;
        let wanted: Vec<String> = listing.lines().filter_map(parse_uri_line).collect();
        ensure!(
            !wanted.is_empty(),
            "apt offers nothing to download for {}",
            names.join(", ")
        );
        self.show(&wanted)
    }

    /// The packages of the suite's current kernel, found through the dependencies of `linux-image-amd64`.
    pub(super) fn kernel(&self) -> Result<Vec<Package>> {
        let meta = self.depends("linux-image-amd64")?;
        let image = meta
            .iter()
            .find(|name| name.starts_with("linux-image-"))
            .context("linux-image-amd64 depends on no kernel")?;
        let parts: Vec<String> = self
            .depends(image)?
            .into_iter()
            .filter(|name| {
                ["linux-base-", "linux-binary-", "linux-modules-"]
                    .iter()
                    .any(|prefix| name.starts_with(prefix))
            })
            .collect();
        ensure!(
            parts.len() == 3,
            "{image} is not made of linux-base, linux-binary and linux-modules, but of {parts:?}"
        );
        self.show(&parts)
    }

    /// A package with sources: `name`, or the dependency of `newest` if `name` no longer exists.
    pub(super) fn sources(&self, name: &str, newest: &str) -> Result<Vec<Package>> {
        if let Ok(found) = self.show(&[name.to_owned()]) {
            return Ok(found);
        }
        let all = self.depends(newest)?;
        let found = all.into_iter().find(|package| package.starts_with(newest));
        self.show(&[found.with_context(|| format!("there is neither {name} nor {newest}"))?])
    }

    /// Downloads the upstream tarball of a source package into `dir`. Debian's part of the package is not needed; an
    /// archive that has a newer one may have dropped it.
    pub(super) fn upstream_tarball(
        &self,
        name: &str,
        dir: &Path,
        progress: &Progress,
    ) -> Result<SourceFile> {
        let mut command = apt("apt-get", &self.dir);
        command.current_dir(dir);
        let listing = output(command.args(["--print-uris", "source", name]))?;
        let found = listing.lines().find_map(parse_source_line);
        let (file, size, sha256) =
            found.with_context(|| format!("the source package {name} has no upstream tarball"))?;
        let what = format!("downloading {file}, {} MB", size / 1_000_000);
        let mut command = apt("apt-get", &self.dir);
        command.current_dir(dir);
        command.args(["--download-only", "source", name]);
        let fetched = watch(&mut command, &self.dir, &what, || {
            progress.amount(&what, size_of_files(dir), size);
        });
        let path = dir.join(file);
        if path.metadata().is_ok_and(|meta| meta.len() == size) {
            return Ok(SourceFile { path, sha256 });
        }
        fetched?;
        bail!("apt did not download {}", path.display())
    }

    /// These packages, without their dependencies.
    pub(super) fn packages(&self, names: &[&str]) -> Result<Vec<Package>> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        self.show(&names)
    }

    fn depends(&self, name: &str) -> Result<Vec<String>> {
        let text = output(apt("apt-cache", &self.dir).args(["--no-all-versions", "show", name]))?;
        let stanza = parse_stanzas(&text);
        let depends = stanza
            .first()
            .and_then(|fields| fields.get("Depends"))
            .with_context(|| format!("{name} depends on nothing"))?;
        Ok(depends
            .split([',', '|'])
            .filter_map(|word| word.split_ascii_whitespace().next())
            .map(str::to_owned)
            .collect())
    }

    fn show(&self, wanted: &[String]) -> Result<Vec<Package>> {
        let text = output(
            apt("apt-cache", &self.dir)
                .args(["--no-all-versions", "show"])
                .args(wanted),
        )?;
        let packages: Vec<Package> = parse_stanzas(&text)
            .into_iter()
            .map(|mut fields| {
                let mut field = |key: &str| {
                    fields
                        .remove(key)
                        .with_context(|| format!("a package has no field {key}"))
                };
                Ok(Package {
                    name: field("Package")?,
                    version: field("Version")?,
                    size_bytes: field("Size")?.parse().context("Size is not a number")?,
                    sha256: field("SHA256")?,
                    scope: self.dir.clone(),
                })
            })
            .collect::<Result<_>>()?;
        ensure!(
            packages.len() == wanted.len(),
            "asked apt for {} packages, it knows {}",
            wanted.len(),
            packages.len()
        );
        Ok(packages)
    }
}

/// Downloads packages into an empty directory.
pub(super) fn download(packages: &[Package], dir: &Path, progress: &Progress) -> Result<()> {
    let Some(first) = packages.first() else {
        bail!("nothing to download");
    };
    let total: u64 = packages.iter().map(|package| package.size_bytes).sum();
    let what = format!(
        "downloading {} packages, {} MB",
        packages.len(),
        total / 1_000_000
    );
    let mut command = apt("apt-get", &first.scope);
    command
        .current_dir(dir)
        .arg("download")
        .args(packages.iter().map(|p| format!("{}={}", p.name, p.version)));
    watch(&mut command, &first.scope, &what, || {
        progress.amount(&what, size_of_files(dir), total);
    })
}

/// An apt program that uses only our package lists and keeps its cache beside them.
fn apt(program: &str, dir: &Path) -> Command {
    let mut command = Command::new(program);
    let path = |sub: &str| dir.join(sub).display().to_string();
    for option in [
        format!("Dir::Etc::SourceList={}", path("lab.sources")),
        "Dir::Etc::SourceParts=/dev/null".to_owned(),
        format!("Dir::State::Lists={}", path("lists")),
        format!("Dir::Cache={}", path("cache")),
        "APT::Sandbox::User=root".to_owned(),
        "Acquire::Languages=none".to_owned(),
        "Acquire::Retries=3".to_owned(),
    ] {
        command.arg("-o").arg(option);
    }
    command.env("LC_ALL", "C").stdin(Stdio::null());
    command
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).context("apt's output is not UTF-8")
}

/// Runs a command and calls `tick` a few times a second. Standard error goes to a file in `dir`, because a pipe that is
/// not read could fill.
fn watch(command: &mut Command, dir: &Path, what: &str, mut tick: impl FnMut()) -> Result<()> {
    let log = dir.join("apt.log");
    let errors =
        fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    let mut child = command
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .with_context(|| format!("cannot run {:?}", command.get_program()))?;
    loop {
        tick();
        if let Some(status) = child.try_wait()? {
            let said = fs::read_to_string(&log).unwrap_or_default();
            ensure!(status.success(), "{what}: {status}: {}", said.trim());
            return Ok(());
        }
        thread::sleep(Duration::from_millis(250));
    }
}

fn size_of_files(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .filter(fs::Metadata::is_file)
        .map(|meta| meta.len())
        .sum()
}

fn read_sources(etc: &Path) -> Result<Vec<Source>> {
    let mut files = vec![etc.join("sources.list")];
    if let Ok(entries) = fs::read_dir(etc.join("sources.list.d")) {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        let parse = match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => Source::parse_list,
            Some("sources") => Source::parse_deb822,
            _ => continue,
        };
        if let Ok(text) = fs::read_to_string(&file) {
            sources.extend(parse(&text));
        }
    }
    Ok(sources)
}

/// `'http://…' name_version_arch.deb size hash` as `name=version`.
fn parse_uri_line(line: &str) -> Option<String> {
    let (_, rest) = line.strip_prefix('\'')?.split_once("' ")?;
    let file = rest.split_ascii_whitespace().next()?;
    let mut parts = file.split('_');
    let (name, version) = (parts.next()?, parts.next()?);
    Some(format!("{name}={}", version.replace("%3a", ":")))
}

/// `'http://…' name_version.orig.tar.xz size SHA256:hash` as name, size in bytes and hash.
fn parse_source_line(line: &str) -> Option<(String, u64, String)> {
    let (_, rest) = line.strip_prefix('\'')?.split_once("' ")?;
    let mut words = rest.split_ascii_whitespace();
    let file = words.next().filter(|file| file.ends_with(".orig.tar.xz"))?;
    let size = words.next()?.parse().ok()?;
    let hash = words.next()?.strip_prefix("SHA256:")?;
    Some((file.to_owned(), size, hash.to_owned()))
}

/// Fields of control stanzas. Continuation lines are skipped; they are not needed here.
fn parse_stanzas(text: &str) -> Vec<BTreeMap<String, String>> {
    text.split("\n\n")
        .map(|stanza| {
            stanza
                .lines()
                .filter(|line| !line.starts_with([' ', '\t']))
                .filter_map(|line| line.split_once(": "))
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect::<BTreeMap<_, _>>()
        })
        .filter(|fields| !fields.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_uris_names_package_and_version() {
        let line =
            "'http://m.example/pool/x.deb' libpci3_1%3a3.9.0-4_amd64.deb 67432 MD5Sum:50071a";
        assert_eq!(parse_uri_line(line).unwrap(), "libpci3=1:3.9.0-4");
        assert_eq!(parse_uri_line("Reading package lists..."), None);
    }

    #[test]
    fn the_upstream_tarball_is_told_from_the_other_files_of_a_source_package() {
        let tarball = "'http://x/q_1%2bds.orig.tar.xz' q_1+ds.orig.tar.xz 17 SHA256:ab";
        let expected = ("q_1+ds.orig.tar.xz".to_owned(), 17, "ab".to_owned());
        assert_eq!(parse_source_line(tarball), Some(expected));
        let debian = "'http://x/q_1.debian.tar.xz' q_1.debian.tar.xz 17 SHA256:ab";
        assert_eq!(parse_source_line(debian), None);
    }

    #[test]
    fn stanzas_are_read_without_their_long_fields() {
        let text = "Package: a\nDescription: x\n long\n text: y\nSize: 3\n\nPackage: b\n\n";
        let stanzas = parse_stanzas(text);
        assert_eq!(stanzas.len(), 2);
        assert_eq!(stanzas[0].get("Size").unwrap(), "3");
        assert_eq!(stanzas[1].get("Package").unwrap(), "b");
    }
}
