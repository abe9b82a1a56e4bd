//! The descriptors of this process: how many there may be, and how many are kept for what must always work.
//!
//! A guest decides how many interrupt vectors it enables, and each takes a descriptor. Whatever it does, clients are
//! answered, devices are unplugged and mappings are revoked.

use std::io;

use p2p_vfio::DescriptorLimit;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Clients of the API, of which it serves 256 at once, and files that are read for an answer.
const ALWAYS: u64 = 320;
/// Devices that come when vectors have taken all that they may.
const DEVICES: u64 = 64;
/// Numbers above the first free one that an added device may need: groups, contexts, notices, a pin.
const PER_DEVICE: u64 = 16;

/// Bounds within which descriptors are taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptors {
    /// Of interrupt vectors.
    pub(crate) vectors: DescriptorLimit,
    devices: DescriptorLimit,
}

impl Descriptors {
    /// Lets this process have as many as it may (`RLIMIT_NOFILE`), and bounds what may take them.
    pub(crate) fn raise() -> Self {
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: maximum,
            maximum,
        };
        let limit = match setrlimit(Resource::Nofile, raised) {
            Ok(()) => maximum,
            Err(error) => {
                log::warn!("cannot raise the limit of open files: {error}");
                current
            }
        };
        Self::with_limit(limit.unwrap_or(u64::MAX))
    }

    /// For a process that may have `limit`. Half of few is kept.
    fn with_limit(limit: u64) -> Self {
        let always = ALWAYS.min(limit / 3);
        let vectors = always + DEVICES.min(limit / 6);
        Self {
            vectors: DescriptorLimit::leaving(vectors, limit),
            devices: DescriptorLimit::leaving(always + PER_DEVICE, limit),
        }
    }

    /// Whether an added device leaves what must always work its descriptors.
    ///
    /// # Errors
    /// `EMFILE` if not.
    pub(crate) fn check_room_for_device(self) -> io::Result<()> {
        self.devices.eventfd().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use vmm_sys_util::eventfd::EventFd;

    use super::*;

    const CHILD: &str = "P2P_VMM_FEW_DESCRIPTORS";

    #[test]
    fn the_limit_is_raised_and_the_last_descriptors_are_reserved() {
        if std::env::var_os(CHILD).is_none() {
            // The limit is that of a process, so there is one for it.
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "--nocapture", "--test-threads=1"])
                .arg(
                    "descriptors::tests::the_limit_is_raised_and_the_last_descriptors_are_reserved",
                )
                .env(CHILD, "1")
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
            return;
        }
        let soft = Rlimit {
            current: Some(100),
            maximum: Some(1024),
        };
        setrlimit(Resource::Nofile, soft).unwrap();
        let descriptors = Descriptors::raise();
        assert_eq!(getrlimit(Resource::Nofile).current, Some(1024));

        let take_all = |limit: DescriptorLimit| {
            let mut taken = Vec::new();
            while let Ok(event) = limit.eventfd() {
                taken.push(event);
            }
            taken
        };
        let vectors = take_all(descriptors.vectors);
        assert!(vectors.len() > 1024 - 384 - 32, "{}", vectors.len());
        // Devices can still come, but not without end.
        descriptors.check_room_for_device().unwrap();
        let devices = take_all(descriptors.devices);
        assert!(devices.len() >= 32);
        assert!(descriptors.check_room_for_device().is_err());
        let clients: Result<Vec<_>, _> = (0..ALWAYS).map(|_| EventFd::new(0)).collect();
        assert!(clients.is_ok());
    }

    #[test]
    fn half_of_a_small_limit_is_kept() {
        assert_eq!(
            Descriptors::with_limit(120).vectors,
            DescriptorLimit::leaving(60, 120)
        );
        assert_eq!(
            Descriptors::with_limit(1 << 20).vectors,
            DescriptorLimit::leaving(384, 1 << 20)
        );
    }
}
