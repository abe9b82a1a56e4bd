//! The parts of one VM, built and loaded, ready to run.
use std::sync::{Arc, Mutex};

use anyhow::Context;
use guest_topology::{Apertures, Slot};
use iommu_group::assignment::Exposed;
use iommu_group::{Address, Cpu};
use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::VmFd;
use p2p_vfio::{DevicePlan, DeviceSet, GuestSpace, HostMemory, IntxLine, OpenDevices, VmHooks};
use vm_memory::GuestMemoryMmap;
use vmm_api::VmConfig;

use super::host::{Host, VmContext};
use crate::acpi::{AcpiImage, AcpiRequest};
use crate::bus::GuestBus;
use crate::devices::{Devices, address_limit, iommu_options};
use crate::error::VmmError;
use crate::exit::ExitRequest;
use crate::irq::{KvmLine, KvmRoutes};
use crate::layout::{GpaRange, Layout, LayoutRequest};
use crate::loader::{self, ACPI_AREA, BootSource};
use crate::memory;
use crate::pci::{HOST_BRIDGE, HostBridge, gsi_of_slot};
use crate::ports::Ports;
use crate::power::PowerRegisters;
use crate::serial::{COM1_GSI, SerialConnection, SerialInput};
use crate::slot_control::{SLOT_GSI, SlotControl};
use crate::slots::KvmSlots;
use crate::vcpu::{CpuidTemplate, Vcpu};

/// Three pages that KVM needs on Intel CPUs for real mode, and one for an identity map. Neither RAM nor a
/// PCI window uses these addresses.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// One VM. Fields are dropped in this order: users of the guest first, its memory last.
pub(super) struct Machine {
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) serial_input: Option<SerialInput>,
    pub(super) bus: Arc<GuestBus>,
    pub(super) devices: Devices,
    pub(super) exposures: Vec<Exposed>,
    control: Arc<SlotControl>,
    routes: Arc<KvmRoutes>,
    /// Keeps guest memory mapped too.
    slots: Arc<KvmSlots>,
    cpu: Cpu,
}

/// The parts of a machine before its vCPUs: guest memory, interrupt routes and devices.
struct Parts {
    vm: Arc<VmFd>,
    cpuid: CpuidTemplate,
    layout: Layout,
    memory: GuestMemoryMmap,
    slots: Arc<KvmSlots>,
    routes: Arc<KvmRoutes>,
}

impl Machine {
    /// Builds the VM of `config`. The end of the VM is requested from `exit`.
    pub(super) fn build(
        host: &Host,
        context: &VmContext,
        config: &VmConfig,
        plan: DevicePlan,
        exit: &Arc<ExitRequest>,
    ) -> Result<Self, VmmError> {
        let cpuid = CpuidTemplate::new(&host.kvm, config.cpus.boot_vcpus());
        let cpuid = cpuid.map_err(VmmError::failed)?;
        let vm = Arc::new(create_vm(host)?);
        let options = iommu_options(
            &vm,
            config.platform,
            &context.preopened,
            context.hotpluggable,
        );
        let devices = plan.open(options)?;
        let layout = plan_layout(config, &cpuid, &devices, context.hotpluggable)?;
        log::debug!("guest layout: {layout:?}");
        let parts = Parts::new(host, vm, cpuid, layout)?;
        let exposures = devices.exposures().to_vec();
        let set = devices.attach(parts.space(), parts.hooks(context))?;
        Ok(Self::assemble(host, config, parts, set, exposures, exit)?)
    }

    /// Builds the machine from its parts. Nothing is refused from here on.
    fn assemble(
        host: &Host,
        config: &VmConfig,
        parts: Parts,
        set: DeviceSet,
        exposures: Vec<Exposed>,
        exit: &Arc<ExitRequest>,
    ) -> anyhow::Result<Self> {
        let Parts {
            vm,
            cpuid,
            layout,
            memory,
            slots,
            routes,
        } = parts;
        let serial =
            SerialConnection::open(&host.serial).context("cannot create the serial port")?;
        let (port, serial_input) = match serial {
            Some(connection) => (Some(connection.port), connection.input),
            None => (None, None),
        };
        if let Some(port) = &port {
            routes.attach(COM1_GSI, port.interrupt())?;
        }
        let set = Arc::new(set);
        set.add_function(HOST_BRIDGE, Arc::new(Mutex::new(HostBridge::new())))?;
        let control =
            SlotControl::new(Arc::clone(&set)).context("cannot create the slot controller")?;
        routes.attach(SLOT_GSI, control.interrupt())?;
        let control = Arc::new(control);
        let devices = Devices::new(&config.devices, Arc::clone(&set), Arc::clone(&control))?;

        let acpi = AcpiImage::build(&AcpiRequest {
            area: ACPI_AREA,
            layout: &layout,
            cpus: config.cpus.boot_vcpus(),
            serial: port.is_some(),
        })?;
        let source = BootSource {
            kernel: &config.payload.kernel,
            initramfs: config.payload.initramfs.as_deref(),
            cmdline: config.payload.cmdline.as_deref().unwrap_or_default(),
        };
        let boot = loader::load(&memory, &layout, &acpi, &source)?;
        let vcpus = (0..config.cpus.boot_vcpus())
            .map(|number| Vcpu::create(&vm, number, &cpuid))
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(first) = vcpus.first() {
            first.set_boot(&memory, &boot)?;
        }

        let power = PowerRegisters::new(Arc::clone(exit));
        let ports = Ports::new(port, power, Arc::clone(&set), Arc::clone(&control));
        Ok(Self {
            vcpus,
            serial_input,
            bus: Arc::new(GuestBus::new(ports, set, layout.ecam)),
            devices,
            exposures,
            control,
            routes,
            slots,
            cpu: cpuid.cpu(),
        })
    }

