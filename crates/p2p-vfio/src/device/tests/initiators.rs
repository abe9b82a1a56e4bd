//! BARs are mapped while another member of the domain is a bus master.

use super::*;

const BARS: [u64; 2] = [BAR0, 0xd000_0000];
/// Areas of the first device's BARs.
const FIRST: [u64; 3] = [BAR0, BAR1, BAR1 + 0x3000];

/// Two members of one domain with memory decode on; neither is a bus master.
struct Pair {
    vm: Arc<FakeVm>,
    hardware: [Arc<Mutex<FakeHardware>>; 2],
    devices: [AssignedDevice; 2],
}

fn pair() -> Pair {
    let vm = Arc::new(FakeVm::default());
    let domain = idle_domain(&vm);
    let pcis = [pci(&vm), pci(&vm)];
    let hardware = [pcis[0].hardware.clone(), pcis[1].hardware.clone()];
    let mut at = 0_usize;
    let devices = pcis.map(|pci| {
        let sbdf = ["03:00.0", "04:00.0"][at].parse().unwrap();
        let mut host = HostDevice::new(sbdf, Box::new(pci), &[]).unwrap();
        host.domain = Some(domain.clone());
        let mut device = AssignedDevice::new(host, params(&vm, DescriptorLimit::NONE)).unwrap();
        let infos = device.bars().to_vec();
        for (info, offset) in infos.iter().zip([0, 1 << 20]) {
            let gpa = Gpa::new(BARS[at] + offset);
            device.place_bar(info, gpa).unwrap();
        }
        device.enable_memory().unwrap();
        at += 1;
        device
    });
    Pair {
        vm,
        hardware,
        devices,
    }
}

impl Pair {
    /// Writes the command register of a member: memory decode, bus mastering.
    fn command(&mut self, at: usize, decode: bool, master: bool) {
        let value = u8::from(decode) << 1 | u8::from(master) << 2;
        self.devices[at].config_write(0x04, &[value, 0]);
    }

    fn is_master(&self, at: usize) -> bool {
        self.hardware[at].lock().unwrap().config[4] & 4 != 0
    }
}

#[test]
fn without_a_bus_master_nothing_is_mapped() {
    let mut pair = pair();
    for _ in 0..7 {
        pair.command(0, false, false);
        pair.command(0, true, false);
    }
    assert_eq!(pair.vm.maps(), 0);
    assert_eq!(pair.vm.slots().len(), 6);
    assert_eq!(pair.devices[0].peer_windows().count(), 3);
}

#[test]
fn a_bus_master_reaches_the_others_and_not_itself() {
    let mut pair = pair();
    pair.command(1, true, true);
    assert_eq!(pair.vm.dma(), FIRST);
    pair.command(0, true, true);
    assert_eq!(pair.vm.dma(), pair.vm.slots());
    assert_eq!(pair.vm.maps(), 6, "one call for each area");
    pair.command(1, true, false);
    assert_eq!(pair.vm.dma(), pair.vm.slots()[3..]);
    pair.command(0, true, false);
    assert!(pair.vm.dma().is_empty());
}

#[test]
fn an_initiator_that_goes_or_is_reset_takes_the_mappings_with_it() {
    let mut pair = pair();
    pair.command(1, true, true);
    pair.devices[1].reset().unwrap();
    assert!(pair.vm.dma().is_empty());
    pair.command(1, true, true);
    assert_eq!(pair.vm.dma(), FIRST);
    pair.devices[1].detach().unwrap();
    assert!(pair.vm.dma().is_empty());
}

#[test]
fn mappings_follow_decode_and_revocation_under_a_bus_master() {
    let mut pair = pair();
    pair.command(1, true, true);
    pair.command(0, false, false);
    assert!(pair.vm.dma().is_empty());
    pair.command(0, true, false);
    assert_eq!(pair.vm.dma(), FIRST);
    pair.devices[0].set_revoked(true).unwrap();
    assert!(pair.vm.dma().is_empty());
    pair.command(1, true, false);
    pair.command(1, true, true);
    assert!(pair.vm.dma().is_empty(), "a revoked BAR stays closed");
    pair.devices[0].set_revoked(false).unwrap();
    assert_eq!(pair.vm.dma(), FIRST);
}

#[test]
fn a_device_whose_peers_cannot_be_mapped_stays_no_bus_master() {
    for call in 0..3 {
        let mut pair = pair();
        pair.vm.countdown.set(call);
        pair.command(1, true, true);
        pair.vm.countdown.stop();
        assert!(pair.vm.dma().is_empty(), "call {call}");
        assert!(!pair.is_master(1), "call {call}");
        let told = pair.vm.told();
        assert!(
            told.iter()
                .any(|line| line.contains("bus mastering stays off")),
            "{told:?}"
        );
        pair.command(1, true, true);
        assert_eq!(pair.vm.dma(), FIRST);
        assert!(pair.is_master(1));
    }
}
