//! VFIO descriptors of a VMM.

use std::fs;
use std::path::Path;

use iommu_group::Sbdf;

/// Link target of a device descriptor that was opened through a group (linux 7.2 drivers/vfio/group.c:
/// `vfio_device_open_file()`).
const ANONYMOUS: &str = "anon_inode:[vfio-device]";

/// VFIO descriptors of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Devices that were opened through groups. Newer kernels tell the device; otherwise `None`.
    devices: Vec<Option<Sbdf>>,
    /// Devices that were opened through their own files, by file name.
    files: Vec<String>,
}

impl Held {
    pub(super) fn read(proc: &Path, pid: u32) -> Self {
        let process = proc.join(pid.to_string());
        let mut held = Self::default();
        let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten();
        for descriptor in descriptors.filter_map(Result::ok) {
            let Ok(target) = fs::read_link(descriptor.path()) else {
                continue;
            };
            let target = target.to_string_lossy();
            if target == ANONYMOUS {
                let info = process.join("fdinfo").join(descriptor.file_name());
                let info = fs::read_to_string(info).unwrap_or_default();
                held.devices.push(device(&info));
            } else if let Some((_, file)) = target.rsplit_once("vfio/devices/") {
                held.files.push(file.to_owned());
            }
        }
        held
    }

    /// Whether the process, which also has `others` other devices open, may have the function open.
    pub(super) fn may_hold(&self, function: Sbdf, others: usize) -> bool {
        let file = |name: &String| {
            let dir = Path::new("/sys/bus/pci/devices").join(function.to_string());
            dir.join("vfio-dev").join(name).exists()
        };
        if self.devices.contains(&Some(function)) || self.files.iter().any(file) {
            return true;
        }
        self.devices.contains(&None) && self.devices.len() + self.files.len() > others
    }
}

/// The device of a descriptor, on kernels that report it (linux 7.2 drivers/vfio/vfio_main.c:
/// `vfio_device_show_fdinfo()`).
fn device(fdinfo: &str) -> Option<Sbdf> {
    let line = fdinfo
        .lines()
        .find_map(|line| line.strip_prefix("vfio-device-syspath:"))?;
    line.trim().rsplit('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn at(text: &str) -> Sbdf {
        text.parse().unwrap()
    }

    #[test]
    fn reported_devices_are_matched_and_others_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let (fd, fdinfo) = (dir.path().join("7/fd"), dir.path().join("7/fdinfo"));
        fs::create_dir_all(&fd).unwrap();
        fs::create_dir_all(&fdinfo).unwrap();
        for (number, target, info) in [
            ("3", "/dev/kvm", ""),
            (
                "4",
                ANONYMOUS,
                "pos:\t0\nvfio-device-syspath: /sys/devices/pci0000:00/0000:03:00.0\n",
            ),
            ("5", "/dev/vfio/12", ""),
        ] {
            symlink(target, fd.join(number)).unwrap();
            fs::write(fdinfo.join(number), info).unwrap();
        }
        let held = Held::read(dir.path(), 7);
        assert!(held.may_hold(at("03:00.0"), 1));
        assert!(!held.may_hold(at("04:00.0"), 0));

        symlink(ANONYMOUS, fd.join("6")).unwrap();
        fs::write(fdinfo.join("6"), "pos:\t0\n").unwrap();
        let held = Held::read(dir.path(), 7);
        assert!(
            held.may_hold(at("04:00.0"), 1),
            "it may be the unreported one"
        );
        assert!(
            !held.may_hold(at("04:00.0"), 2),
            "both belong to other devices"
        );
        assert_eq!(Held::read(dir.path(), 8), Held::default());
    }
}
