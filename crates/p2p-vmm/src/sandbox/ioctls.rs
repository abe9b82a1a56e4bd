//! The ioctls of each kind of thread: of KVM, VFIO, iommufd and the terminal.

use kvm_bindings::{
    KVMIO, kvm_cpuid2, kvm_create_device, kvm_device_attr, kvm_fpu, kvm_irq_routing, kvm_irqfd,
    kvm_lapic_state, kvm_msrs, kvm_pit_config, kvm_regs, kvm_signal_mask, kvm_sregs,
    kvm_userspace_memory_region,
};

use super::Role;

/// An ioctl: number, and name in the kernel's headers.
pub(super) type Ioctl = (u64, &'static str);

macro_rules! ioctls {
    ($($name:ident = $number:expr),* $(,)?) => { &[$(($number, stringify!($name))),*] };
}

/// linux include/uapi/linux/vfio.h: `VFIO_TYPE`, equal to `IOMMUFD_TYPE`.
const VFIO: u32 = b';' as u32;
/// linux include/uapi/linux/vfio.h: `VFIO_BASE`
const VFIO_BASE: u32 = 100;

const fn vfio(nr: u32) -> u64 {
    libc::_IO(VFIO, VFIO_BASE + nr)
}

const fn iommufd(command: u32) -> u64 {
    libc::_IO(VFIO, command)
}

/// Ioctls of a vCPU: it runs the guest, and when the guest moves BARs or sets up interrupts, it programs KVM, the
/// device and the IOMMU. BARs are mapped as dma-bufs, so `IOMMU_IOAS_MAP`, which maps memory, is not listed.
const VCPU: &[Ioctl] = ioctls![
    KVM_RUN = libc::_IO(KVMIO, 0x80),
    KVM_GET_REGS = libc::_IOR::<kvm_regs>(KVMIO, 0x81),
    KVM_KVMCLOCK_CTRL = libc::_IO(KVMIO, 0xad),
    KVM_SET_USER_MEMORY_REGION = libc::_IOW::<kvm_userspace_memory_region>(KVMIO, 0x46),
    KVM_SET_GSI_ROUTING = libc::_IOW::<kvm_irq_routing>(KVMIO, 0x6a),
    KVM_IRQFD = libc::_IOW::<kvm_irqfd>(KVMIO, 0x76),
    VFIO_DEVICE_GET_IRQ_INFO = vfio(9),
    VFIO_DEVICE_SET_IRQS = vfio(10),
    VFIO_DEVICE_RESET = vfio(11),
    VFIO_IOMMU_MAP_DMA = vfio(13),
    VFIO_IOMMU_UNMAP_DMA = vfio(14),
    VFIO_DEVICE_FEATURE = vfio(17),
    IOMMU_IOAS_UNMAP = iommufd(0x86),
    IOMMU_IOAS_MAP_FILE = iommufd(0x8f),
];

/// Ioctls to build VMs and open devices.
const MAIN: &[Ioctl] = ioctls![
    KVM_GET_API_VERSION = libc::_IO(KVMIO, 0x00),
    KVM_CREATE_VM = libc::_IO(KVMIO, 0x01),
    KVM_CHECK_EXTENSION = libc::_IO(KVMIO, 0x03),
    KVM_GET_VCPU_MMAP_SIZE = libc::_IO(KVMIO, 0x04),
    KVM_GET_SUPPORTED_CPUID = libc::_IOWR::<kvm_cpuid2>(KVMIO, 0x05),
    KVM_CREATE_VCPU = libc::_IO(KVMIO, 0x41),
    KVM_SET_TSS_ADDR = libc::_IO(KVMIO, 0x47),
    KVM_SET_IDENTITY_MAP_ADDR = libc::_IOW::<u64>(KVMIO, 0x48),
    KVM_CREATE_IRQCHIP = libc::_IO(KVMIO, 0x60),
    KVM_CREATE_PIT2 = libc::_IOW::<kvm_pit_config>(KVMIO, 0x77),
    KVM_SET_REGS = libc::_IOW::<kvm_regs>(KVMIO, 0x82),
    KVM_GET_SREGS = libc::_IOR::<kvm_sregs>(KVMIO, 0x83),
    KVM_SET_SREGS = libc::_IOW::<kvm_sregs>(KVMIO, 0x84),
    KVM_SET_MSRS = libc::_IOW::<kvm_msrs>(KVMIO, 0x89),
    KVM_SET_SIGNAL_MASK = libc::_IOW::<kvm_signal_mask>(KVMIO, 0x8b),
    KVM_SET_FPU = libc::_IOW::<kvm_fpu>(KVMIO, 0x8d),
    KVM_GET_LAPIC = libc::_IOR::<kvm_lapic_state>(KVMIO, 0x8e),
    KVM_SET_LAPIC = libc::_IOW::<kvm_lapic_state>(KVMIO, 0x8f),
    KVM_SET_CPUID2 = libc::_IOW::<kvm_cpuid2>(KVMIO, 0x90),
    KVM_SET_TSC_KHZ = libc::_IO(KVMIO, 0xa2),
    KVM_GET_TSC_KHZ = libc::_IO(KVMIO, 0xa3),
    KVM_CREATE_DEVICE = libc::_IOWR::<kvm_create_device>(KVMIO, 0xe0),
    KVM_SET_DEVICE_ATTR = libc::_IOW::<kvm_device_attr>(KVMIO, 0xe1),
    VFIO_GET_API_VERSION = vfio(0),
    VFIO_CHECK_EXTENSION = vfio(1),
    VFIO_SET_IOMMU = vfio(2),
    VFIO_GROUP_GET_STATUS = vfio(3),
    VFIO_GROUP_SET_CONTAINER = vfio(4),
    VFIO_GROUP_UNSET_CONTAINER = vfio(5),
    VFIO_GROUP_GET_DEVICE_FD = vfio(6),
    VFIO_DEVICE_GET_INFO = vfio(7),
    VFIO_DEVICE_GET_REGION_INFO = vfio(8),
    VFIO_IOMMU_GET_INFO = vfio(12),
    VFIO_DEVICE_BIND_IOMMUFD = vfio(18),
    VFIO_DEVICE_ATTACH_IOMMUFD_PT = vfio(19),
    VFIO_DEVICE_DETACH_IOMMUFD_PT = vfio(20),
    IOMMU_DESTROY = iommufd(0x80),
    IOMMU_IOAS_ALLOC = iommufd(0x81),
    IOMMU_IOAS_COPY = iommufd(0x83),
    IOMMU_IOAS_IOVA_RANGES = iommufd(0x84),
    IOMMU_IOAS_MAP = iommufd(0x85),
    // The C library of Debian 12 uses the first two, newer ones the others.
    TCGETS = libc::TCGETS,
    TCSETS = libc::TCSETS,
    TCGETS2 = libc::TCGETS2,
    TCSETS2 = libc::TCSETS2,
];

/// The permitted ioctls of a thread.
pub(super) fn of(role: Role) -> impl Iterator<Item = Ioctl> {
    let own: &[&[Ioctl]] = match role {
        // A thread inherits the filter of the thread that starts it.
        Role::Main => &[MAIN, VCPU],
        Role::Vcpu => &[VCPU],
        Role::Api | Role::Events | Role::Log | Role::Host => &[],
    };
    own.iter().copied().flatten().copied()
}
