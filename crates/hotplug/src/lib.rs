//! Lifecycle of assigned devices: how one is described, and (as it grows) how it comes and goes.
//!
//! [`DeviceConfig`] is the one description of a device that the command line, the REST API and the tests share.

mod device_config;
mod options;

pub use device_config::DeviceConfig;
pub use options::{OptionError, Options};
