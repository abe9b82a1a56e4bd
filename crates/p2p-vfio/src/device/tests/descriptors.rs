//! A guest that enables every vector of all its devices, in a process that may have few descriptors. Each test runs its
//! body in a process of its own, as the limit is the process's.

use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use rustix::process::{Resource, Rlimit, setrlimit};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::vmm::MsiMessage;

const CHILD: &str = "P2P_VFIO_FEW_DESCRIPTORS";
const LIMIT: u64 = 160;
const RESERVED: u64 = 64;
const DEVICES: usize = 4;
const VECTORS: u16 = 129;
/// The MSI-X table is that of the rig, in BAR 1.
const TABLE: u64 = 0x1000;

/// Runs `body` in a child that may have [`LIMIT`] descriptors.
fn with_few_descriptors(test: &str, body: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        let limit = Some(LIMIT);
        let few = Rlimit {
            current: limit,
            maximum: limit,
        };
        setrlimit(Resource::Nofile, few).unwrap();
        return body();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "--test-threads=1"])
        .arg(format!("device::tests::descriptors::{test}"))
        .env(CHILD, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let ran = String::from_utf8_lossy(&output.stdout);
    assert!(ran.contains("1 passed"), "{ran}");
}

fn rig_with_vectors(vm: &Arc<FakeVm>, dynamic: bool) -> TestDevice {
    let mut bytes = config();
    let control = VECTORS - 1;
    bytes[0x62..0x64].copy_from_slice(&control.to_le_bytes());
    let mut pci = FakePci::new(vm, bytes, [1 << 20, 0x4000, 0, 0, 0, 0]);
    pci.msi_vectors = 4;
    pci.msix_vectors = u32::from(VECTORS);
    pci.dynamic = dynamic;
    let hardware = pci.hardware.clone();
    let limit = DescriptorLimit::leaving(RESERVED, LIMIT);
    let device = attach_within(pci, vm, limit).unwrap();
    TestDevice {
        vm: vm.clone(),
        hardware,
        device,
    }
}

/// The guest programs every vector, unmasked, and then turns MSI-X on.
fn enable_all(rig: &mut TestDevice, at: u64) {
    rig.place(at, at + (1 << 20));
    rig.device.enable_memory().unwrap();
    for vector in 0..u64::from(VECTORS) {
        let entry = at + (1 << 20) + TABLE + vector * 16;
        for (offset, value) in [(0, 0xfee0_0000), (8, 0x41), (12, 0_u32)] {
            let at = Gpa::new(entry + offset);
            assert!(rig.device.mmio_write(at, &value.to_le_bytes()));
        }
    }
    rig.write32(0x60, 0x8000_0000);
}

/// Its descriptors are free then, and not when vectors take their place.
fn disable_pin(rig: &mut TestDevice) {
    rig.device.config_write(0x05, &[0x04]);
}

/// As many clients as were promised room connect, and all are accepted.
fn assert_clients_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut held = Vec::new();
    for _ in 0..RESERVED / 2 - 4 {
        held.push(UnixStream::connect(&socket).unwrap());
        held.push(listener.accept().unwrap().0);
    }
}

#[test]
fn a_guest_that_enables_every_vector_leaves_descriptors_to_clients_and_unplugs() {
    with_few_descriptors(
        "a_guest_that_enables_every_vector_leaves_descriptors_to_clients_and_unplugs",
        || {
            for dynamic in [true, false] {
                let vm = Arc::new(FakeVm::default());
                let mut rigs: Vec<TestDevice> = (0..DEVICES)
                    .map(|_| rig_with_vectors(&vm, dynamic))
                    .collect();
                for (rig, at) in rigs.iter_mut().zip((MMIO..).step_by(2 << 20)) {
                    enable_all(rig, at);
                }
                assert_clients_are_accepted();
                // What could be set up works, and what could not is said.
                assert!(vm.messages().len() > 16, "{}", vm.messages().len());
                let told = vm.told();
                assert!(
                    told.iter().any(|told| told.contains("RLIMIT_NOFILE")),
                    "{told:?}"
                );
                for rig in &mut rigs {
                    rig.device.detach().unwrap();
                }
                assert!(vm.is_empty());
            }
        },
    );
}

/// Takes all descriptors below the limit but `count`. They are free again when the result is dropped.
fn leave_descriptors(count: usize) -> Vec<EventFd> {
    let limit = DescriptorLimit::leaving(RESERVED, LIMIT);
    let mut taken = Vec::new();
    while let Ok(event) = limit.eventfd() {
        taken.push(event);
    }
    taken.truncate(taken.len() - count);
    taken
}

#[test]
fn a_vector_without_a_descriptor_costs_no_other_and_comes_back() {
    with_few_descriptors(
        "a_vector_without_a_descriptor_costs_no_other_and_comes_back",
        || {
            let vm = Arc::new(FakeVm::default());
            let mut rig = rig_with_vectors(&vm, true);
            disable_pin(&mut rig);
            // Only a few are left below the bound.
            let mut taken = leave_descriptors(2);
            enable_all(&mut rig, MMIO);
            assert_eq!(vm.messages().len(), 2);
            // A vector that the guest changes is not lost meanwhile.
            assert!(
                rig.device
                    .mmio_write(Gpa::new(BAR1 + TABLE + 8), &[0x42, 0, 0, 0])
            );
            let changed = MsiMessage {
                address: 0xfee0_0000,
                data: 0x42,
            };
            assert!(vm.messages().contains(&changed));
            taken.clear();
            rig.write32(0x60, 0x8000_0000);
            assert!(vm.messages().len() > 16);
        },
    );
}

#[test]
fn msi_without_descriptors_is_on_with_what_there_is() {
    with_few_descriptors("msi_without_descriptors_is_on_with_what_there_is", || {
        let vm = Arc::new(FakeVm::default());
        let mut rig = rig_with_vectors(&vm, true);
        disable_pin(&mut rig);
        let _taken = leave_descriptors(3);
        // Four vectors.
        rig.write32(0x40, 0x0021_0000);
        assert_eq!(vm.messages().len(), 3);
        let on = rig.hardware().vectors.clone();
        assert_eq!(on, Some((crate::pci::VectorKind::Msi, 4, vec![0, 1, 2])));
        rig.write32(0x40, 0);
        assert!(vm.messages().is_empty());
    });
}
