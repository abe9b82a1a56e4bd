//! Number of ioctls of a step, counted by the lab host's kernel for all processes. Only the VMM uses VFIO and KVM.

use anyhow::{Context, Result};
use lab::Lab;

/// The event that the kernel counts (linux Documentation/trace/histogram.rst).
const EVENT: &str = "/sys/kernel/tracing/events/syscalls/sys_enter_ioctl";
const COUNT: &str = "hist:keys=cmd.hex:size=2048";

/// Ioctl types (linux Documentation/userspace-api/ioctl/ioctl-number.rst): VFIO and iommufd share one.
const VFIO: u64 = 0x3b;
const KVM: u64 = 0xae;
/// Ioctls of a running guest, which are not counted: `KVM_RUN`, `KVM_IRQ_LINE` and `KVM_IRQ_LINE_STATUS`.
const RUNNING: [u64; 3] = [0xae80, 0x4008_ae61, 0xc008_ae67];
/// `VFIO_IOMMU_MAP_DMA`, `IOMMU_IOAS_MAP` and `IOMMU_IOAS_MAP_FILE`.
const MAPS: [u64; 3] = [0x3b71, 0x3b85, 0x3b8f];

/// Numbers of ioctls by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ioctls {
    /// Of VFIO and iommufd.
    pub(super) vfio: u32,
    /// Those that map memory or BARs for devices, included in `vfio`.
    pub(super) maps: u32,
    /// Of KVM, without those of a running guest.
    pub(super) kvm: u32,
}

/// Counts the ioctls during `act`; `None` if this kernel cannot count them, with a message.
pub(super) fn counted(lab: &Lab, act: impl FnOnce() -> Result<()>) -> Result<Option<Ioctls>> {
    let begin = format!(
        "[ -e {EVENT} ] || mount -t tracefs none /sys/kernel/tracing; echo '{COUNT}' > {EVENT}/trigger"
    );
    let end = format!("cat {EVENT}/hist && echo '!{COUNT}' > {EVENT}/trigger");
    let counts = lab.sh(&begin);
    act()?;
    let counted = counts.and_then(|_| read(&lab.sh(&end)?));
    if let Err(error) = &counted {
        eprintln!("bench: SKIPPED, the lab host does not count ioctls: {error:#}");
    }
    Ok(counted.ok())
}

/// Parses lines like `{ cmd:       3b71 } hitcount:          2`.
fn read(histogram: &str) -> Result<Ioctls> {
    let mut ioctls = Ioctls::default();
    for line in histogram.lines() {
        let Some((key, count)) = line.split_once("} hitcount:") else {
            continue;
        };
        let key = key.rsplit(' ').find(|word| !word.is_empty());
        let cmd = key.and_then(|hex| u64::from_str_radix(hex, 16).ok());
        // Some C libraries sign-extend the 32-bit command.
        let cmd = cmd.with_context(|| format!("no ioctl: {line}"))? & 0xffff_ffff;
        let count: u32 = count
            .trim()
            .parse()
            .with_context(|| format!("no number: {line}"))?;
        match cmd >> 8 & 0xff {
            VFIO => ioctls.vfio += count,
            KVM if !RUNNING.contains(&cmd) => ioctls.kvm += count,
            _ => {}
        }
        if MAPS.contains(&cmd) {
            ioctls.maps += count;
        }
    }
    Ok(ioctls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_added_up_by_kind() {
        let histogram = "# event histogram\n#\n# trigger info: hist:keys=cmd.hex:vals=hitcount\n#\n\n\
            { cmd: 3b71 } hitcount:          2\n\
            { cmd: 3b6c } hitcount:          9\n\
            { cmd: 4020ae46 } hitcount:          3\n\
            { cmd: ae80 } hitcount:      12345\n\
            { cmd: ffffffffc008ae67 } hitcount:          7\n\
            { cmd: 5401 } hitcount:          1\n\nTotals:\n    Hits: 12367\n    Entries: 6\n";
        let expected = Ioctls {
            vfio: 11,
            maps: 2,
            kvm: 3,
        };
        assert_eq!(read(histogram).unwrap(), expected);
        assert!(read("{ cmd: x } hitcount: 1").is_err());
        assert!(read("{ cmd: 3b71 } hitcount: many").is_err());
    }
}
