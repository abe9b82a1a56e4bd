//! Reading of sysfs: against `lspci`, and against reading alone.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use iommu_group::{Host, Sysfs, Topology};

use crate::machine::OnDisk;

/// The machine as the crate reads it.
pub(crate) fn scan(machine: &OnDisk) -> Topology {
    Topology::scan(&Sysfs::new(machine.root()), Host::default()).expect("scanning the machine")
}

/// Measures scanning; the largest machine is also read by others, one right after the other.
pub(crate) fn bench(criterion: &mut Criterion, machine: &OnDisk, compare: bool) -> Topology {
    let topology = scan(machine);
    let size = machine.functions;
    assert_eq!(topology.functions().len(), size);
    let mut group = criterion.benchmark_group("scan");
    group.sampling_mode(SamplingMode::Flat);
    group.throughput(Throughput::Elements(size as u64));
    group.bench_function(BenchmarkId::new("scan", size), |b| b.iter(|| scan(machine)));
    if compare {
        group.bench_function(BenchmarkId::new("bare", size), |b| {
            b.iter(|| bare(&machine.root()));
        });
        if let Some(lspci) = Lspci::find() {
            lspci.check(machine);
            group.bench_function(BenchmarkId::new("lspci", size), |b| {
                b.iter(|| lspci.run(&machine.root()));
            });
        } else {
            eprintln!("SKIPPED: no lspci. Install pciutils, or name one with LSPCI.");
        }
    }
    group.finish();
    topology
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
    libraries: Option<OsString>,
}

impl Lspci {
    fn find() -> Option<Self> {
        let lspci = Self {
            program: env::var_os("LSPCI").map_or_else(|| "lspci".into(), PathBuf::from),
            libraries: env::var_os("LSPCI_LIBRARIES"),
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
    fn check(&self, machine: &OnDisk) {
        let output = self
            .listing(&machine.root())
            .output()
            .expect("running lspci");
        let text = String::from_utf8_lossy(&output.stdout);
        let functions = text.lines().filter(|line| line.starts_with("0")).count();
        assert_eq!(functions, machine.functions);
        assert!(text.contains("Access Control Services"));
    }
}
