//! Checks a VM's devices and reads the host facts that cloud-hypervisor's constraints depend on.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use iommu_group::assignment::{
    Assignment, AssignmentRequest, DeviceInfo, HostSnapshot, check_assignment,
};
use iommu_group::policy::Policy;
use iommu_group::{Cpu, Placement, RoutingModel, Sbdf, Space, Sysfs, SysfsError, Topology};
use thiserror::Error;

use super::constraints::{DeviceProperties, Host};
use super::device::RequestedDevice;
use super::refusal::Refusal;
use super::vdpa;
use super::version::Version;
use crate::source;

/// Class of display controllers, and NVIDIA's vendor ID: their drivers use cliques.
const DISPLAY: u32 = 0x03;
const NVIDIA: u16 = 0x10de;

/// A VM to check.
pub(crate) struct CheckRequest<'a> {
    /// The requested devices.
    pub(crate) requested: &'a [RequestedDevice],
    /// The device files of the requested vDPA devices.
    pub(crate) vdpa: &'a [PathBuf],
    pub(crate) policy: Policy,
    pub(crate) version: Option<Version>,
    /// Set if the last device is added to a VM that has the others: the functions that left the VM.
    pub(crate) departed: Option<&'a BTreeSet<Sbdf>>,
}

/// Why the devices of a VM are not accepted.
#[derive(Debug, Error)]
pub(crate) enum CheckError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The check itself failed.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

/// Reads the devices and runs the checks that apply to all VMMs.
pub(crate) fn inspect(root: &Path, request: CheckRequest<'_>) -> Result<Host, CheckError> {
    let CheckRequest {
        requested,
        vdpa,
        policy,
        version,
        departed,
    } = request;
    let sysfs = Sysfs::new(root);
    let snapshot = HostSnapshot::new(source::scan(root)?, policy);
    let topology = snapshot.topology();
    let read = |device: &RequestedDevice| -> Result<Option<DeviceInfo>, SysfsError> {
        let path = device.path.as_ref();
        path.map(|path| DeviceInfo::read(&snapshot, &sysfs, path, device.domain_name()))
            .transpose()
    };
    let devices = requested.iter().map(read).collect::<Result<Vec<_>, _>>();
    let devices = devices.map_err(|source| Refusal::Host { source })?;
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
    for device in &devices {
        let sbdf = device.as_ref().map(|device| device.sbdf);
        host.devices
            .push(sbdf.map(|sbdf| properties(topology, sbdf)));
        if let Some(bits) = sbdf.map(|sbdf| sysfs.iommu_address_bits(sbdf)) {
            let bits = bits.context("cannot read the address bits of the IOMMU")?;
            host.iommu_bits = bits.into_iter().chain(host.iommu_bits).min();
        }
    }
    let others = vdpa::functions(&sysfs, &snapshot, vdpa)?;
    let named = requested.iter().flat_map(|device| &device.expose).copied();
    let request = AssignmentRequest {
        devices: devices.into_iter().flatten().collect(),
        others: &others.into_iter().collect(),
        expose: &named.collect(),
        departed,
    };
    let assignment = check_assignment(&snapshot, request).map_err(Refusal::from)?;
    host.by_bus_address = by_bus_address(&assignment);
    host.hidden = hidden(&assignment);
    host.exposures = assignment.exposures;
    host.unsafe_interrupts = assignment.unsafe_interrupts;
    Ok(host)
}

/// Physical address bits of the host's processors, from the `/proc/cpuinfo` that belongs to this sysfs.
fn cpu_bits(root: &Path) -> Option<u8> {
    let info = fs::read_to_string(root.parent()?.join("proc/cpuinfo")).ok()?;
    let sizes = info
        .lines()
        .find(|line| line.starts_with("address sizes"))?;
    let (_, sizes) = sizes.split_once(':')?;
    sizes.split_whitespace().next()?.parse().ok()
}

fn properties(topology: &Topology, sbdf: Sbdf) -> DeviceProperties {
    let function = topology.get(sbdf);
    let bars = function
        .map(|function| topology.bars(function))
        .unwrap_or_default();
    DeviceProperties {
        sbdf,
        wants_clique: function
            .is_some_and(|f| f.ids().vendor == NVIDIA && f.class() >> 16 == DISPLAY),
        bars_32: bars.iter().any(|bar| bar.space == Space::Memory32),
        bars_64: bars.iter().any(|bar| bar.space == Space::Memory64),
        holes: RoutingModel::found(topology).memory_holes(sbdf),
    }
}

/// Two peers whose route requires BARs at their bus addresses.
fn by_bus_address(assignment: &Assignment) -> Option<(Sbdf, Sbdf)> {
    assignment.domains.iter().find_map(|members| {
        let [a, b, ..] = members.as_slice() else {
            return None;
        };
        (a.placement == Placement::AtBusAddress).then_some((a.sbdf, b.sbdf))
    })
}

/// Devices whose BARs policy hides from their peers.
fn hidden(assignment: &Assignment) -> Vec<Sbdf> {
    let members = assignment.domains.iter().flatten();
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
