//! Every target on its seeds and on mutations of them: seconds, on every test run.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once, PoisonError};

use fuzz::{Mutator, TARGETS, Target, dictionary};

/// Panics of threads that targets have started: of those nobody hears otherwise.
static ELSEWHERE: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// The file names in a directory of the package.
fn names(dir: &str) -> BTreeSet<String> {
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    files(&package().join(dir)).iter().map(name).collect()
}

/// Notes panics of threads that are no test's.
fn watch_threads() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            if !thread.name().is_some_and(|name| name.starts_with("smoke_")) {
                let mut elsewhere = ELSEWHERE.lock().unwrap_or_else(PoisonError::into_inner);
                elsewhere.push(info.to_string());
            }
            before(info);
        }));
    });
}

/// Runs one input. If that fails, says which, and keeps it.
fn run(target: &Target, input: &[u8], what: &str) {
    let run = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let elsewhere = ELSEWHERE.lock().unwrap_or_else(PoisonError::into_inner);
    if run.is_err() || !elsewhere.is_empty() {
        let name = format!("{}-failed", target.name);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::write(&path, input).unwrap();
        panic!(
            "target {}, {what}: {} bytes in {}\n{}\nrun it again with\n    cargo xtask fuzz {} --input {}",
            target.name,
            input.len(),
            path.display(),
            elsewhere.join("\n"),
            target.name,
            path.display(),
        );
    }
}

fn smoke(name: &str) {
    watch_threads();
    let target = Target::named(name).unwrap();
    let files = files(&package().join("seeds").join(name));
    let seeds: Vec<Vec<u8>> = files.iter().map(|path| fs::read(path).unwrap()).collect();
    for (path, seed) in files.iter().zip(&seeds) {
        run(target, seed, &format!("seed {}", path.display()));
    }
    run(target, &[], "the empty input");
    let words = fs::read_to_string(package().join("dictionaries").join(name)).unwrap_or_default();
    let words = dictionary(&words);
    let mutator = Mutator {
        seeds: &seeds,
        words: &words,
    };
    for number in 0..target.mutations {
        let what = format!("mutation {number}");
        run(target, &mutator.input(number), &what);
    }
}

/// A test for each target.
macro_rules! smoke {
    ($($test:ident: $name:literal),* $(,)?) => {
        $(
            #[test]
            fn $test() {
                smoke($name);
            }
        )*

        const TESTED: &[&str] = &[$($name),*];
    };
}

smoke! {
    smoke_answer: "answer",
    smoke_api: "api",
    smoke_domains: "domains",
    smoke_journal: "journal",
    smoke_json: "json",
    smoke_launch: "launch",
    smoke_monitor: "monitor",
    smoke_options: "options",
    smoke_policy: "policy",
    smoke_proxy: "proxy",
    smoke_bus: "bus",
    smoke_device: "device",
    smoke_port: "port",
    smoke_slots: "slots",
    smoke_config: "config",
    smoke_fixture: "fixture",
    smoke_machine: "machine",
    smoke_plan: "plan",
    smoke_regroup: "regroup",
}

#[test]
fn every_target_has_seeds_and_a_test() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|t| t.name.to_owned()).collect();
    assert_eq!(names("seeds"), targets);
    let tested: BTreeSet<String> = TESTED.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(tested, targets);
    assert!(names("dictionaries").is_subset(&targets));
}

#[test]
fn seeds_are_small() {
    for dir in files(&package().join("seeds")) {
        for seed in files(&dir) {
            let bytes = fs::metadata(&seed).unwrap().len();
            assert!(bytes <= 8192, "{} has {bytes} bytes", seed.display());
        }
    }
}

#[test]
fn words_are_unescaped() {
    let words = dictionary("# no word\n\"a\\\"b\"\nname=\"\\x0d\\\\\"\n\nnone\n");
    assert_eq!(words, [b"a\"b".to_vec(), b"\r\\".to_vec()]);
}
