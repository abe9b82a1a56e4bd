//! Fake kernel for unit tests and fuzz targets. It follows the kernel's rules and can fail the n-th call.

mod countdown;
mod pci;
mod vm;

#[cfg(feature = "fuzzing")]
pub(crate) use countdown::Countdown;
pub(crate) use pci::{FakeHardware, FakePci};
pub(crate) use vm::{FakeVm, iova_ranges};
