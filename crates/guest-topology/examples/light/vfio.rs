//! The VMM's own VFIO devices, on `vfio-ioctls`: configuration space, BARs, MSI-X. Nothing here concerns peers. Left out:
//! MSI, INTx, I/O BARs, dirty tracking, hotplug.
#![allow(unsafe_code, reason = "ioctl and mmap of VFIO files")]

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use example_vmm::{Result, Routes, Slots, Vm};
use guest_topology::{BarArea, ConfigHeader};
use iommu_group::spec::{HEADER_BYTES, LEGACY_BYTES, af, cap, express, header, msix, pm};
use iommu_group::{Address, AddressRange, Bar, Config, ConfigSpace, Gpa, Iova};
use kvm_bindings::{kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO};
use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_REGION_INFO_FLAG_MMAP,
};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioDeviceFd, VfioOps, VfioRegionInfoCap};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

const PAGE: u64 = 4096;
/// `VFIO_IOMMU_GET_INFO` (linux include/uapi/linux/vfio.h), which vfio-ioctls does not have.
const IOMMU_GET_INFO: libc::c_ulong = 0x3b70;

/// KVM's VFIO device, of which a VM has one.
pub(crate) fn kvm_device(vm: &Vm) -> Result<Arc<VfioDeviceFd>> {
    let mut request = kvm_create_device {
        type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
        ..Default::default()
    };
    let fd = vm.fd.create_device(&mut request)?;
    Ok(Arc::new(VfioDeviceFd::new_from_kvm(fd)))
}

/// The I/O addresses that the IOMMU translates, once the container has a device.
pub(crate) fn iova_ranges(container: &VfioContainer) -> Result<Vec<AddressRange<Iova>>> {
    let mut info = [0_u32; 1024];
    info[0] = u32::try_from(size_of_val(&info))?;
    // SAFETY: the kernel writes at most the number of bytes in the first word, which is the length.
    if unsafe { ioctl_with_mut_ref(container, IOMMU_GET_INFO, &mut info) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let word = |at: usize| info.get(at).copied().unwrap_or(0);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 1)) << 32;
    // struct vfio_iommu_type1_info has the offset of the first capability; struct vfio_info_cap_header that of the next.
    let index = |bytes: u32| usize::try_from(bytes / 4);
    let mut at = index(word(4))?;
    while at != 0 && word(at) & 0xffff != VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE {
        at = index(word(at + 1))?;
    }
    if at == 0 {
        return Err("the kernel does not tell which I/O addresses it translates".into());
    }
    let ranges = (0..usize::try_from(word(at + 2))?).map(|n| at + 4 + n * 4);
    let end = |at| Iova::new(long(at + 2).saturating_add(1));
    let range = |at| AddressRange::between(Iova::new(long(at)), end(at));
    Ok(ranges.filter_map(range).collect())
}

/// A device of the VM.
pub(crate) struct Device {
    vfio: &'static VfioDevice,
    container: Arc<VfioContainer>,
    slots: Slots,
    header: ConfigHeader,
    mapped: Vec<(BarArea, *mut u8)>,
    msix: Option<MsiX>,
    /// Power control, and registers with a bit that resets the function.
    power: Option<u16>,
    resets: Vec<(u16, u8)>,
}

