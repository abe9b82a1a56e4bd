//! PCI configuration space: its bytes and their decoded content.

mod acs;
mod bar;
mod collect;
mod decode;
mod express;
mod extended;
mod header;
mod legacy;
mod list;
mod space;
#[allow(
    missing_docs,
    reason = "the specification says under the same name what a constant is"
)]
pub mod spec;

pub use acs::{Acs, AcsBits, AcsBitsError, AcsRegisters, AcsSetting, EgressVector};
pub use bar::{BarRegister, BridgeWindows, Space};
pub use collect::ConfigSource;
pub use decode::Config;
pub use express::{Express, Link, PortType, Slot};
pub use extended::{Ari, Ats, Sriov};
pub use header::{Header, HeaderLayout, Ids};
pub use legacy::{AdvancedFeatures, Msi, MsiX, PowerManagement};
pub use list::ConfigError;
pub use space::{ConfigSpace, Unreadable};
