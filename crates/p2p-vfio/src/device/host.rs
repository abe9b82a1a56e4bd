//! A host function that is open through VFIO and not yet attached to a guest.

use std::sync::Arc;

use guest_topology::Endpoint;
use iommu_group::assignment::DeviceInfo;
use iommu_group::{Address, Bar, BusAddress, Config, ConfigSpace, Sbdf, spec};

use crate::context::IommuContext;
use crate::pci::{PciBackend, Region};
use crate::peers::PeerBars;

use super::bars::decode;
use super::{AttachError, capability};

/// An open device. Its requirements are known, and no guest sees it.
pub struct HostDevice {
    pub(super) sbdf: Sbdf,
    pub(super) device: Box<dyn PciBackend>,
    pub(super) config: Vec<u8>,
    pub(super) endpoint: Endpoint,
    /// The table of its P2P domain; `None` for an unshared device.
    pub(super) domain: Option<Arc<PeerBars>>,
    /// Policy hides its BARs: they are not mapped for peers, whose requests fault in the IOMMU.
    pub(super) hidden: bool,
}

impl HostDevice {
    /// Opens a checked device in `context`. The kernel resets it.
    ///
    /// # Errors
    /// [`AttachError`] names the device and the failed operation; the device is closed then.
    pub fn open(context: &IommuContext, info: &DeviceInfo) -> Result<Self, AttachError> {
        let device = Box::new(context.open(info.sbdf, info.group)?);
        let mut this = Self::new(info.sbdf, device, &info.bus_addresses)?;
        this.domain = context.peer_bars();
        this.hidden = info.hidden;
        this.endpoint = this.endpoint.placed(info.placement);
        Ok(this)
    }

    /// Creates it from an open device and the bus addresses of its BARs, by index.
    pub(crate) fn new(
        sbdf: Sbdf,
        device: Box<dyn PciBackend>,
        bus_addresses: &[(u8, u64)],
    ) -> Result<Self, AttachError> {
        let config_bytes = device.region(Region::Config).size_bytes.min(4096);
        let mut config = vec![0; usize::try_from(config_bytes).unwrap_or(0)];
        let read = device.read(Region::Config, 0, &mut config);
        read.map_err(|error| AttachError::Config { sbdf, error })?;
        if config.starts_with(&[0xff; 4]) {
            return Err(AttachError::Absent { sbdf });
        }
        let endpoint = endpoint(sbdf, &*device, &config, bus_addresses)?;
        Ok(Self {
            sbdf,
            device,
            config,
            endpoint,
            domain: None,
            hidden: false,
        })
    }

    /// Its requirements for the guest's topology and address space.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

/// Describes an open device: BAR sizes come from VFIO, everything else from configuration space.
fn endpoint(
    sbdf: Sbdf,
    device: &dyn PciBackend,
    config: &[u8],
    bus_addresses: &[(u8, u64)],
) -> Result<Endpoint, AttachError> {
    let indices = [0_u8, 1, 2, 3, 4, 5];
    let registers = indices.map(|bar| {
        let offset = spec::header::BAR0 + u16::from(bar) * 4;
        capability::dword(config, offset).unwrap_or(0)
    });
    let sizes = indices.map(|bar| device.region(Region::Bar(bar)).size_bytes);
    let bars = decode(registers, sizes).into_iter().map(|bar| {
        let mut addresses = bus_addresses.iter();
        let known = addresses.find(|(index, _)| *index == bar.index);
        Bar {
            bus_address: known.map(|(_, address)| BusAddress::new(*address)),
            ..bar
        }
    });
    let space = ConfigSpace::new(config);
    let link = Config::decode(&space)
        .express
        .and_then(|express| express.link);
    let pin = space.u8(spec::header::INTERRUPT_PIN).unwrap_or(0);
    Endpoint::new(bars, link, pin).map_err(|error| AttachError::Bar { sbdf, error })
}
