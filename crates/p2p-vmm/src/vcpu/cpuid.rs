//! CPUID of a vCPU: KVM's supported leaves, with the vCPU's own number and a topology of one package of single-thread
//! cores.

use iommu_group::Cpu;
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm};

/// Physical address bits if CPUID has no such leaf (Intel SDM vol. 2A, CPUID leaf 0x8000_0008).
const DEFAULT_ADDRESS_BITS: u8 = 36;

/// Leaf 1 ECX: TSC deadline timer; software under a hypervisor.
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: more than one logical processor in the package.
const MULTI_THREADING: u32 = 1 << 28;
/// Leaf 0x8000_0001 ECX (AMD): the logical processors are cores.
const CORES_NOT_THREADS: u32 = 1 << 1;
/// Level types of leaf 0xb.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// CPUID could not be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CpuidError {
    #[error("cannot get the CPUID that KVM supports")]
    Supported(#[source] kvm_ioctls::Error),
    #[error("a CPUID table of {entries} entries is too long for KVM")]
    TableTooLong { entries: usize },
}

/// The CPUID of all vCPUs of a VM, without the numbers of single vCPUs.
#[derive(Debug, Clone)]
pub(crate) struct CpuidTemplate {
    entries: Vec<kvm_cpuid_entry2>,
    cpus: u8,
}

impl CpuidTemplate {
    /// The CPUID that KVM supports on this host, for a VM with `cpus` vCPUs.
    pub(crate) fn new(kvm: &Kvm, cpus: u8) -> Result<Self, CpuidError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(CpuidError::Supported)?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        let entries = supported.as_slice().to_vec();
        Ok(Self::from_supported(entries, cpus, tsc_deadline))
    }

    fn from_supported(mut entries: Vec<kvm_cpuid_entry2>, cpus: u8, tsc_deadline: bool) -> Self {
        // These describe the host's topology; `topology` adds leaf 0xb again.
        entries.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
        for entry in &mut entries {
            if entry.function == 1 {
                entry.ecx |= HYPERVISOR;
                if tsc_deadline {
                    entry.ecx |= TSC_DEADLINE;
                }
            }
        }
        Self { entries, cpus }
    }

    /// Number of guest-physical address bits.
    pub(crate) fn address_bits(&self) -> u8 {
        let sizes = self.entries.iter().find(|e| e.function == 0x8000_0008);
        sizes.map_or(DEFAULT_ADDRESS_BITS, |entry| {
            let [physical, ..] = entry.eax.to_le_bytes();
            physical
        })
    }

    /// Vendor and family of the guest's CPU, decoded as in Linux (linux 7.2 arch/x86/lib/cpu.c: `x86_family()`).
    pub(crate) fn cpu(&self) -> Cpu {
        let leaf = |function| self.entries.iter().find(move |e| e.function == function);
        let vendor = leaf(0).map(|entry| [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes));
        let vendor = vendor.unwrap_or_default().concat();
        let signature = leaf(1).map_or(0, |entry| entry.eax);
        let base = signature >> 8 & 0xf;
        let extended = signature >> 20 & 0xff;
        Cpu {
            vendor: String::from_utf8_lossy(&vendor).into_owned(),
            family: base + if base == 0xf { extended } else { 0 },
        }
    }

    /// CPUID of the vCPU with this local APIC id.
    pub(crate) fn for_cpu(&self, apic_id: u8) -> Result<CpuId, CpuidError> {
        let entries = self.entries_for_cpu(apic_id);
        CpuId::from_entries(&entries).map_err(|_| CpuidError::TableTooLong {
            entries: entries.len(),
        })
    }

    fn entries_for_cpu(&self, apic_id: u8) -> Vec<kvm_cpuid_entry2> {
        let cpus = u32::from(self.cpus);
        let id = u32::from(apic_id);
        // Number of APIC id bits for the cores of a package.
        let id_bits = cpus.next_power_of_two().trailing_zeros();
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            match entry.function {
                0x1 => {
                    entry.ebx = entry.ebx & 0xffff | cpus << 16 | id << 24;
                    set_if(&mut entry.edx, MULTI_THREADING, cpus > 1);
                }
                // Caches: Intel SDM vol. 2A, CPUID leaf 4; AMD APM vol. 3 §E.4.15.
                0x4 => {
                    let cores = if is_cache(entry) { (cpus - 1) << 26 } else { 0 };
                    entry.eax = entry.eax & 0x3fff | sharers(entry, cpus) << 14 | cores;
                }
                0x8000_001d => {
                    entry.eax = entry.eax & 0x3fff | sharers(entry, cpus) << 14;
                }
                0x8000_0001 => set_if(&mut entry.ecx, CORES_NOT_THREADS, cpus > 1),
                0x8000_0008 => {
                    entry.ecx = entry.ecx & !0xf0ff | (cpus - 1) | id_bits << 12;
                }
                // Extended APIC id, core id with one thread per core, node 0 of one (AMD APM vol. 3 §E.4.16).
                0x8000_001e => {
                    entry.eax = id;
                    entry.ebx = id;
                    entry.ecx = 0;
                }
                _ => {}
            }
        }
        entries.extend(topology(id, cpus, id_bits));
        entries
    }
}

/// Leaf 0xb (Intel SDM vol. 2A): one thread per core, `cpus` cores per package, and the end of the list.
fn topology(apic_id: u32, cpus: u32, id_bits: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift, count, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        edx: apic_id,
        ..Default::default()
    };
    [
        level(0, 0, 1, LEVEL_THREAD),
        level(1, id_bits, cpus, LEVEL_CORE),
        level(2, 0, 0, 0),
    ]
}

