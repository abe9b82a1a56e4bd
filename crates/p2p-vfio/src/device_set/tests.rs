//! Tests of a set with devices of the fake kernel. IOMMU contexts need a real kernel: the lab tests them.

use std::collections::BTreeSet;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use guest_topology::{Apertures, BusResources, Reserve, Slot, SlotBus, Subtree, assign_resources};
use iommu_group::assignment::{DeviceInfo, DomainName, HostSnapshot};
use iommu_group::policy::{Policy, PolicyMatch};
use iommu_group::{Address, AddressRange, Gpa, GroupId, Host, Placement, Sbdf, Sysfs, Topology};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::members::Member;
use super::plug::Opened;
use super::*;
use crate::device::{DeviceEvent, HostDevice};
use crate::fake::{FakeHardware, FakePci, FakeVm};

const SIZE: u64 = 0x4000;

fn range(start: u64, len_bytes: u64) -> AddressRange<Gpa> {
    AddressRange::new(Gpa::new(start), len_bytes).unwrap()
}

/// Functions with one 32-bit BAR, below a switch and outside of it.
struct TestSet {
    vm: Arc<FakeVm>,
    set: DeviceSet,
    hardware: Vec<Arc<Mutex<FakeHardware>>>,
}

fn empty(vm: &Arc<FakeVm>, memory: Vec<(Gpa, HostMemory)>) -> DeviceSet {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("bus/pci/devices")).unwrap();
    let topology = Topology::scan(&Sysfs::new(dir.path()), Host::default()).unwrap();
    let host = HostSnapshot::new(topology, Policy::default());
    let options = IommuOptions {
        interface: None,
        kvm: None,
        preopened: Arc::default(),
        hotplug: true,
    };
    let windows = vec![range(0xc000_0000, 0x1000_0000)];
    let space = GuestSpace {
        memory,
        apertures: Apertures {
            memory: windows.clone(),
            prefetchable: windows.clone(),
        },
        forwarded: windows,
    };
    let hooks = VmHooks {
        slots: vm.clone(),
        msi: vm.clone(),
        intx: None,
        vector_fds: DescriptorLimit::NONE,
        device_fds: DescriptorLimit::NONE,
    };
    let plan = DeviceSet::plan(host, &[]).unwrap();
    assert_eq!(plan.demands().unwrap().buses, 0);
    let open = plan.open(options).unwrap();
    assert_eq!(open.demands().unwrap(), SpaceDemands::default());
    open.attach(space, hooks).unwrap()
}

impl TestSet {
    /// Two devices below a switch, named a and b, and one beside it, named c.
    fn new() -> Self {
        let vm = Arc::new(FakeVm::default());
        let mut rig = Self {
            set: empty(&vm, Vec::new()),
            vm,
            hardware: Vec::new(),
        };
        rig.plug(&["a", "b"], true);
        rig.plug(&["c"], false);
        rig
    }

    /// Plugs functions, as at boot.
    fn plug(&mut self, tags: &[&str], switch: bool) {
        let mut opened = Vec::new();
        let mut endpoints = Vec::new();
        let number = |index: usize| u8::try_from(self.hardware.len() + index + 3).unwrap();
        let sbdfs: Vec<Sbdf> = (0..tags.len())
            .map(|index| Sbdf::from_devfn(0, number(index), 0))
            .collect();
        for sbdf in &sbdfs {
            let mut config = vec![0; 256];
            config[..4].copy_from_slice(&[0x86, 0x80, 0x34, 0x12]);
            let pci = FakePci::new(&self.vm, config, [SIZE, 0, 0, 0, 0, 0]);
            self.hardware.push(pci.hardware.clone());
            let host = HostDevice::new(*sbdf, Box::new(pci), &[]).unwrap();
            endpoints.push(host.endpoint().clone());
            opened.push(Opened { host, clique: None });
        }
        let subtrees = match switch {
            true => vec![Subtree::Switch {
                members: endpoints,
                reserve: Reserve::default(),
            }],
            false => endpoints.into_iter().map(Subtree::Endpoint).collect(),
        };
        let usage = self.set.guest.bus.bus_usage(SlotBus::Root).unwrap();
        let root: BusResources = resources::live(SlotBus::Root, &usage, &self.set.guest.root);
        let topology = assign_resources(&subtrees, root).unwrap();
        let plugged = self
            .set
            .guest
            .plug(opened, topology, SlotBus::Root)
            .unwrap();
        let mut members = lock(&self.set.members);
        for ((tag, sbdf), plugged) in tags.iter().zip(sbdfs).zip(plugged) {
            self.set.watch.add_device(&lock(&plugged.device));
            let request = DeviceRequest {
                tag: (*tag).to_owned(),
                path: PathBuf::new(),
                domain: switch.then_some(DomainName::Unnamed),
                expose: BTreeSet::new(),
            };
            let info = DeviceInfo {
                sbdf,
                domain: request.domain.clone(),
                group: GroupId(1),
                members: Vec::new(),
                bus_addresses: Vec::new(),
                holes: Vec::new(),
                bridges: Vec::new(),
                policy: PolicyMatch::default(),
                unsafe_interrupts: None,
                hidden: false,
                placement: Placement::Anywhere,
            };
            members.list.push(Member::new(request, info, plugged));
        }
    }

