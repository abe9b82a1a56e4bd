//! How many ioctls a step takes, as the lab host's kernel counts them: of all processes, of which a VMM is the only one that
//! uses VFIO or KVM.

use anyhow::{Context, Result};
use lab::Lab;

/// The event that the kernel counts (linux Documentation/trace/histogram.rst).
const EVENT: &str = "/sys/kernel/tracing/events/syscalls/sys_enter_ioctl";
const COUNT: &str = "hist:keys=cmd.hex:size=2048";

/// Types of ioctls (linux Documentation/userspace-api/ioctl/ioctl-number.rst): VFIO shares its own with iommufd.
const VFIO: u64 = 0x3b;
const KVM: u64 = 0xae;
/// What a guest that runs takes anyway: `KVM_RUN`, `KVM_IRQ_LINE` and `KVM_IRQ_LINE_STATUS`.
const RUNNING: [u64; 3] = [0xae80, 0x4008_ae61, 0xc008_ae67];
/// `VFIO_IOMMU_MAP_DMA`, `IOMMU_IOAS_MAP` and `IOMMU_IOAS_MAP_FILE`.
const MAPS: [u64; 3] = [0x3b71, 0x3b85, 0x3b8f];

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ioctls {
    /// Of VFIO and iommufd.
    pub(super) vfio: u32,
    /// Those of them that map something for devices.
    pub(super) maps: u32,
    /// Of KVM, but for what a guest that runs takes anyway.
    pub(super) kvm: u32,
}

/// Counts from now on.
pub(super) fn start(lab: &Lab) -> Result<()> {
    let tracing = "/sys/kernel/tracing";
    lab.sh(&format!(
        "[ -e {EVENT} ] || mount -t tracefs none {tracing}; echo '{COUNT}' > {EVENT}/trigger"
    ))
    .context("the lab host's kernel cannot count system calls")?;
    Ok(())
}

/// What was counted since the start.
pub(super) fn stop(lab: &Lab) -> Result<Ioctls> {
    let histogram = lab.sh(&format!(
        "cat {EVENT}/hist; echo '!{COUNT}' > {EVENT}/trigger"
    ))?;
    read(&histogram)
}

/// From lines like `{ cmd:       3b71 } hitcount:          2`.
fn read(histogram: &str) -> Result<Ioctls> {
    let mut ioctls = Ioctls::default();
    for line in histogram.lines() {
        let Some((key, count)) = line.split_once("} hitcount:") else {
            continue;
        };
        let key = key.rsplit(' ').find(|word| !word.is_empty());
        let cmd = key.and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let cmd = cmd.with_context(|| format!("no ioctl: {line}"))?;
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
            { cmd:       3b71 } hitcount:          2\n\
            { cmd:       3b6c } hitcount:          9\n\
            { cmd:   4020ae46 } hitcount:          3\n\
            { cmd:       ae80 } hitcount:      12345\n\
            { cmd:       5401 } hitcount:          1\n\nTotals:\n    Hits: 12360\n    Entries: 5\n";
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
