//! What a VMM has open of VFIO.

use std::fs;
use std::path::Path;

use iommu_group::Sbdf;

/// The descriptor of a device that was got from its group (linux 7.2 drivers/vfio/group.c:
/// `vfio_device_open_file()`).
const ANONYMOUS: &str = "anon_inode:[vfio-device]";

/// Descriptors of a process that are about VFIO.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Devices that were got from groups; newer kernels say which, elsewhere it is `None`.
    devices: Vec<Option<Sbdf>>,
    /// Devices that have files of their own, by the names of these.
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

    /// Whether a function may be open of a process that has `others` devices besides.
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

/// The device that a descriptor is of, as newer kernels say (linux 7.2 drivers/vfio/vfio_main.c:
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
    fn a_device_that_the_kernel_names_is_known_and_others_are_counted() {
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
            "it may be the nameless one"
        );
        assert!(!held.may_hold(at("04:00.0"), 2), "both are of others");
        assert_eq!(Held::read(dir.path(), 8), Held::default());
    }
}
