//! The PCIe topology of a Linux host, its ACS settings and its IOMMU groups.
//!
//! This crate reads and decides; it writes nothing. [`Sysfs`] reads a sysfs tree, which is the live `/sys` or any
//! directory of the same shape. A function is named by its [`Sbdf`], a group by its [`GroupId`].
//!
//! [`assignment`] decides which devices a VM may have, by these facts and the operator's [`policy`].

mod address;
pub mod assignment;
mod config;
mod distinct;
mod driver;
mod fixture;
mod group;
mod kernel;
mod plan;
pub mod policy;
mod quirks;
mod reset;
mod route;
mod sbdf;
#[cfg(feature = "schema")]
mod schema;
mod sysfs;
mod topology;

pub use address::{Address, AddressRange, BusAddress, Gpa, Iova};
pub use config::spec;
pub use config::{
    Acs, AcsBits, AcsBitsError, AcsRegisters, AcsSetting, AdvancedFeatures, Ari, Ats, BarRegister,
    BridgeWindows, Config, ConfigError, ConfigSource, ConfigSpace, EgressVector, Express, Header,
    HeaderLayout, Ids, Link, Msi, MsiX, PortType, PowerManagement, Slot, Space, Sriov, Unreadable,
};
pub use distinct::distinct;
pub use driver::DriverKind;
pub use fixture::FixtureError;
pub use group::{
    AcsDeficiency, Difference, Firmware, GroupId, GroupModel, Groups, Reason, Uncertainty,
};
pub use kernel::{AcsOverride, Kernel, Parameters, Rules};
pub use plan::{
    BootArgument, Goals, GroupChange, Infeasible, Plan, PlanError, PlanOptions, PortChange,
    Preview, Purpose, Refusal, RouteChange, RoutePreference, Step, Transient, Warning,
};
pub use reset::{Reset, ResetKind, ResetMask, ResetMaskError};
pub use route::{
    BlockReason, Denial, Exposure, HoleCause, IsolationHole, MemoryHole, P2pDma, P2pMapping, Path,
    Placement, Route, RoutingModel, Scope, UntranslatedReach, Verdict,
};
pub use sbdf::{Sbdf, SbdfError};
pub use sysfs::{GroupMember, Sysfs, SysfsError};
pub use topology::{Bar, Cpu, Function, Host, Iommu, RootBus, Topology};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
