//! Kicks a vCPU out of KVM_RUN, with a real-time signal that is unblocked only there.
//!
//! vCPU threads keep the signal blocked. KVM unblocks it during KVM_RUN, so a signal at any other moment stays
//! pending and ends the next KVM_RUN at once: no kick is lost, and no handler runs. KVM_RUN does not dequeue the
//! signal: the thread must, or every further KVM_RUN ends at once.
#![allow(unsafe_code, reason = "kvm-ioctls has no KVM_SET_SIGNAL_MASK")]

use std::io;

use kvm_bindings::{KVMIO, kvm_signal_mask};
use kvm_ioctls::VcpuFd;
use libc::c_int;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;
use vmm_sys_util::signal::{SIGRTMIN, block_signal, clear_signal};

ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, kvm_signal_mask);

/// Bytes of the kernel's signal set on x86_64.
const SIGNAL_SET_BYTES: u32 = 8;

/// A vCPU cannot be kicked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KickError {
    #[error("cannot block signal {signal}: {reason}")]
    Block {
        signal: c_int,
        reason: vmm_sys_util::signal::Error,
    },
    #[error("cannot set the signal mask of a vCPU")]
    SetMask(#[source] io::Error),
}

/// The signal that ends KVM_RUN.
pub(super) fn kick_signal() -> c_int {
    SIGRTMIN()
}

/// Blocks the signal in this thread and in all threads that it starts.
pub(crate) fn block_kick_signal() -> Result<(), KickError> {
    let signal = kick_signal();
    block_signal(signal).map_err(|reason| KickError::Block { signal, reason })
}

/// Dequeues the signal that has ended KVM_RUN in this thread, if there is one.
pub(super) fn take() {
    let signal = kick_signal();
    if let Err(error) = clear_signal(signal) {
        log::error!("cannot dequeue signal {signal}: {error}");
    }
}

/// `kvm_signal_mask` with its flexible array of one signal set.
#[repr(C)]
struct SignalMask {
    header: kvm_signal_mask,
    blocked: [u8; SIGNAL_SET_BYTES as usize],
}

/// Unblocks only the kick signal during KVM_RUN of `vcpu`.
pub(super) fn open_in_kvm_run(vcpu: &VcpuFd) -> Result<(), KickError> {
    let mask = SignalMask {
        header: kvm_signal_mask {
            len: SIGNAL_SET_BYTES,
            ..Default::default()
        },
        blocked: all_but(kick_signal()).to_le_bytes(),
    };
    // SAFETY: KVM reads the header and the `len` bytes after it; both are in `mask`, which has C layout without
    // padding between them.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK(), &mask) };
    if result == 0 {
        Ok(())
    } else {
        Err(KickError::SetMask(io::Error::last_os_error()))
    }
}

/// The kernel's set of all signals without `signal`: signal n is bit n - 1.
fn all_but(signal: c_int) -> u64 {
    let bit = u32::try_from(signal - 1)
        .ok()
        .and_then(|shift| 1u64.checked_shl(shift));
    !bit.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mask_unblocks_one_signal() {
        assert_eq!(all_but(1), !1);
        assert_eq!(all_but(34), !(1 << 33));
        assert_eq!(all_but(64), !(1 << 63));
    }

    #[test]
    fn the_signal_set_follows_the_length_without_padding() {
        assert_eq!(std::mem::offset_of!(SignalMask, blocked), 4);
        assert_eq!(size_of::<SignalMask>(), 12);
    }
}
