//! vCPUs: their initial state, and the threads that run them.

mod cpuid;
mod kick;
mod long_mode;
mod registers;
mod run_control;
mod thread;

pub(crate) use cpuid::CpuidTemplate;
pub(crate) use kick::block_kick_signal;
pub(crate) use registers::Vcpu;
pub(crate) use thread::{PauseError, VcpuThreads};