/// Whether the entry of a cache leaf describes a cache; otherwise it ends the list.
fn is_cache(entry: &kvm_cpuid_entry2) -> bool {
    entry.eax & 0x1f != 0
}

/// Number of other logical processors that share the cache of an entry: all of them from level 3 on, otherwise none.
fn sharers(entry: &kvm_cpuid_entry2, cpus: u32) -> u32 {
    let level = entry.eax >> 5 & 0x7;
    if is_cache(entry) && level >= 3 {
        cpus - 1
    } else {
        0
    }
}

fn set_if(register: &mut u32, bit: u32, on: bool) {
    if on {
        *register |= bit;
    } else {
        *register &= !bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, eax: u32, ebx: u32, ecx: u32, edx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn template(cpus: u8) -> CpuidTemplate {
        let supported = vec![
            entry(0x1, 0, 0xffff_0800, 0, MULTI_THREADING),
            entry(0x4, 0xffff_c121, 0, 0, 0),
            entry(0x4, 0xffff_c163, 0, 0, 0),
            entry(0xb, 9, 9, 9, 9),
            entry(0x1f, 9, 9, 9, 9),
            entry(0x8000_0001, 0, 0, 0, 0),
            entry(0x8000_0008, 0x3028, 0, 0x7fff, 0),
            entry(0x8000_001e, 77, 77, 77, 0),
        ];
        CpuidTemplate::from_supported(supported, cpus, true)
    }

    fn leaf(entries: &[kvm_cpuid_entry2], function: u32) -> Vec<kvm_cpuid_entry2> {
        let matching = entries.iter().filter(|entry| entry.function == function);
        matching.copied().collect()
    }

    #[test]
    fn apic_id_is_the_same_in_every_leaf() {
        let entries = template(4).entries_for_cpu(3);
        assert_eq!(leaf(&entries, 1)[0].ebx, 3 << 24 | 4 << 16 | 0x0800);
        assert!(leaf(&entries, 0xb).iter().all(|entry| entry.edx == 3));
        assert_eq!(leaf(&entries, 0x8000_001e)[0].eax, 3);
    }

    #[test]
    fn topology_is_one_package_of_single_thread_cores() {
        let entries = template(5).entries_for_cpu(0);
        let levels: Vec<_> = leaf(&entries, 0xb)
            .iter()
            .map(|entry| (entry.index, entry.eax, entry.ebx, entry.ecx))
            .collect();
        assert_eq!(
            levels,
            [(0, 0, 1, 0x100), (1, 3, 5, 0x201), (2, 0, 0, 0x002)]
        );
        assert_eq!(leaf(&entries, 0x1f).len(), 0);
        assert_eq!(leaf(&entries, 0x8000_0008)[0].ecx, 0x3f04);
    }

    #[test]
    fn single_cpu_has_no_multi_threading() {
        let one = template(1).entries_for_cpu(0);
        assert_eq!(leaf(&one, 1)[0].edx & MULTI_THREADING, 0);
        assert_eq!(leaf(&one, 0x8000_0001)[0].ecx & CORES_NOT_THREADS, 0);
        let two = template(2).entries_for_cpu(0);
        assert_ne!(leaf(&two, 1)[0].edx & MULTI_THREADING, 0);
        assert_ne!(leaf(&two, 0x8000_0001)[0].ecx & CORES_NOT_THREADS, 0);
    }

    #[test]
    fn last_level_cache_is_shared_and_the_first_is_not() {
        let entries = template(4).entries_for_cpu(0);
        let caches: Vec<_> = leaf(&entries, 4).iter().map(|entry| entry.eax).collect();
        assert_eq!(caches, [3 << 26 | 0x121, 3 << 26 | 3 << 14 | 0x163]);
    }

    #[test]
    fn cpuid_has_the_hypervisor_and_deadline_timer_bits() {
        let entries = template(1).entries_for_cpu(0);
        assert_eq!(leaf(&entries, 1)[0].ecx, HYPERVISOR | TSC_DEADLINE);
    }

    #[test]
    fn p2pdma_is_supported_on_amd_from_zen_on_only() {
        let cpu = |vendor: &[u8; 12], signature| {
            let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
            let supported = vec![
                entry(0x0, 0xd, word(0), word(8), word(4)),
                entry(0x1, signature, 0, 0, 0),
            ];
            CpuidTemplate::from_supported(supported, 1, false).cpu()
        };
        let zen = cpu(b"AuthenticAMD", 0x0080_0f12);
        assert_eq!((zen.vendor.as_str(), zen.family), ("AuthenticAMD", 0x17));
        for (vendor, signature, family, accepts) in [
            (b"AuthenticAMD", 0x0080_0f12, 0x17, true),
            (b"AuthenticAMD", 0x00a2_0f10, 0x19, true),
            (b"AuthenticAMD", 0x0060_0f12, 0x15, false),
            (b"AuthenticAMD", 0x0000_0f4a, 0xf, false),
            (b"GenuineIntel", 0x0009_0672, 0x6, false),
            (b"HygonGenuine", 0x0090_0f22, 0x18, false),
        ] {
            let cpu = cpu(vendor, signature);
            assert_eq!((cpu.family, cpu.supports_p2pdma()), (family, accepts));
        }
        let silent = CpuidTemplate::from_supported(vec![], 1, false).cpu();
        assert!(!silent.supports_p2pdma());
    }

    #[test]
    fn address_bits_come_from_the_cpu() {
        assert_eq!(template(1).address_bits(), 40);
        let silent = CpuidTemplate::from_supported(vec![], 1, false);
        assert_eq!(silent.address_bits(), DEFAULT_ADDRESS_BITS);
    }
}
