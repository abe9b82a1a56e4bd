//! A complete PCIe host with an IOMMU, VFIO and KVM in software, for tests without hardware.
//!
//! The host is a QEMU machine in software emulation ([`Profile`] describes its parts). It runs an unmodified Debian
//! kernel and has an emulated VT-d, nested virtualisation and PCIe switches. A VMM started in it runs a second Linux
//! as its guest. [`Lab`] boots such a host and runs commands in it through the project's own agent, `lab-agent`.
//!
//! ```no_run
//! use lab::{Lab, Profile};
//!
//! let profile = Profile::named("edu-one-group")?;
//! let lab = Lab::boot(&profile, "readme")?;
//! lab.bind_vfio("0000:03:00.0")?;
//! println!("{}", lab.run(["lspci", "-tv"])?.ok()?);
//! # Ok::<(), anyhow::Error>(())
//! ```
//!
//! Components (QEMU 10, kernel packages, a few tools) are downloaded on first use into `target/lab/cache`:
//! see [`Assets`]. Environment variables:
//!
//! | variable | meaning |
//! |---|---|
//! | `LAB_CACHE` | directory for downloads, instead of `target/lab/cache` |
//! | `LAB_QEMU` | a `qemu-system-x86_64` of version 10 or newer to use; most profiles need one with `resources/qemu` in it |
//! | `LAB_KERNEL`, `LAB_MODULES` | a bzImage to use, and its `lib/modules/<version>` directory unless it needs none |
//! | `LAB_IOMMUFD` | `on` or `off`: value of `--platform iommufd=…` for every VM |
//! | `LAB_ACCEL` | `tcg` (default) or `kvm`, which needs nested virtualisation |
//! | `LAB_JOBS` | number of labs that run at the same time (default: half the processors) |
//! | `CH_BIN`, `CH_REMOTE` | a static cloud-hypervisor and its client; tests that need them are ignored otherwise |
//! | `LAB_LONG` | not empty: tests that take many minutes run too; `cargo xtask test --long` sets it |

mod agent;
mod assets;
mod binaries;
mod cloud_hypervisor;
mod daemon;
mod host;
mod initramfs;
pub mod live;
mod lock;
mod machine;
mod paths;
mod profile;
mod progress;
pub mod protocol;
pub mod report;
mod settings;
mod shared;
mod trace;
mod vm;
mod work;

pub use agent::{Command, Output, Running};
pub use assets::{Assets, OwnKernel, find_lspci};
pub use binaries::{Binaries, STATIC_BINARIES, released};
pub use cloud_hypervisor::CloudHypervisor;
pub use daemon::Daemon;
pub use host::{BOOT, COMMAND, Lab};
pub use initramfs::{GUEST_INITRAMFS, GUEST_KERNEL};
pub use paths::lab_dir;
pub use profile::{
    Device, Drive, Iommu, Machine, PciBridge, PortAcs, Profile, ProfileError, Property, ROOT_BUS,
    RootComplex, RootPort, STANDARD_ACS, SharedMemory, Switch,
};
pub use progress::Progress;
pub use shared::{SharedLab, Turn, is_acs_variant};
pub use trace::{TracedRequest, Way};
pub use vm::{CMDLINE, GUEST, Vm};
pub use work::Work;

/// Whether tests that take many minutes also run: `LAB_LONG` is not empty.
#[must_use]
pub fn long() -> bool {
    std::env::var_os("LAB_LONG").is_some_and(|value| !value.is_empty())
}
