//! The one run of the guest, and what was said of it.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use lab::report::Finding;
use lab::{Output, SharedLab, Turn, Vm};

use super::lspci::{self, Function};

static LAB: SharedLab = SharedLab::new("two-domains", "two-domains");

/// Engines, drives and memory below the first switch, and engines and a drive below the second.
pub(crate) const LEFT: [&str; 5] = [
    "0000:03:00.0",
    "0000:04:00.0",
    "0000:05:00.0",
    "0000:06:00.0",
    MEMORY,
];
pub(crate) const RIGHT: [&str; 3] = ["0000:0a:00.0", "0000:0b:00.0", "0000:0c:00.0"];
pub(crate) const MEMORY: &str = "0000:07:00.0";
/// Images of the drives, in the order of their addresses.
pub(crate) const DRIVES: [&str; 3] = ["disk0", "disk1", "disk2"];
const CARD: &str = "0000:0d:00.0";
const OTHER_CARD: &str = "0000:0e:00.0";
const CONTROLLER: &str = "0000:0f:00.0";

/// Eleven devices, 32 transfers of 100 ms and more, and a long text over a serial port.
const GUEST: Duration = Duration::from_secs(1200);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Domain {
    Left,
    Right,
}

/// What the IOMMU told of a request that it did not translate.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) requester: String,
    pub(crate) address: u64,
}

pub(crate) struct Run {
    pub(crate) output: Output,
    pub(crate) findings: Vec<Finding>,
    pub(crate) host_log: String,
    pub(crate) host_lspci: String,
    pub(crate) faults: Vec<Fault>,
    /// Where the files are that devices of the host are made of.
    pub(crate) dir: PathBuf,
    members: Vec<Member>,
}

/// A function in a domain.
#[derive(Clone)]
struct Member {
    bdf: &'static str,
    domain: Domain,
    /// First and last addresses of its BARs on the host.
    bars: Vec<(u64, u64)>,
}

