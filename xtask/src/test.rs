//! `cargo xtask test`: set-up, build and all tests, the fastest steps first.

use std::time::Instant;

use anyhow::{Context, Result};
use lab::{Assets, Binaries, OwnKernel, Progress};
use landlock::{AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};
use xshell::{Cmd, Shell, cmd};

/// Tests of assigned devices, which pass on iommufd and on type1.
const OF_DEVICES: [&str; 8] = [
    "confined",
    "device",
    "dma_conformance",
    "nvme",
    "one_group",
    "policy",
    "two_domains",
    "two_groups",
];

/// Tests that are ignored because they take many minutes.
const LONG: [&str; 2] = ["live_regroup_acs", "schemathesis"];

/// Tests that are ignored unless `CH_BIN` names a cloud-hypervisor.
const OF_CLOUD_HYPERVISOR: [&str; 3] = [
    "cloud_hypervisor",
    "cloud_hypervisor_live",
    "cloud_hypervisor_peers",
];

/// Packages with tests that are ignored because not every machine can run them.
const WITH_NEEDS: [&str; 3] = ["vmm-api", "p2p-vmm", "p2pctl"];

/// A requirement of such tests.
struct Need {
    /// The module of the tests.
    module: &'static str,
    name: &'static str,
    is_here: fn() -> bool,
}

const NEEDS: [Need; 3] = [
    Need {
        module: "needs_kvm::",
        name: "KVM",
        is_here: has_kvm,
    },
    Need {
        module: "needs_landlock::",
        name: "Landlock",
        is_here: has_landlock,
    },
    Need {
        module: "needs_root::",
        name: "root",
        is_here: is_root,
    },
];

fn has_kvm() -> bool {
    std::fs::File::open("/dev/kvm").is_ok()
}

fn has_landlock() -> bool {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    ruleset.handle_access(AccessFs::ReadFile).is_ok()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run the tests that take many minutes too
    #[arg(long)]
    long: bool,
    /// Run the tests of assigned devices instead, on a kernel with iommufd: on iommufd, then on type1. Builds the
    /// kernel if it is missing, which takes at least ten minutes
    #[arg(long)]
    iommufd: bool,
    /// Arguments of the test programs: a filter, `--nocapture`, …
    #[arg(last = true)]
    rest: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let progress = Progress::new();
    let stage = |number: u8, what: &str| progress.step(&format!("[{number}/3] {what}"));
    let started = Instant::now();
    stage(1, "set-up");
    for line in Assets::ensure_routing(&progress)?.describe() {
        progress.step(&format!("      {line}"));
    }
    let kernel = if args.iommufd {
        Some(OwnKernel::ensure(&progress)?)
    } else {
        None
    };
    progress.step(&format!("      {:.0} s", started.elapsed().as_secs_f64()));

    let started = Instant::now();
    stage(2, "building the programs that go into the lab");
    Binaries::build(&progress)?;
    progress.step(&format!("      {:.0} s", started.elapsed().as_secs_f64()));

    let shell = Shell::new()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let rest = &args.rest;
    let test = |command: Cmd<'_>| {
        command
            .env("LAB_LONG", if args.long { "1" } else { "" })
            .quiet()
            .run()
            .context("tests failed; logs of the labs are in target/lab")
    };
    let has_cloud_hypervisor = std::env::var_os("CH_BIN").is_some_and(|path| !path.is_empty());
    // Nothing is printed after this, so that the test runner's summary comes last.
    let Some(kernel) = kernel else {
        stage(3, "tests, unit and lab");
        let all = test(cmd!(
            shell,
            "{cargo} test --locked --workspace --no-fail-fast -- {rest...}"
        ));
        let (here, missing): (Vec<_>, Vec<_>) = NEEDS.iter().partition(|need| (need.is_here)());
        for Need { name, .. } in missing {
            progress.step(&format!("      no {name}: tests that need it stay ignored"));
        }
        let modules: Vec<&str> = here.iter().map(|need| need.module).collect();
        // The arguments of the test programs may contain a filter, and a filter also selects these tests.
        let all = if rest.is_empty() && !modules.is_empty() {
            stage(3, "tests that need something of this machine");
            let packages = WITH_NEEDS.iter().flat_map(|name| ["-p", name]);
            let packages: &Vec<&str> = &packages.collect();
            all.and(test(cmd!(
                shell,
                "{cargo} test --locked --no-fail-fast {packages...} -- --ignored {modules...}"
            )))
        } else {
            all
        };
        let long = if args.long {
            let programs = LONG.iter().flat_map(|name| ["--test", name]);
            let programs: &Vec<&str> = &programs.collect();
            stage(3, "tests that take many minutes");
            test(cmd!(
                shell,
                "{cargo} test --locked -p lab --no-fail-fast {programs...} -- --ignored {rest...}"
            ))
        } else {
            Ok(())
        };
        if !has_cloud_hypervisor {
            return all.and(long);
        }
        let programs = OF_CLOUD_HYPERVISOR.iter().flat_map(|name| ["--test", name]);
        let programs: &Vec<&str> = &programs.collect();
        stage(3, "tests of a real cloud-hypervisor");
        let stock = test(cmd!(
            shell,
            "{cargo} test --locked -p lab --no-fail-fast {programs...} -- --ignored {rest...}"
        ));
        return all.and(long).and(stock);
    };
    let programs = OF_DEVICES.iter().flat_map(|name| ["--test", name]);
    let programs: &Vec<&str> = &programs.collect();
    stage(3, "tests of assigned devices, on iommufd");
    let left_out: &[&str] = match has_cloud_hypervisor {
        true => &[],
        false => &["--skip", "cloud_hypervisor"],
    };
    let on = cmd!(
        shell,
        "{cargo} test --locked -p lab --no-fail-fast --test iommufd {programs...} -- --include-ignored {left_out...} {rest...}"
    );
    let on = test(on.envs(kernel.variables()).env("LAB_IOMMUFD", "on"));
    stage(3, "the same on type1");
    let off = cmd!(
        shell,
        "{cargo} test --locked -p lab --no-fail-fast {programs...} -- {rest...}"
    );
    let off = test(off.envs(kernel.variables()).env("LAB_IOMMUFD", "off"));
    on.and(off)
}