    fn slot(&self, tag: &str) -> Slot {
        self.set.member(tag).unwrap().slot
    }

    fn id(&self, sbdf: Sbdf) -> u32 {
        let mut id = [0; 4];
        self.set.config_read(sbdf, 0, &mut id);
        u32::from_le_bytes(id)
    }
}

#[test]
fn members_are_in_their_slots_and_the_guest_finds_them() {
    let rig = TestSet::new();
    let members = rig.set.members();
    let tags: Vec<&str> = members.iter().map(|one| one.tag.as_str()).collect();
    assert_eq!(tags, ["a", "b", "c"]);
    for member in &members {
        assert_eq!(rig.id(member.guest), 0x1234_8086);
        assert!(member.in_guest);
    }
    let [a, b, c] = &members[..] else { panic!() };
    assert_eq!(a.slot.bus(), b.slot.bus());
    assert_eq!(a.announced_slot, b.announced_slot);
    assert_eq!(c.slot, c.announced_slot);
    assert_eq!(rig.set.claims().all().len(), 3);
    assert!(rig.set.has_unshared() && !rig.set.needs_switch(Some(&DomainName::Unnamed)));
    assert!(
        rig.set
            .needs_switch(Some(&DomainName::Named("x".to_owned())))
    );
}

#[test]
fn the_last_member_of_a_switch_leaves_with_the_switch() {
    let rig = TestSet::new();
    let (a, b) = (rig.slot("a"), rig.slot("b"));
    let root = rig.set.member("a").unwrap().announced_slot;
    assert_eq!(rig.set.slot_to_eject("a"), Some(a));
    rig.set.eject(a);
    assert_eq!(rig.set.slot_to_eject("b"), Some(b), "a is not taken yet");
    let ejected = rig.set.take_ejected();
    assert_eq!(
        (ejected[0].slot, &ejected[0].tags[..]),
        (a, &["a".to_owned()][..])
    );
    assert_eq!(rig.set.slot_to_eject("b"), Some(root));
    rig.set.eject(root);
    assert_eq!(rig.set.take_ejected()[0].tags, ["b"]);
    assert_eq!(rig.set.slot_to_eject("c"), Some(rig.slot("c")));
    assert_eq!(rig.set.slot_to_eject("x"), None);
}

#[test]
fn both_members_leave_and_the_switch_is_empty_until_it_is_ejected() {
    let rig = TestSet::new();
    let root = rig.set.member("a").unwrap().announced_slot;
    for tag in ["a", "b"] {
        rig.set.eject(rig.slot(tag));
    }
    assert!(rig.set.empty_switches().is_empty());
    assert_eq!(rig.set.take_ejected().len(), 2);
    assert_eq!(rig.set.empty_switches(), [root].into());
    assert!(rig.set.close("a").unwrap());
    assert_eq!(rig.set.empty_switches(), [root].into());
    assert!(rig.set.close("b").unwrap());
    assert!(rig.set.empty_switches().is_empty());
}

