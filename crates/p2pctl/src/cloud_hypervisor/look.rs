//! What the host says of the devices that a VM is to have: all that is read for the rules.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use iommu_group::{Cpu, Fabric, Placement, Sbdf, Space, Sysfs, SysfsError, Topology};
use p2p_vfio::{Admitted, Candidate, DomainName, HostView, Policy, admit};

use super::device::Asked;
use super::refusal::Refusal;
use super::rules::{Facts, Host};
use super::vdpa;
use super::version::Version;
use crate::source;

/// Class of display controllers, and NVIDIA's vendor id: their driver goes by cliques.
const DISPLAY: u32 = 0x03;
const NVIDIA: u16 = 0x10de;

/// What is asked about a VM.
pub(crate) struct Question<'a> {
    /// The devices that it is to have.
    pub(crate) asked: &'a [Asked],
    /// The device files of the vDPA devices that it is to have.
    pub(crate) vdpa: &'a [PathBuf],
    pub(crate) policy: Policy,
    pub(crate) version: Option<Version>,
    /// If the last of them comes to a VM that has the others: the functions that the VM had and has no more.
    pub(crate) departed: Option<&'a BTreeSet<Sbdf>>,
}

/// Looks at the devices and has the VM judged as every VMM's is.
pub(crate) fn look(root: &Path, question: Question<'_>) -> Result<Result<Host, Refusal>> {
    let Question {
        asked,
        vdpa,
        policy,
        version,
        departed,
    } = question;
    let sysfs = Sysfs::new(root);
    let topology = source::scan(root)?;
    let view = HostView::new(sysfs.clone(), topology.clone(), policy);
    let read = |device: &Asked| -> Result<Option<Candidate>, SysfsError> {
        let path = device.path.as_ref();
        path.map(|path| Candidate::read(&view, path, domain_of(device)))
            .transpose()
    };
    let candidates = match asked.iter().map(read).collect::<Result<Vec<_>, _>>() {
        Ok(candidates) => candidates,
        Err(error) => return Ok(Err(Refusal::Host { source: error })),
    };
    let mut host = Host {
        devices: Vec::new(),
        by_bus_address: None,
        hidden: Vec::new(),
        iommu_bits: None,
        cpu_bits: cpu_bits(root),
        accepts_any_p2pdma: topology
            .host()
            .cpu
            .as_ref()
            .is_some_and(Cpu::supports_p2pdma),
        version,
        exposures: Vec::new(),
        unsafe_interrupts: None,
    };
    for candidate in &candidates {
        let sbdf = candidate.as_ref().map(|candidate| candidate.sbdf);
        host.devices.push(sbdf.map(|sbdf| facts(&topology, sbdf)));
        if let Some(bits) = sbdf.map(|sbdf| sysfs.iommu_address_bits(sbdf)) {
            host.iommu_bits = bits?.into_iter().chain(host.iommu_bits).min();
        }
    }
    let candidates: Vec<Candidate> = candidates.into_iter().flatten().collect();
    let vdpa = match vdpa::functions(&sysfs, &view, vdpa) {
        Ok(functions) => functions.into_iter(),
        Err(refusal) => return Ok(Err(refusal)),
    };
    let own = candidates.iter().map(|candidate| candidate.sbdf);
    let own = own.chain(vdpa).collect();
    let named = asked.iter().flat_map(|device| &device.expose).copied();
    let named = named.collect();
    let exposures = match departed.zip(candidates.last()) {
        Some((departed, new)) => view.exposures_of_newcomer(new, &own, departed, &named),
        None => view.exposures(&own, &named),
    };
    match admit(candidates, view.verdicts(), exposures) {
        Ok(admitted) => {
            host.by_bus_address = by_bus_address(&admitted);
            host.hidden = hidden(&admitted);
            host.exposures = admitted.exposures;
            host.unsafe_interrupts = admitted.unsafe_interrupts;
            Ok(Ok(host))
        }
        Err(refusal) => Ok(Err(refusal.into())),
    }
}

/// Physical address bits of the host's processors: what `/proc/cpuinfo` beside `/sys` says.
fn cpu_bits(root: &Path) -> Option<u8> {
    let info = fs::read_to_string(root.parent()?.join("proc/cpuinfo")).ok()?;
    let sizes = info
        .lines()
        .find(|line| line.starts_with("address sizes"))?;
    let (_, sizes) = sizes.split_once(':')?;
    sizes.split_whitespace().next()?.parse().ok()
}

pub(crate) fn domain_of(device: &Asked) -> Option<DomainName> {
    let name = device.domain.clone();
    let domain = name.map_or(DomainName::Unnamed, DomainName::Named);
    device.p2p.then_some(domain)
}

fn facts(topology: &Topology, sbdf: Sbdf) -> Facts {
    let function = topology.get(sbdf);
    let bars = function
        .map(|function| topology.bars(function))
        .unwrap_or_default();
    Facts {
        sbdf,
        wants_clique: function
            .is_some_and(|f| f.ids().vendor == NVIDIA && f.class() >> 16 == DISPLAY),
        bars_32: bars.iter().any(|bar| bar.space == Space::Memory32),
        bars_64: bars.iter().any(|bar| bar.space == Space::Memory64),
        holes: Fabric::found(topology).memory_holes(sbdf),
    }
}

/// Two peers between which the BARs would have to be at their bus addresses.
fn by_bus_address(admitted: &Admitted) -> Option<(Sbdf, Sbdf)> {
    admitted.domains.iter().find_map(|domain| {
        let [a, b, ..] = domain.members.as_slice() else {
            return None;
        };
        (a.placement == Placement::AtBusAddress).then_some((a.sbdf, b.sbdf))
    })
}

/// Devices whose BARs are to be kept from their peers.
fn hidden(admitted: &Admitted) -> Vec<Sbdf> {
    let members = admitted.domains.iter().flat_map(|domain| &domain.members);
    members
        .filter(|member| member.hidden)
        .map(|member| member.sbdf)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_say_how_many_bits_they_have() {
        let dir = tempfile::tempdir().unwrap();
        let sys = dir.path().join("sys");
        assert_eq!(cpu_bits(&sys), None);
        fs::create_dir_all(dir.path().join("proc")).unwrap();
        let info = "processor\t: 0\naddress sizes\t: 39 bits physical, 48 bits virtual\npower management:\n";
        fs::write(dir.path().join("proc/cpuinfo"), info).unwrap();
        assert_eq!(cpu_bits(&sys), Some(39));
    }
}
