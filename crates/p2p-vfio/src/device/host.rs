//! A host function that is open through VFIO but not yet one of a guest.

use std::sync::Arc;

use guest_topology::Endpoint;
use iommu_group::assignment::DeviceInfo;
use iommu_group::{Address, Bar, BusAddress, Config, ConfigSpace, Sbdf, spec};

use crate::context::IommuContext;
use crate::pci::{PciBackend, Region};
use crate::peers::PeerBars;

use super::bars::decode;
use super::{AttachError, capability};

/// An open device: what it needs is known, nothing of it is visible to a guest.
pub struct HostDevice {
    pub(super) sbdf: Sbdf,
    pub(super) device: Box<dyn PciBackend>,
    pub(super) config: Vec<u8>,
    pub(super) endpoint: Endpoint,
    /// The BARs of its P2P domain; `None` outside of one.
    pub(super) domain: Option<Arc<PeerBars>>,
    /// Policy hides its BARs: they are mapped for nobody, and the IOMMU keeps the peers from them.
    pub(super) hidden: bool,
}

impl HostDevice {
    /// Opens a checked device in `context`. The kernel resets it.
    ///
    /// # Errors
    /// [`AttachError`] names the device and what was attempted; it is closed then.
    pub fn open(context: &IommuContext, info: &DeviceInfo) -> Result<Self, AttachError> {
        let device = Box::new(context.open(info.sbdf, info.group)?);
        let mut this = Self::new(info.sbdf, device, &info.bus_addresses)?;
        this.domain = context.peer_bars();
        this.hidden = info.hidden;
        this.endpoint = this.endpoint.placed(info.placement);
        Ok(this)
    }

    /// From an open device and the bus addresses of its BARs, by number.
    pub(super) fn new(
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

    /// What it needs of the guest's topology and address space.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

/// The endpoint that an open device is: sizes of BARs from VFIO, everything else from its configuration space.
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
