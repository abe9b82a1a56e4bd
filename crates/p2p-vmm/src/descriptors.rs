//! Limits of file descriptors for this process.
//!
//! A guest decides how many interrupt vectors it enables, and each takes a descriptor. Descriptors are therefore
//! reserved for API clients, for hotplug and for revoking mappings.

use p2p_vfio::DescriptorLimit;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Reserved for clients of the API, of which the server accepts 256 at once, and for files that are read for a
/// response.
const ALWAYS: u64 = 320;
/// Reserved for devices that are added after interrupt vectors have used their share.
const DEVICES: u64 = 64;
/// Descriptors that an added device may need: groups, contexts, VFIO event descriptors, an interrupt pin.
const PER_DEVICE: u64 = 16;

/// Limits for the users of descriptors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptors {
    /// For interrupt vectors.
    pub(crate) vectors: DescriptorLimit,
    /// For devices that are added.
    pub(crate) devices: DescriptorLimit,
}

impl Descriptors {
    /// Raises the soft limit of this process (`RLIMIT_NOFILE`) to the hard limit, and divides it.
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

    /// For a process with a limit of `limit` descriptors. At most half of a small limit is reserved.
    fn with_limit(limit: u64) -> Self {
        let always = ALWAYS.min(limit / 3);
        let vectors = always + DEVICES.min(limit / 6);
        Self {
            vectors: DescriptorLimit::leaving(vectors, limit),
            devices: DescriptorLimit::leaving(always + PER_DEVICE, limit),
        }
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
            // The limit applies to a process, so the test runs in a child process.
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
        // Devices can still be added, up to their limit.
        descriptors.devices.eventfd().unwrap();
        let devices = take_all(descriptors.devices);
        assert!(devices.len() >= 32);
        assert!(descriptors.devices.eventfd().is_err());
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
