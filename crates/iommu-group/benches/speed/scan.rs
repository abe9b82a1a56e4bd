//! Reading of sysfs: against `lspci`, and against reading alone.

use std::env;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use criterion::{BenchmarkId, Criterion, Throughput};
use iommu_group::{Host, Sysfs, Topology};

use crate::machine::Machine;

pub(crate) const SIZES: [usize; 4] = [1_000, 2_000, 5_000, 10_000];

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scan");
    for size in SIZES {
        let machine = Machine::of_functions(size);
        let sysfs = Sysfs::new(machine.root());
        group.throughput(Throughput::Elements(size as u64));
        let scan = || Topology::scan(&sysfs, Host::default()).expect("scanning the machine");
        assert_eq!(scan().functions().len(), size);
        if size == SIZES[3] {
            // Side by side, so that all three see the same machine in the same state.
            group.bench_function(BenchmarkId::new("bare", size), |b| {
                b.iter(|| bare(&machine.root()));
            });
            group.bench_function(BenchmarkId::new("scan", size), |b| b.iter(scan));
            if let Some(lspci) = Lspci::find() {
                lspci.check(&machine);
                group.bench_function(BenchmarkId::new("lspci", size), |b| {
                    b.iter(|| lspci.run(&machine.root()));
                });
            } else {
                eprintln!("SKIPPED: no lspci. Install pciutils, or name one with LSPCI.");
            }
        } else {
            group.bench_function(BenchmarkId::new("scan", size), |b| b.iter(scan));
        }
    }
    group.finish();
}

/// Opens and reads what a scan needs, once each, and makes nothing of it.
fn bare(root: &Path) -> usize {
    let mut buffer = [0; 4096];
    let mut sum = 0;
    let mut read = |path: &Path| {
        let mut file = File::open(path).ok()?;
        file.read(&mut buffer).ok().inspect(|len| sum += len)
    };
    for entry in fs::read_dir(root.join("bus/pci/devices")).expect("listing the functions") {
        let mut path = entry.expect("listing the functions").path();
        let _ = black_box(fs::read_link(&path));
        for name in ["config", "resource", "numa_node", "reset_method"] {
            path.push(name);
            let _ = read(&path);
            path.pop();
        }
        for name in ["driver", "iommu_group"] {
            path.push(name);
            let _ = black_box(fs::read_link(&path));
            path.pop();
        }
        // Of virtual functions more is read: their ids are not in their configuration space.
        path.push("physfn");
        let is_virtual = fs::read_link(&path).is_ok();
        path.pop();
        if is_virtual {
            for name in ["vendor", "device", "subsystem_vendor", "subsystem_device"] {
                path.push(name);
                let _ = read(&path);
                path.pop();
            }
        }
    }
    sum
}

/// `lspci` of pciutils: `LSPCI` names it, and `LSPCI_LIBRARIES` where its libraries are.
struct Lspci {
    program: PathBuf,
    libraries: Option<PathBuf>,
}

impl Lspci {
    fn find() -> Option<Self> {
        let lspci = Self {
            program: env::var_os("LSPCI").map_or_else(|| "lspci".into(), PathBuf::from),
            libraries: env::var_os("LSPCI_LIBRARIES").map(PathBuf::from),
        };
        let found = lspci.command().arg("--version").output().is_ok();
        found.then_some(lspci)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
    }

    fn listing(&self, root: &Path) -> Command {
        let mut command = self.command();
        let path = root.join("bus/pci");
        command
            .arg("-O")
            .arg(format!("sysfs.path={}", path.display()));
        command.arg("-vvv").stderr(Stdio::null());
        command
    }

    fn run(&self, root: &Path) {
        let status = self.listing(root).stdout(Stdio::null()).status();
        assert!(status.is_ok_and(|status| status.success()), "lspci failed");
    }

    /// It reads the machine as a whole, capabilities included.
    fn check(&self, machine: &Machine) {
        let output = self
            .listing(&machine.root())
            .output()
            .expect("running lspci");
        let text = String::from_utf8_lossy(&output.stdout);
        let functions = text.lines().filter(|line| line.starts_with("0")).count();
        assert_eq!(functions, machine.functions.len());
        assert!(text.contains("Access Control Services"));
    }
}
