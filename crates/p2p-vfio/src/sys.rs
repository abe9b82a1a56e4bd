//! The edge to the kernel: VFIO's ioctls and mappings of device memory. All unsafe code is here.

mod bar_mapping;
mod iova;
mod type1;
mod vfio_pci;

use std::io;

use vfio_ioctls::VfioError;

pub(crate) use bar_mapping::BarMapping;
pub(crate) use type1::Type1Container;
pub(crate) use vfio_pci::VfioPci;

/// The errno inside a [`VfioError`] where it has one, else its text.
fn io_error(error: VfioError) -> io::Error {
    match error {
        VfioError::OpenContainer(e) => e,
        VfioError::IommuDmaMap(e)
        | VfioError::IommuDmaUnmap(e)
        | VfioError::ContainerSetIOMMU(e)
        | VfioError::GroupGetDeviceFD(e)
        | VfioError::SetDeviceAttr(e)
        | VfioError::VfioDeviceGetInfo(e) => io::Error::from_raw_os_error(e.errno()),
        other => io::Error::other(other),
    }
}
