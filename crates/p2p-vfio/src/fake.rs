//! Stand-ins for the kernel in unit tests. They keep its rules and can fail the n-th call.

mod countdown;
mod pci;
mod vm;

pub(crate) use pci::{FakeHardware, FakePci};
pub(crate) use vm::{FakeVm, iova_ranges};