impl Run {
    pub(crate) fn get() -> &'static Self {
        static RUN: OnceLock<Run> = OnceLock::new();
        RUN.get_or_init(|| Self::make(&LAB.turn()))
    }

    fn make(lab: &Turn<'_>) -> Self {
        let of = |domain, names: &[&'static str]| -> Vec<Member> {
            let member = |bdf: &&'static str| Member {
                bdf,
                domain,
                bars: bars(lab, bdf),
            };
            names.iter().map(member).collect()
        };
        let members = [of(Domain::Left, &LEFT), of(Domain::Right, &RIGHT)].concat();
        let function = make_function(lab);
        let devices = LEFT.iter().chain(&RIGHT).copied();
        for bdf in devices.chain([&*function, OTHER_CARD, CONTROLLER]) {
            lab.bind_vfio(bdf).unwrap();
        }
        let groups = [LEFT[0], RIGHT[0]].map(|bdf| lab.group(bdf).unwrap());
        assert_ne!(groups[0], groups[1]);

        let mut vm = Vm::new(
            "guest-probe 4 ; guest-probe p2pmem ; \
             guest-probe interrupts nvme0q1 nvme1q1 nvme2q1 eth0-rx-0 eth1 ioc0 ; lspci -vvv ; dmesg -r",
        );
        // Nothing of the kernel's amid the lines of others: it is all asked for at the end.
        vm = vm.kernel_words("loglevel=1 mptbase.mpt_msi_enable_sas=1");
        for Member { bdf, domain, .. } in &members {
            let path = format!("/sys/bus/pci/devices/{bdf}");
            vm = vm.device_option(&format!("path={path},p2p=on,p2p_domain={domain:?}"));
        }
        vm = [&*function, OTHER_CARD, CONTROLLER]
            .into_iter()
            .fold(vm, Vm::device);
        // The kernel limits how many faults it logs in five seconds; older ones are none of ours.
        lab.sh("dmesg -c").unwrap();
        let output = lab.vm(&vm).deadline(GUEST).run().unwrap();
        let host_log = lab.dmesg().unwrap();
        Self {
            findings: Finding::in_console(&output.stdout),
            faults: host_log.lines().filter_map(fault).collect(),
            host_log,
            host_lspci: lab.sh("lspci -nvvv").unwrap(),
            dir: lab.dir().to_owned(),
            output,
            members,
        }
    }

    /// The host's function that is at an address in the guest: engines tell it, and for the others the order is the
    /// same.
    pub(crate) fn host_of(&self, guest: &str) -> Option<&'static str> {
        let mut seen: Vec<String> = self
            .guest_lspci()
            .into_iter()
            .filter(|f| matches!(&*f.id, "1234:11e8" | "1b36:0010" | "1af4:1110"))
            .map(|f| f.bdf)
            .collect();
        seen.sort();
        let at = seen.iter().position(|bdf| guest.ends_with(bdf))?;
        self.members.get(at).map(|member| member.bdf)
    }

    #[track_caller]
    pub(crate) fn domain_in_guest(&self, guest: &str) -> Domain {
        self.domain_on_host(self.host_of(guest).unwrap())
    }

    #[track_caller]
    pub(crate) fn domain_on_host(&self, bdf: &str) -> Domain {
        let mut members = self.members.iter();
        let member = members.find(|member| member.bdf == bdf);
        member
            .unwrap_or_else(|| panic!("{bdf} is no member"))
            .domain
    }

    /// The domain of the device that has an address; peers are at their bus addresses in the guest.
    pub(crate) fn owner_of(&self, address: u64) -> Option<Domain> {
        let here = |(first, last): &(u64, u64)| (*first..=*last).contains(&address);
        let mut members = self.members.iter();
        let owner = members.find(|member| member.bars.iter().any(here));
        owner.map(|member| member.domain)
    }

    pub(crate) fn guest_lspci(&self) -> Vec<Function> {
        lspci::parse(&self.output.stdout)
    }

    /// The guest's kernel log, each line with its level in front.
    pub(crate) fn guest_log(&self) -> impl Iterator<Item = &str> {
        let lines = self.output.stdout.lines().map(str::trim);
        lines.filter(|line| line.starts_with('<'))
    }
}

/// Makes a virtual function of the card, whose driver must be up for it to work.
fn make_function(lab: &Turn<'_>) -> String {
    lab.sh(&format!(
        "set -e
         echo 1 > /sys/bus/pci/devices/{CARD}/sriov_numvfs
         ip link set $(ls /sys/bus/pci/devices/{CARD}/net | head -n 1) up"
    ))
    .unwrap();
    let name = format!("basename $(readlink /sys/bus/pci/devices/{CARD}/virtfn0)");
    lab.sh(&name).unwrap().trim().to_owned()
}

/// First and last addresses of the BARs of a function.
fn bars(lab: &Turn<'_>, bdf: &str) -> Vec<(u64, u64)> {
    let text = lab
        .read(&format!("/sys/bus/pci/devices/{bdf}/resource"))
        .unwrap();
    let number = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok();
    let range = |line: &str| {
        let mut words = line.split_ascii_whitespace().map(number);
        Some((words.next()??, words.next()??))
    };
    let all = text.lines().take(6).filter_map(range);
    all.filter(|(start, _)| *start > 0).collect()
}

/// A line like `DMAR: [DMA Write NO_PASID] Request device [0000:03:00.0] fault addr 0xfe200000 [fault reason …`.
fn fault(line: &str) -> Option<Fault> {
    let (_, rest) = line.split_once("Request device [")?;
    let (requester, rest) = rest.split_once("] fault addr 0x")?;
    let address = rest.split(' ').next()?;
    Some(Fault {
        requester: requester.to_owned(),
        address: u64::from_str_radix(address, 16).ok()?,
    })
}