impl Device {
    /// Opens the device at a sysfs path in a container.
    ///
    /// vfio-ioctls takes a group from KVM and from its container when the first of its devices is dropped, and panics in
    /// `drop` if a device was removed or regrouped. Devices are therefore not dropped: they close together, when the
    /// process ends.
    pub(crate) fn open(path: &Path, container: &Arc<VfioContainer>, vm: &Vm) -> Result<Self> {
        let ops = Arc::clone(container) as Arc<dyn VfioOps>;
        let vfio: &'static VfioDevice = Box::leak(Box::new(VfioDevice::new(path, ops, true)?));
        vfio.reset();
        let mut config = [0; LEGACY_BYTES as usize];
        vfio.region_read(VFIO_PCI_CONFIG_REGION_INDEX, &mut config, 0);
        let offset = |id| capability(&config, id);
        let resets = [
            (cap::EXPRESS, express::DEVICE_CONTROL + 1, 0x80),
            (cap::ADVANCED_FEATURES, af::CONTROL, af::CONTROL_FLR),
        ];
        let resets = resets.into_iter();
        let mut device = Self {
            vfio,
            container: Arc::clone(container),
            slots: vm.slots.clone(),
            header: [0; HEADER_BYTES],
            mapped: Vec::new(),
            msix: MsiX::new(&config, vm.routes.clone())?,
            power: offset(cap::POWER_MANAGEMENT).map(|at| at + pm::CONTROL),
            resets: resets
                .filter_map(|(id, register, bit)| Some((offset(id)? + register, bit)))
                .collect(),
        };
        device.map_bars()?;
        device.read_header();
        Ok(device)
    }

    /// Maps the BARs into this process, without the pages of the MSI-X table.
    fn map_bars(&mut self) -> Result<()> {
        for bar in 0..6_u8 {
            let index = u32::from(bar);
            let size = self.vfio.get_region_size(index);
            let is_sparse =
                |cap: &VfioRegionInfoCap| matches!(cap, VfioRegionInfoCap::SparseMmap(_));
            let sparse = self.vfio.get_region_caps(index).iter().any(is_sparse);
            if sparse || self.vfio.get_region_flags(index) & VFIO_REGION_INFO_FLAG_MMAP == 0 {
                continue;
            }
            let trap = self.msix.as_ref().filter(|msix| msix.bar == bar);
            let trap = trap.map_or((size, size), |msix| {
                let end = msix.offset + msix.len_bytes();
                (msix.offset / PAGE * PAGE, end.next_multiple_of(PAGE))
            });
            for (start, end) in [(0, trap.0), (trap.1, size)] {
                if start >= end {
                    continue;
                }
                let offset = self.vfio.get_region_offset(index) + start;
                // SAFETY: a new mapping at an address that the kernel chooses touches no existing memory.
                let host = unsafe {
                    libc::mmap(
                        std::ptr::null_mut(),
                        usize::try_from(end - start)?,
                        libc::PROT_READ | libc::PROT_WRITE,
                        libc::MAP_SHARED,
                        self.vfio.as_raw_fd(),
                        libc::off_t::try_from(offset)?,
                    )
                };
                if host == libc::MAP_FAILED {
                    return Err(std::io::Error::last_os_error().into());
                }
                let area = BarArea {
                    bar,
                    offset: start,
                    len_bytes: end - start,
                };
                self.mapped.push((area, host.cast()));
            }
        }
        Ok(())
    }

    /// The parts of BARs that are mapped into this process.
    pub(crate) fn areas(&self) -> impl Iterator<Item = BarArea> {
        self.mapped.iter().map(|(area, _)| *area)
    }

    /// Maps such a part at an address of the guest, and for the other devices of the container.
    pub(crate) fn map(&self, area: BarArea, at: AddressRange<Gpa>, for_peers: bool) -> Result<()> {
        let (iova, len) = (at.start().value(), usize::try_from(at.len_bytes())?);
        let mut mapped = self.mapped.iter();
        let host = mapped.find(|(known, _)| *known == area);
        let (_, host) = *host.ok_or("VFIO does not map this part of the BAR")?;
        if for_peers {
            // SAFETY: the part is mapped in this process until it ends, and nothing makes references into it.
            unsafe { self.container.vfio_dma_map(iova, len, host) }?;
        }
        // SAFETY: as above.
        let shown = unsafe { self.slots.add(at, host) };
        if shown.is_err() && for_peers {
            self.container.vfio_dma_unmap(iova, len)?;
        }
        shown
    }

    /// Undoes [`map`](Self::map).
    pub(crate) fn unmap(&self, at: AddressRange<Gpa>, for_peers: bool) -> Result<()> {
        let (iova, len) = (at.start().value(), usize::try_from(at.len_bytes())?);
        if for_peers {
            self.container.vfio_dma_unmap(iova, len)?;
        }
        self.slots.remove(at)
    }

