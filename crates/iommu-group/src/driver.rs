//! Kinds of drivers.

/// The kind of the driver that is bound to a function. Only this type identifies drivers by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverKind {
    /// No driver is bound.
    Unbound,
    /// vfio-pci or a vendor's driver that uses its core: the function is assigned to a virtual machine, or can be.
    Vfio,
    /// The driver of PCI Express ports. It does no DMA (linux 7.2 drivers/pci/pcie/portdrv.c: `driver_managed_dma`).
    Port,
    /// A driver that only reserves the function (linux 7.2 drivers/pci/pci-stub.c: `driver_managed_dma`).
    Stub,
    /// Any other driver: the host uses the function.
    Host,
}

impl DriverKind {
    /// The kind of the driver with this name. `None` means that no driver is bound.
    ///
    /// Drivers that use the vfio-pci core are named after it: `mlx5_vfio_pci`, `nvgrace_gpu_vfio_pci`,
    /// `virtio_vfio_pci`.
    #[must_use]
    pub fn of(driver: Option<&str>) -> Self {
        match driver {
            None => Self::Unbound,
            Some("pcieport") => Self::Port,
            Some("pci-stub") => Self::Stub,
            Some(name) if name.replace('-', "_").ends_with("vfio_pci") => Self::Vfio,
            Some(_) => Self::Host,
        }
    }

    /// Whether the kind is [`Vfio`](Self::Vfio).
    #[must_use]
    pub fn is_vfio(self) -> bool {
        self == Self::Vfio
    }

    /// Whether the other functions of the group can be assigned while this driver is bound.
    #[must_use]
    pub fn leaves_group_viable(self) -> bool {
        self != Self::Host
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_are_known_by_their_names() {
        for (driver, kind) in [
            (None, DriverKind::Unbound),
            (Some("vfio-pci"), DriverKind::Vfio),
            (Some("mlx5_vfio_pci"), DriverKind::Vfio),
            (Some("nvgrace_gpu_vfio_pci"), DriverKind::Vfio),
            (Some("pcieport"), DriverKind::Port),
            (Some("pci-stub"), DriverKind::Stub),
            (Some("nvme"), DriverKind::Host),
            (Some("vfio"), DriverKind::Host),
        ] {
            assert_eq!(DriverKind::of(driver), kind, "{driver:?}");
            let viable = kind != DriverKind::Host;
            assert_eq!(kind.leaves_group_viable(), viable, "{driver:?}");
        }
    }
}
