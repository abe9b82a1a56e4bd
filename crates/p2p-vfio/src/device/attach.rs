//! Attaches an open host function to a guest.

use std::sync::Arc;

use guest_topology::FixedBars;
use iommu_group::Placement;
use iommu_group::spec::{cap, msix};

use crate::memory::HostMemory;
use crate::pci::{PciBackend, Region, VectorKind};

use super::bar_mappings::BarMappings;
use super::bars::Bars;
use super::capability::{self, Capability};
use super::config_mask::ConfigMask;
use super::interrupts::Interrupts;
use super::mmap_ranges::mmap_ranges;
use super::msi::Msi;
use super::msix::Msix;
use super::reset_regs::ResetRegs;
use super::vfio_events::VfioEvents;
use super::{AssignedDevice, AttachError, DeviceParams, HostDevice};

impl AssignedDevice {
    /// Attaches an open device to a guest. Memory decode is off and its BARs are at 0 until
    /// [`place_bar`](Self::place_bar) and [`enable_memory`](Self::enable_memory) are called.
    ///
    /// # Errors
    /// [`AttachError`] names the device and the failed operation; the device is closed then.
    pub fn new(host: HostDevice, params: DeviceParams) -> Result<Self, AttachError> {
        let HostDevice {
            sbdf,
            device,
            config,
            endpoint,
            domain,
            hidden,
        } = host;
        let shown = domain.clone().filter(|_| !hidden);
        // Placement matters only for BARs that peers can see.
        let fixed_bars = match (endpoint.placement(), &shown) {
            (Placement::AtBusAddress, Some(_)) => FixedBars::new(endpoint.bars()),
            _ => FixedBars::default(),
        };
        let pin = endpoint.interrupt_pin().is_some();
        let has_line = pin && params.intx.is_some() && device.has_line();
        let mut mask = ConfigMask::of_endpoint(&config, has_line);
        if let Some(clique) = params.clique
            && shown.is_some()
        {
            let told = clique.show(&config, &mut mask);
            told.map_err(|why| AttachError::Clique { sbdf, why })?;
        }
        let vfio_events = VfioEvents::listen(&*device)
            .map_err(|error| AttachError::VfioEvents { sbdf, error })?;
        let (msi, msix) = read_vectors(&*device, &config);
        let mut this = Self {
            sbdf,
            fixed_bars,
            mappings: BarMappings::new(sbdf, params.slots, params.claims, shown),
            domain,
            interrupts: Interrupts::new(params.msi, params.vector_fds, params.intx),
            vfio_events,
            events: params.events,
            command: [0; 2],
            power: 0,
            stopped: false,
            detached: false,
            has_line,
            bars: Bars::new(endpoint.bars()),
            msi,
            msix,
            reset_regs: ResetRegs::find(&config),
            mask,
            reach: params.mmio,
            device,
        };
        this.map_bars()?;
        this.write_silent()
            .map_err(|error| AttachError::Config { sbdf, error })?;
        let wanted = this.wanted_interrupts();
        let on = this.interrupts.apply(&*this.device, &wanted);
        on.map_err(|error| AttachError::Interrupts { sbdf, error })?;
        Ok(this)
    }

    /// Maps the mappable parts of the BARs into this process. The guest and the peers do not see them yet.
    fn map_bars(&mut self) -> Result<(), AttachError> {
        let structures: Vec<_> = self
            .msix
            .iter()
            .flat_map(|msix| [msix.table, msix.pending])
            .collect();
        for info in self.bars.infos() {
            let bar = info.index;
            let traps: Vec<_> = structures
                .iter()
                .filter(|s| s.bar == bar)
                .map(|s| (s.offset, s.len_bytes))
                .collect();
            let region = Region::Bar(bar);
            let mut areas = Vec::new();
            for (offset, len_bytes) in mmap_ranges(&self.device.region(region), &traps) {
                let len = usize::try_from(len_bytes).unwrap_or(usize::MAX);
                let mapping = self.device.map(region, offset, len);
                let mapping = mapping.map_err(|error| AttachError::MapBar {
                    sbdf: self.sbdf,
                    bar,
                    error,
                })?;
                areas.push((offset, HostMemory::of_bar(Arc::new(mapping))));
            }
            self.mappings.add(bar, areas);
        }
        Ok(())
    }
}

fn read_vectors(device: &dyn PciBackend, config: &[u8]) -> (Option<Msi>, Option<Msix>) {
    let (mut msi, mut msi_x) = (None, None);
    for Capability { id, offset } in capability::standard(config) {
        let Some(header) = capability::dword(config, offset) else {
            continue;
        };
        let [low, next, control_low, control_high] = header.to_le_bytes();
        let control = u16::from_le_bytes([control_low, control_high]);
        if id == cap::MSI && device.vectors(VectorKind::Msi).count > 0 {
            msi = Some(Msi::new(offset, [low, next], control));
        }
        if id == cap::MSI_X
            && device.vectors(VectorKind::Msix).count
                > u32::from(control & msix::CONTROL_TABLE_SIZE)
            && let (Some(table), Some(pending)) = (
                capability::dword(config, offset.saturating_add(msix::TABLE)),
                capability::dword(config, offset.saturating_add(msix::PENDING)),
            )
        {
            msi_x = Some(Msix::new(offset, control, table, pending));
        }
    }
    (msi, msi_x)
}