    /// Writes an address to the registers of a BAR.
    pub(crate) fn place_bar(&mut self, bar: &Bar, gpa: Gpa) {
        let at = header::BAR0 + u16::from(bar.index) * 4;
        let [a, b, c, d, high @ ..] = gpa.value().to_le_bytes();
        self.config_write(at, &[a, b, c, d]);
        if bar.is_64bit() {
            self.config_write(at + 4, &high);
        }
    }

    /// The header as the guest reads it; memory decode reads as off while the device sleeps.
    pub(crate) fn header(&self) -> ConfigHeader {
        self.header
    }

    fn read_header(&mut self) {
        let (vfio, config) = (self.vfio, VFIO_PCI_CONFIG_REGION_INDEX);
        vfio.region_read(config, &mut self.header, 0);
        let mut power = [0];
        if let Some(at) = self.power {
            vfio.region_read(config, &mut power, at.into());
        }
        if u16::from(power[0]) & pm::CONTROL_STATE != 0 {
            let memory = header::COMMAND_MEMORY.to_le_bytes()[0];
            self.header[usize::from(header::COMMAND)] &= !memory;
        }
    }

    /// Whether a write to configuration space may stop the device: a reset, or another power state.
    pub(crate) fn stops(&self, offset: u16, data: &[u8]) -> bool {
        let byte = |at: u16| data.get(usize::from(at.checked_sub(offset)?)).copied();
        let resets = |(at, bit): &(u16, u8)| byte(*at).is_some_and(|value| value & bit != 0);
        self.power.and_then(byte).is_some() || self.resets.iter().any(resets)
    }

    pub(crate) fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.vfio
            .region_read(VFIO_PCI_CONFIG_REGION_INDEX, data, offset.into());
        for (at, byte) in (offset..).zip(data) {
            if let Some(control) = self.msix.as_ref().and_then(|msix| msix.control_byte(at)) {
                *byte = control;
            } else if at == header::INTERRUPT_PIN {
                *byte = 0;
            }
        }
    }

    pub(crate) fn config_write(&mut self, offset: u16, data: &[u8]) {
        if let Some(msix) = &mut self.msix
            && msix.write_control(offset, data)
        {
            msix.update(self.vfio);
        }
        self.vfio
            .region_write(VFIO_PCI_CONFIG_REGION_INDEX, data, offset.into());
        self.read_header();
    }

    pub(crate) fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        match self.msix.as_ref().and_then(|msix| msix.dword(bar, offset)) {
            Some(value) => {
                for (byte, value) in data.iter_mut().zip(value.to_le_bytes()) {
                    *byte = value;
                }
            }
            None => self.vfio.region_read(bar.into(), data, offset),
        }
    }

    pub(crate) fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        match &mut self.msix {
            Some(msix) if msix.dword(bar, offset).is_some() => {
                for (n, chunk) in (0..).zip(data.chunks_exact(4)) {
                    msix.write_dword(offset + n * 4, chunk);
                }
                msix.update(self.vfio);
            }
            _ => self.vfio.region_write(bar.into(), data, offset),
        }
    }
}

/// Offset of a capability in the first 256 bytes (PCIe r6.0 §7.5.1.1.11).
fn capability(config: &[u8], id: u8) -> Option<u16> {
    let byte = |at: u8| config.get(usize::from(at)).copied().unwrap_or(0);
    let mut at = byte(header::CAPABILITIES.to_le_bytes()[0]);
    for _ in 0..cap::MOST {
        if at == 0 || byte(at) == id {
            break;
        }
        at = byte(at.saturating_add(1));
    }
    (at != 0).then_some(at.into())
}

/// MSI-X as the guest programs it (PCIe r6.0 §7.7.2).
struct MsiX {
    routes: Routes,
    /// Offset of the message control register, and its value.
    at: u16,
    control: u16,
    bar: u8,
    offset: u64,
    vectors: Vec<Vector>,
    on: bool,
}