    /// Presses the guest's power button.
    pub(super) fn power_button(&self) {
        self.control.press_button();
    }

    /// Whether the guest permits transfers between devices that are not peers. The IOMMU blocks these transfers.
    pub(super) fn unshared_transfers_fail_silently(&self) -> bool {
        self.cpu.supports_p2pdma() && self.devices.set().has_unshared()
    }

    /// The host resources of the VM, in one line. No action of a guest may make these numbers grow.
    pub(super) fn resource_summary(&self) -> String {
        let set = self.devices.set();
        let (slots, claims) = (self.slots.count(), set.claims().all().len());
        let routes = self.routes.message_count();
        let peers = self.devices.peer_windows();
        let interface = set.interface(|choice| choice.interface);
        let by = interface.map_or(String::new(), |interface| format!(", by {interface}"));
        format!(
            "{slots} memory slots, {claims} BARs, {peers} peer windows, {routes} message routes{by}"
        )
    }
}

impl Parts {
    fn new(
        host: &Host,
        vm: Arc<VmFd>,
        cpuid: CpuidTemplate,
        layout: Layout,
    ) -> anyhow::Result<Self> {
        let memory = memory::allocate(&layout.ram)?;
        let slot_limit = u32::try_from(host.kvm.get_nr_memslots()).unwrap_or(u32::MAX);
        let slots = Arc::new(KvmSlots::new(Arc::clone(&vm), slot_limit));
        for (gpa, memory) in HostMemory::of_guest(&memory) {
            slots.add(gpa, memory)?;
        }
        Ok(Self {
            routes: Arc::new(KvmRoutes::new(Arc::clone(&vm))?),
            vm,
            cpuid,
            layout,
            memory,
            slots,
        })
    }

    /// The address space of the devices.
    fn space(&self) -> GuestSpace {
        GuestSpace {
            memory: HostMemory::of_guest(&self.memory),
            apertures: Apertures {
                memory: self.layout.mmio32.clone(),
                prefetchable: vec![self.layout.mmio64],
            },
            forwarded: self.layout.pci.clone(),
        }
    }

    fn hooks(&self, context: &VmContext) -> VmHooks {
        let routes = Arc::clone(&self.routes);
        let line = move |slot: Slot| -> Arc<dyn IntxLine> {
            Arc::new(KvmLine::new(Arc::clone(&routes), gsi_of_slot(slot)))
        };
        VmHooks {
            slots: self.slots.clone(),
            msi: self.routes.clone(),
            intx: Some(Arc::new(line)),
            vector_fds: context.descriptors.vectors,
            device_fds: context.descriptors.devices,
        }
    }
}

/// A VM with KVM's interrupt controllers and timer.
fn create_vm(host: &Host) -> anyhow::Result<VmFd> {
    let vm = host.kvm.create_vm().context("cannot create a KVM VM")?;
    vm.set_identity_map_address(IDENTITY_MAP_ADDRESS)
        .context("cannot set the address of KVM's identity map")?;
    vm.set_tss_address(TSS_ADDRESS)
        .context("cannot set the address of KVM's task state")?;
    vm.create_irq_chip()
        .context("cannot create KVM's interrupt controllers")?;
    // A guest without the KVM clock calibrates its clock with it.
    vm.create_pit2(kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    })
    .context("cannot create KVM's timer")?;
    Ok(vm)
}

/// The guest's address space, within what the CPU can address and the devices' IOMMU can translate.
fn plan_layout(
    config: &VmConfig,
    cpuid: &CpuidTemplate,
    devices: &OpenDevices,
    hotpluggable: bool,
) -> Result<Layout, VmmError> {
    let demands = devices.demands()?;
    let cpu_limit = 1_u64
        .checked_shl(cpuid.address_bits().into())
        .unwrap_or(u64::MAX);
    let known = demands.limit.or_else(|| hotpluggable.then(address_limit)?);
    let limit = known.map_or(cpu_limit, |limit| limit.min(cpu_limit));
    let plan_layout = |fixed: &[GpaRange]| {
        Layout::new(&LayoutRequest {
            ram_bytes: config.memory.size_bytes(),
            limit,
            holes: &demands.holes,
            fixed,
        })
    };
    if hotpluggable {
        // Windows beyond the limit can never be used. Devices that are added later may use the others.
        let preferred = demands.preferred.iter().copied();
        let mut fixed: Vec<GpaRange> = preferred
            .filter(|window| window.end().value() <= limit)
            .collect();
        fixed.extend(&demands.fixed);
        match plan_layout(&fixed) {
            Ok(layout) => return Ok(layout),
            Err(error) => log::warn!(
                "cannot reserve address space for hotplug, so adding a device may fail: {error}"
            ),
        }
    }
    Ok(plan_layout(&demands.fixed)?)
}