#[test]
fn an_ejected_device_is_off_the_bus_at_once_and_holds_nothing_when_it_is_closed() {
    let rig = TestSet::new();
    let c = rig.set.member("c").unwrap();
    rig.set.eject(c.slot);
    assert_eq!(rig.id(c.guest), u32::MAX);
    // Until the VMM takes it, its slot is not free.
    assert_eq!(rig.set.emptied(SlotBus::Root), [c.slot.device()].into());
    assert!(
        !rig.set.close("c").unwrap(),
        "the set still keeps its function"
    );
    assert_eq!(rig.set.take_ejected()[0].tags, ["c"]);
    assert!(rig.set.emptied(SlotBus::Root).is_empty());
    assert!(rig.set.close("c").unwrap());
    assert!(matches!(
        rig.set.close("c"),
        Err(DeviceSetError::Unknown(_))
    ));
    assert_eq!(rig.set.claims().all().len(), 2);
    assert_eq!(rig.set.take_ejected(), []);
    rig.set.eject(c.slot);
    assert_eq!(
        rig.set.take_ejected()[0].tags,
        [""; 0],
        "the slot was empty"
    );
}

#[test]
fn a_device_that_a_vcpu_accesses_is_closed_later() {
    let rig = TestSet::new();
    let slot = rig.slot("c");
    let (entered, leave) = (Barrier::new(2), Barrier::new(2));
    thread::scope(|scope| {
        scope.spawn(|| {
            rig.set.with_device("c", |_| {
                entered.wait();
                leave.wait();
            });
        });
        entered.wait();
        rig.set.eject(slot);
        rig.set.take_ejected();
        assert!(!rig.set.close("c").unwrap());
        leave.wait();
    });
    assert!(rig.set.close("c").unwrap());
}

#[test]
fn a_device_that_is_taken_away_decodes_nothing() {
    let rig = TestSet::new();
    let c = rig.set.member("c").unwrap();
    assert_eq!(rig.hardware[2].lock().unwrap().config[4] & 2, 2);
    assert_eq!(rig.set.unplug(c.slot), ["c"]);
    assert_eq!(rig.hardware[2].lock().unwrap().config[4] & 6, 0);
    assert_eq!(rig.id(c.guest), u32::MAX);
    assert!(rig.set.unplug(c.slot).is_empty());
    assert!(rig.set.close("c").unwrap());
    // The whole switch at once.
    let root = rig.set.member("a").unwrap().announced_slot;
    assert_eq!(rig.set.unplug(root), ["a", "b"]);
    for tag in ["a", "b"] {
        assert!(rig.set.close(tag).unwrap());
    }
    assert!(rig.set.claims().all().is_empty() && rig.vm.is_empty());
}

#[test]
fn events_carry_the_tag_of_their_device() {
    let rig = TestSet::new();
    let signal = |number: usize, kind: u8| {
        let hardware = rig.hardware[number].lock().unwrap();
        hardware.notices[&kind].write(1).unwrap();
    };
    assert!(!is_readable(&rig.set));
    signal(1, 1);
    assert!(is_readable(&rig.set));
    let events = rig.set.process_events();
    let [event] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(event.tag.as_deref(), Some("b"));
    assert!(matches!(
        event.kind,
        SetEventKind::Device(DeviceEvent::Requested)
    ));
    assert!(!is_readable(&rig.set) && rig.set.process_events().is_empty());
}

/// Whether the descriptor of the set is readable.
fn is_readable(set: &DeviceSet) -> bool {
    use std::os::fd::{AsRawFd, BorrowedFd};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    // SAFETY: the set outlives the borrow.
    #[allow(unsafe_code, reason = "a raw descriptor is polled")]
    let fd = unsafe { BorrowedFd::borrow_raw(set.event_fd().as_raw_fd()) };
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let none = Timespec::try_from(Duration::ZERO).unwrap();
    poll(&mut fds, Some(&none)).unwrap() == 1
}

#[test]
fn memory_of_a_set_without_contexts_is_remembered_for_later_devices() {
    let vm = Arc::new(FakeVm::default());
    let memory = |start: u64| {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(start), 0x1000)]).unwrap();
        HostMemory::of_guest(&memory)
    };
    let set = empty(&vm, memory(0));
    let (gpa, added) = memory(0x10_0000).remove(0);
    set.map_region(gpa, added).unwrap();
    assert_eq!(set.memory(), [range(0, 0x1000), range(0x10_0000, 0x1000)]);
    set.unmap_region(Gpa::new(0)).unwrap();
    set.unmap_region(Gpa::new(0x5000)).unwrap();
    assert_eq!(set.memory(), [range(0x10_0000, 0x1000)]);
}
