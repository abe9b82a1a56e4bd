//! An endpoint as input of resource assignment.

use std::ops::Range;

use iommu_group::{Bar, Link, Placement, Sbdf, Topology, spec};
use thiserror::Error;

/// What an endpoint needs of the guest's address space, and the link and pin that the port above it shows.
///
/// A snapshot of the host contains all of it ([`of_function`](Self::of_function)), so a guest's needs are known before
/// any device is opened. Only an open VFIO device has the rest: BARs that a variant driver of VFIO adds or resizes,
/// whether the interrupt pin can be used, which parts of a BAR can be mapped, and the number of vectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    bars: Vec<Bar>,
    link: Link,
    interrupt_pin: Option<u8>,
    placement: Placement,
}

/// An invalid BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "BAR {bar} cannot have {size_bytes} bytes: a memory BAR has a power of two, at least 16, at most 2 GiB if it has 32 \
     bits, and needs the next register too if it has 64"
)]
pub struct BarError {
    /// Its index.
    pub bar: u8,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// A host function that cannot be an endpoint of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EndpointError {
    /// The snapshot does not have the function.
    #[error("there is no PCI function {sbdf} on this host")]
    Missing {
        /// The function.
        sbdf: Sbdf,
    },
    /// The function is a port or a bridge.
    #[error("{sbdf} is a bridge, which cannot be an endpoint of a guest")]
    Bridge {
        /// The function.
        sbdf: Sbdf,
    },
    /// The function has an invalid BAR.
    #[error("{sbdf}: {error}")]
    Bar {
        /// The function.
        sbdf: Sbdf,
        /// The error of the BAR.
        error: BarError,
    },
}

impl Endpoint {
    /// Creates an endpoint without fixed addresses from its BARs, its link at the current speed and width, and its
    /// interrupt pin: 1 for INTA to 4 for INTD, 0 for none. I/O BARs are left out, because guests get none. An endpoint
    /// without a link (`None`, or generation 0: conventional and integrated functions, unreadable registers) gets the
    /// slowest link.
    ///
    /// # Errors
    /// [`BarError`] if the size of a memory BAR is invalid, or the header has no register for it.
    pub fn new(
        bars: impl IntoIterator<Item = Bar>,
        link: Option<Link>,
        interrupt_pin: u8,
    ) -> Result<Self, BarError> {
        let mut bars: Vec<Bar> = bars.into_iter().filter(Bar::is_memory).collect();
        bars.sort_by_key(|bar| bar.index);
        let mut free = 0..6;
        match bars.iter().find(|bar| !take_registers(bar, &mut free)) {
            Some(bar) => Err(BarError {
                bar: bar.index,
                size_bytes: bar.size_bytes,
            }),
            None => Ok(Self {
                bars,
                link: link
                    .filter(|link| link.generation != 0 && link.lanes != 0)
                    .unwrap_or(Link::SLOWEST),
                interrupt_pin: (1..=4).contains(&interrupt_pin).then_some(interrupt_pin),
                placement: Placement::Anywhere,
            }),
        }
    }

    /// Creates the endpoint of a host function without opening it. Sizes and types of BARs are those of the kernel's
    /// resources, as VFIO reports them (linux 7.2 drivers/vfio/pci/vfio_pci_core.c:
    /// `vfio_pci_ioctl_get_region_info()`); link and pin are those of its configuration space.
    ///
    /// # Errors
    /// [`EndpointError`] names the function and the reason.
    pub fn of_function(topology: &Topology, sbdf: Sbdf) -> Result<Self, EndpointError> {
        let function = topology.get(sbdf).ok_or(EndpointError::Missing { sbdf })?;
        if function.is_bridge() {
            return Err(EndpointError::Bridge { sbdf });
        }
        let link = function.config().express.and_then(|express| express.link);
        let pin = function.space().u8(spec::header::INTERRUPT_PIN);
        Self::new(topology.bars(function), link, pin.unwrap_or(0))
            .map_err(|error| EndpointError::Bar { sbdf, error })
    }

    /// The same endpoint with its BARs at their bus addresses, or without fixed addresses.
    #[must_use]
    pub fn placed(self, placement: Placement) -> Self {
        Self { placement, ..self }
    }

    /// Its memory BARs, in the order of their indices.
    #[must_use]
    pub fn bars(&self) -> &[Bar] {
        &self.bars
    }

    /// Its link.
    #[must_use]
    pub fn link(&self) -> Link {
        self.link
    }

    /// Its interrupt pin: 1 for INTA to 4 for INTD.
    #[must_use]
    pub fn interrupt_pin(&self) -> Option<u8> {
        self.interrupt_pin
    }

    /// The required placement of its BARs.
    #[must_use]
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// Whether it has BARs that must be at their bus addresses.
    pub(crate) fn is_fixed(&self) -> bool {
        self.placement == Placement::AtBusAddress && !self.bars.is_empty()
    }
}

/// Takes the registers of a BAR from the `free` ones. Returns whether they are free and can express the BAR (PCIe r6.0
/// §7.5.1.2.1).
fn take_registers(bar: &Bar, free: &mut Range<u8>) -> bool {
    let registers = if bar.is_64bit() { 2 } else { 1 };
    let end = bar.index.saturating_add(registers);
    let is_free = bar.index >= free.start && end <= free.end;
    free.start = end;
    let fits = bar.is_64bit() || bar.size_bytes <= 1 << 31;
    is_free && fits && bar.size_bytes.is_power_of_two() && bar.size_bytes >= 16
}

#[cfg(test)]
mod tests;
