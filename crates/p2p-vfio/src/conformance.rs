//! Conformance suite for IOMMU contexts. It runs on the fake of the unit tests and on the kernel.
//!
//! The feature `conformance` makes [`run_on_kernel`] public for a program on a host with an IOMMU, and the two ends of a
//! shared BAR: [`Exporter`] and [`Importer`].

mod checks;
#[cfg(feature = "conformance")]
mod edu;
#[cfg(feature = "conformance")]
mod kernel;
#[cfg(all(feature = "conformance", feature = "vfio-ioctls"))]
mod ops;
#[cfg(feature = "conformance")]
mod share;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::dma::DmaBackend;
use crate::memory::HostMemory;
use iommu_group::{Address, AddressRange, Gpa, Iova};

#[cfg(feature = "conformance")]
pub use kernel::run_on_kernel;
#[cfg(all(feature = "conformance", feature = "vfio-ioctls"))]
pub use ops::run_on_vfio_ioctls;
#[cfg(feature = "conformance")]
pub use share::{Exporter, Importer};

/// Reason for the failure of a check.
pub(crate) type Failure = String;

/// Names of checks with their results.
pub type Results = Vec<(&'static str, Result<(), String>)>;

/// One check of a suite.
pub(crate) struct Check<R: ?Sized> {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&R, &Ram) -> Result<(), Failure>,
}

/// A context under test, with a device that can do DMA in it.
pub(crate) trait TestBackend {
    fn backend(&self) -> &dyn DmaBackend;

    /// I/O addresses that the IOMMU can translate.
    fn ranges(&self) -> Vec<AddressRange<Iova>>;

    /// A piece of a BAR of a device in the context.
    fn bar(&self) -> HostMemory;

    /// Turns memory decode of that device on or off.
    fn decode(&self, on: bool);

    /// Makes a device in the context write a word at `iova`. The write may fault.
    fn store(&self, iova: Iova, word: u32);
}

/// Memory of this process to map, in pieces of 1, 2 and 16 pages.
pub(crate) struct Ram {
    memory: GuestMemoryMmap,
    pieces: Vec<(Gpa, HostMemory)>,
}

const PAGE: u64 = 4096;
const PIECES: [usize; 3] = [4096, 2 * 4096, 16 * 4096];

impl Ram {
    fn new() -> Result<Self, Failure> {
        let place = |n: usize| GuestAddress((n as u64) << 20);
        let ranges: Vec<_> = (0..).zip(PIECES).map(|(n, len)| (place(n), len)).collect();
        let memory = GuestMemoryMmap::from_ranges(&ranges).map_err(|error| error.to_string())?;
        let pieces = HostMemory::of_guest(&memory);
        Ok(Self { memory, pieces })
    }

    /// The piece with this number of pages.
    fn pages(&self, count: usize) -> Result<HostMemory, Failure> {
        let found = self
            .pieces
            .iter()
            .find(|(_, m)| m.len_bytes() == count * 4096);
        let found = found.map(|(_, memory)| memory.clone());
        found.ok_or_else(|| format!("there is no piece of {count} pages"))
    }

    /// The word at a byte offset of the piece with this number of pages.
    fn word(&self, count: usize, offset: u64) -> Result<u32, Failure> {
        let found = self
            .pieces
            .iter()
            .find(|(_, m)| m.len_bytes() == count * 4096);
        let (gpa, _) = found.ok_or("no such piece")?;
        let at = GuestAddress(gpa.value() + offset);
        self.memory.read_obj(at).map_err(|error| error.to_string())
    }
}

/// Runs a suite and returns the names and results of its checks.
pub(crate) fn run<R: ?Sized>(suite: &[Check<R>], rig: &R) -> Results {
    let one = |check: &Check<R>| {
        let result = Ram::new().and_then(|ram| (check.run)(rig, &ram));
        (check.name, result)
    };
    suite.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::fake::{FakeHardware, FakePci, FakeVm, iova_ranges};
    use crate::pci::{PciBackend, Region};

    struct FakeBackend {
        vm: Arc<FakeVm>,
        hardware: Arc<Mutex<FakeHardware>>,
        bar: HostMemory,
    }

    impl TestBackend for FakeBackend {
        fn backend(&self) -> &dyn DmaBackend {
            &*self.vm
        }

        fn ranges(&self) -> Vec<AddressRange<Iova>> {
            iova_ranges()
        }

        fn bar(&self) -> HostMemory {
            self.bar.clone()
        }

        fn decode(&self, on: bool) {
            self.hardware.lock().unwrap().config[4] = u8::from(on) << 1;
        }

        fn store(&self, iova: Iova, word: u32) {
            self.vm.store(iova, word);
        }
    }

    #[test]
    fn the_fake_conforms() {
        let vm = Arc::new(FakeVm::default());
        let pci = FakePci::new(&vm, vec![0; 256], [1 << 20, 0, 0, 0, 0, 0]);
        let hardware = pci.hardware.clone();
        let bar = pci.map(Region::Bar(0), 0, 4096).unwrap();
        let rig = FakeBackend {
            vm,
            hardware,
            bar: HostMemory::of_bar(Arc::new(bar)),
        };
        for (name, result) in run::<dyn TestBackend>(&checks::ALL, &rig) {
            assert_eq!(result, Ok(()), "{name}");
        }
        assert!(rig.vm.dma().is_empty(), "every check cleans up");
    }
}
