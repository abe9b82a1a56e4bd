//! A host function that is open through VFIO but not yet one of a guest.

use std::sync::Arc;

use iommu_group::{Address, Gpa, Placement, Sbdf};

use crate::admission::Candidate;
use crate::context::IommuContext;
use crate::guest::{Endpoint, Link};
use crate::pci::{PciBackend, Region};
use crate::peers::PeerBars;

use super::bars::Bars;
use super::{AttachError, capability};

const CAP_EXPRESS: u16 = 0x10;
/// Link status within the PCI Express capability (PCIe r6.0 §7.5.3.8).
const LINK_STATUS: u16 = 0x10;

/// An open device: what it needs is known, nothing of it is visible to a guest.
pub struct HostDevice {
    pub(super) sbdf: Sbdf,
    pub(super) device: Box<dyn PciBackend>,
    pub(super) config: Vec<u8>,
    pub(super) bars: Bars,
    /// The BARs of its P2P domain; `None` outside of one.
    pub(super) domain: Option<Arc<PeerBars>>,
    /// Policy hides its BARs: they are mapped for nobody, and the IOMMU keeps the peers from them.
    pub(super) hidden: bool,
    /// Where BARs must be, by number, because a switch of the host knows them by bus address.
    pub(super) homes: Vec<(u8, Gpa)>,
}

impl HostDevice {
    /// Opens an admitted device in `context`. The kernel resets it.
    ///
    /// # Errors
    /// [`AttachError`] names the device and what was attempted; it is closed then.
    pub fn open(context: &IommuContext, candidate: &Candidate) -> Result<Self, AttachError> {
        let device = context.open(candidate.sbdf, candidate.group)?;
        let mut this = Self::new(candidate.sbdf, Box::new(device))?;
        this.domain = context.peer_bars();
        this.hidden = candidate.hidden;
        if candidate.placement == Placement::AtBusAddress {
            let homes = candidate.bus_addresses.iter();
            this.homes = homes.map(|(bar, at)| (*bar, Gpa::new(*at))).collect();
        }
        Ok(this)
    }

    pub(super) fn new(sbdf: Sbdf, device: Box<dyn PciBackend>) -> Result<Self, AttachError> {
        let config_bytes = device.region(Region::Config).size_bytes.min(4096);
        let mut config = vec![0; usize::try_from(config_bytes).unwrap_or(0)];
        let read = device.read(Region::Config, 0, &mut config);
        read.map_err(|error| AttachError::Config { sbdf, error })?;
        if config.starts_with(&[0xff; 4]) {
            return Err(AttachError::Absent { sbdf });
        }
        let bars = read_bars(sbdf, &*device, &config)?;
        Ok(Self {
            sbdf,
            device,
            config,
            bars,
            domain: None,
            hidden: false,
            homes: Vec::new(),
        })
    }

    /// What it needs of the guest's topology and address space.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            bars: self.bars.infos().to_vec(),
            at: self.homes.clone(),
            link: self.link(),
        }
    }

    /// Its link as it runs now. A function without one (conventional, integrated) counts as the
    /// slowest there is.
    fn link(&self) -> Link {
        let slowest = Link { speed: 1, width: 1 };
        let express = capability::standard(&self.config)
            .into_iter()
            .find(|c| c.id == CAP_EXPRESS);
        let status = express.and_then(|c| capability::dword(&self.config, c.offset + LINK_STATUS));
        let Some([_, _, low, high]) = status.map(u32::to_le_bytes) else {
            return slowest;
        };
        let speed = low & 0xf;
        let width = (low >> 4) | (high & 0x3) << 4;
        if speed == 0 || width == 0 {
            return slowest;
        }
        Link { speed, width }
    }
}

fn read_bars(sbdf: Sbdf, device: &dyn PciBackend, config: &[u8]) -> Result<Bars, AttachError> {
    let indices = [0_u8, 1, 2, 3, 4, 5];
    let hardware = indices.map(|bar| {
        let offset = 0x10 + u16::from(bar) * 4;
        capability::dword(config, offset).unwrap_or(0)
    });
    let sizes = indices.map(|bar| device.region(Region::Bar(bar)).size_bytes);
    Bars::new(hardware, sizes).map_err(|bar| AttachError::BarSize {
        sbdf,
        bar,
        size_bytes: sizes.get(usize::from(bar)).copied().unwrap_or(0),
    })
}