/// Entry of the table, with the eventfd of its vector and the route that the eventfd has.
struct Vector {
    entry: [u32; 4],
    event: EventFd,
    route: Option<(u32, [u32; 4])>,
}

impl MsiX {
    fn new(config: &[u8], routes: Routes) -> Result<Option<Self>> {
        let found = Config::decode(&ConfigSpace::new(config)).msi_x;
        let (Some(found), Some(at)) = (found, capability(config, cap::MSI_X)) else {
            return Ok(None);
        };
        let vector = |_| -> Result<Vector> {
            Ok(Vector {
                entry: [0, 0, 0, msix::ENTRY_MASKED],
                event: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
                route: None,
            })
        };
        Ok(Some(Self {
            routes,
            at: at + msix::CONTROL,
            control: found.vectors - 1,
            bar: found.table_bar,
            offset: found.table_offset.into(),
            vectors: (0..found.vectors).map(vector).collect::<Result<_>>()?,
            on: false,
        }))
    }

    fn len_bytes(&self) -> u64 {
        self.vectors.len() as u64 * msix::ENTRY_BYTES
    }

    fn control_byte(&self, at: u16) -> Option<u8> {
        let byte = usize::from(at.checked_sub(self.at)?);
        self.control.to_le_bytes().get(byte).copied()
    }

    /// Writes message control. Returns whether the write is to it.
    fn write_control(&mut self, offset: u16, data: &[u8]) -> bool {
        let high = (self.at + 1).checked_sub(offset).map(usize::from);
        let Some(value) = high.and_then(|high| data.get(high)) else {
            return false;
        };
        let writable = msix::CONTROL_ENABLE | msix::CONTROL_FUNCTION_MASK;
        self.control = self.control & !writable | u16::from(*value) << 8 & writable;
        true
    }

    /// Entry and word in the table.
    fn place(&self, offset: u64) -> Option<(usize, usize)> {
        let at = offset.checked_sub(self.offset)?;
        let entry = usize::try_from(at / msix::ENTRY_BYTES).ok()?;
        Some((entry, usize::try_from(at % msix::ENTRY_BYTES / 4).ok()?))
    }

    fn dword(&self, bar: u8, offset: u64) -> Option<u32> {
        let (entry, word) = self.place(offset).filter(|_| bar == self.bar)?;
        self.vectors.get(entry)?.entry.get(word).copied()
    }

    fn write_dword(&mut self, offset: u64, data: &[u8]) {
        let place = self.place(offset);
        if let (Some((entry, word)), Ok(bytes)) = (place, data.try_into())
            && let Some(vector) = self.vectors.get_mut(entry)
            && let Some(to) = vector.entry.get_mut(word)
        {
            *to = u32::from_le_bytes(bytes);
        }
    }

    /// Sets interrupts up as the registers say.
    fn update(&mut self, vfio: &VfioDevice) {
        if let Err(error) = self.try_update(vfio) {
            eprintln!("MSI-X: {error}");
        }
    }

    fn try_update(&mut self, vfio: &VfioDevice) -> Result<()> {
        let on = self.control & msix::CONTROL_ENABLE != 0;
        let masked = !on || self.control & msix::CONTROL_FUNCTION_MASK != 0;
        if on && !self.on {
            vfio.enable_msix(self.vectors.iter().map(|vector| &vector.event).collect())?;
        }
        for vector in &mut self.vectors {
            let [low, high, data, control] = vector.entry;
            let wanted = !masked && control & msix::ENTRY_MASKED == 0;
            if let Some((route, entry)) = vector.route
                && (!wanted || entry != vector.entry)
            {
                self.routes.disconnect(&vector.event, route)?;
                vector.route = None;
            }
            // An interrupt of a masked vector waits in its eventfd until the vector has a route.
            if wanted && vector.route.is_none() {
                let address = u64::from(high) << 32 | u64::from(low);
                let route = self.routes.connect(&vector.event, address, data)?;
                vector.route = Some((route, vector.entry));
            }
        }
        if !on && self.on {
            vfio.disable_msix()?;
        }
        self.on = on;
        Ok(())
    }
}
