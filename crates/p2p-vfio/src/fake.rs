//! Stand-ins for the kernel in unit tests. They keep its rules and can fail the n-th call.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use crate::address::{Address, AddressRange, Gpa, Iova};
use crate::dma::{DmaBackend, DmaError};
use crate::memory::HostMemory;
use crate::pci::{Mappable, PciBackend, Region, RegionInfo, VectorKind};
use crate::sys::BarMapping;
use crate::vmm::{MemorySlots, MsiMessage, MsiRouter, RouteId, SlotId};

/// Fails the call on which its count reaches 0; `None` never fails.
#[derive(Debug, Default)]
pub(crate) struct Countdown(Mutex<Option<u32>>);

impl Countdown {
    pub(crate) fn set(&self, calls: u32) {
        *self.0.lock().unwrap() = Some(calls);
    }

    fn tick(&self) -> io::Result<()> {
        let mut left = self.0.lock().unwrap();
        match &mut *left {
            Some(0) => {
                *left = None;
                Err(io::Error::from_raw_os_error(libc::EIO))
            }
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 < b.1 && b.0 < a.1
}

/// What a VM would have: slots, DMA mappings and interrupt routes. Overlaps are `EEXIST`.
#[derive(Debug, Default)]
pub(crate) struct FakeVm {
    pub(crate) countdown: Countdown,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    slots: Vec<(u32, u64, HostMemory)>,
    dma: Vec<(AddressRange<Iova>, HostMemory)>,
    routes: Vec<(u32, MsiMessage)>,
    next: u32,
}

impl FakeVm {
    /// Start addresses of what the guest sees, in order.
    pub(crate) fn slots(&self) -> Vec<u64> {
        let state = self.state.lock().unwrap();
        let mut starts: Vec<_> = state.slots.iter().map(|(_, gpa, _)| *gpa).collect();
        starts.sort_unstable();
        starts
    }

    /// Start addresses of what the peers see, in order.
    pub(crate) fn dma(&self) -> Vec<u64> {
        let state = self.state.lock().unwrap();
        let mut starts: Vec<_> = state.dma.iter().map(|(r, _)| r.start().value()).collect();
        starts.sort_unstable();
        starts
    }

    /// Messages that are delivered now.
    pub(crate) fn messages(&self) -> Vec<MsiMessage> {
        let state = self.state.lock().unwrap();
        state.routes.iter().map(|(_, message)| *message).collect()
    }
}

impl MemorySlots for FakeVm {
    fn add(&self, gpa: Gpa, memory: HostMemory) -> io::Result<SlotId> {
        self.countdown.tick()?;
        let mut state = self.state.lock().unwrap();
        let span = |gpa: u64, memory: &HostMemory| (gpa, gpa + memory.len_bytes() as u64);
        let new = span(gpa.value(), &memory);
        if state
            .slots
            .iter()
            .any(|(_, at, m)| overlap(span(*at, m), new))
        {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        state.next += 1;
        let id = state.next;
        state.slots.push((id, gpa.value(), memory));
        Ok(SlotId(id))
    }

    fn remove(&self, slot: SlotId) -> io::Result<()> {
        self.countdown.tick()?;
        let mut state = self.state.lock().unwrap();
        let at = state.slots.iter().position(|(id, ..)| *id == slot.0);
        let at = at.ok_or(io::Error::from_raw_os_error(libc::ENOENT))?;
        state.slots.remove(at);
        Ok(())
    }
}

impl DmaBackend for FakeVm {
    fn map(&self, iova: Iova, memory: HostMemory) -> Result<AddressRange<Iova>, DmaError> {
        let range = AddressRange::new(iova, memory.len_bytes() as u64).unwrap();
        let fail = |error| DmaError::Map { range, error };
        self.countdown.tick().map_err(fail)?;
        let mut state = self.state.lock().unwrap();
        let span = |r: &AddressRange<Iova>| (r.start().value(), r.end().value());
        if state
            .dma
            .iter()
            .any(|(r, _)| overlap(span(r), span(&range)))
        {
            return Err(fail(io::Error::from_raw_os_error(libc::EEXIST)));
        }
        state.dma.push((range, memory));
        Ok(range)
    }

    fn unmap(&self, range: AddressRange<Iova>) -> Result<(), DmaError> {
        let tick = self.countdown.tick();
        tick.map_err(|error| DmaError::Unmap { range, error })?;
        let mut state = self.state.lock().unwrap();
        let at = state.dma.iter().position(|(r, _)| *r == range);
        state.dma.remove(at.ok_or(DmaError::NotMapped(range))?);
        Ok(())
    }
}

impl MsiRouter for FakeVm {
    fn connect(&self, _event: &EventFd, message: MsiMessage) -> io::Result<RouteId> {
        self.countdown.tick()?;
        let mut state = self.state.lock().unwrap();
        state.next += 1;
        let id = state.next;
        state.routes.push((id, message));
        Ok(RouteId(id))
    }

    fn update(&self, route: RouteId, message: MsiMessage) -> io::Result<()> {
        self.countdown.tick()?;
        let mut state = self.state.lock().unwrap();
        let found = state.routes.iter_mut().find(|(id, _)| *id == route.0);
        found.ok_or(io::Error::from_raw_os_error(libc::ENOENT))?.1 = message;
        Ok(())
    }

    fn disconnect(&self, route: RouteId, _event: &EventFd) -> io::Result<()> {
        self.countdown.tick()?;
        self.state
            .lock()
            .unwrap()
            .routes
            .retain(|(id, _)| *id != route.0);
        Ok(())
    }
}

/// What the host sees of a fake device.
#[derive(Debug, Default)]
pub(crate) struct FakeHardware {
    pub(crate) config: Vec<u8>,
    /// Vectors that signal now.
    pub(crate) vectors: Option<(VectorKind, usize)>,
    pub(crate) resets: u32,
}

/// A function whose BARs are pieces of a file.
pub(crate) struct FakePci {
    pub(crate) hardware: Arc<Mutex<FakeHardware>>,
    pub(crate) sizes: [u64; 6],
    pub(crate) msi_vectors: u32,
    pub(crate) msix_vectors: u32,
    file: std::fs::File,
}

const BAR_STRIDE: u64 = 1 << 24;

impl FakePci {
    pub(crate) fn new(config: Vec<u8>, sizes: [u64; 6]) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(6 * BAR_STRIDE).unwrap();
        Self {
            hardware: Arc::new(Mutex::new(FakeHardware {
                config,
                ..FakeHardware::default()
            })),
            sizes,
            msi_vectors: 0,
            msix_vectors: 0,
            file,
        }
    }
}

impl PciBackend for FakePci {
    fn region(&self, region: Region) -> RegionInfo {
        let size_bytes = match region {
            Region::Bar(bar) => self.sizes[usize::from(bar)],
            Region::Config => self.hardware.lock().unwrap().config.len() as u64,
        };
        RegionInfo {
            size_bytes,
            mappable: Mappable::Whole,
        }
    }

    fn read(&self, region: Region, offset: u64, data: &mut [u8]) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        match region {
            Region::Bar(bar) => self
                .file
                .read_exact_at(data, u64::from(bar) * BAR_STRIDE + offset),
            Region::Config => {
                let at = usize::try_from(offset).unwrap();
                let hardware = self.hardware.lock().unwrap();
                let from = hardware.config.get(at..at + data.len());
                data.copy_from_slice(from.ok_or(io::Error::from_raw_os_error(libc::EINVAL))?);
                Ok(())
            }
        }
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        match region {
            Region::Bar(bar) => self
                .file
                .write_all_at(data, u64::from(bar) * BAR_STRIDE + offset),
            Region::Config => {
                let at = usize::try_from(offset).unwrap();
                let mut hardware = self.hardware.lock().unwrap();
                let to = hardware.config.get_mut(at..at + data.len());
                to.ok_or(io::Error::from_raw_os_error(libc::EINVAL))?
                    .copy_from_slice(data);
                Ok(())
            }
        }
    }

    fn map(&self, region: Region, offset: u64, len_bytes: usize) -> io::Result<BarMapping> {
        let Region::Bar(bar) = region else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        let at = u64::from(bar) * BAR_STRIDE + offset;
        BarMapping::new(self.file.as_fd(), at, len_bytes)
    }

    fn vectors(&self, kind: VectorKind) -> u32 {
        match kind {
            VectorKind::Msi => self.msi_vectors,
            VectorKind::Msix => self.msix_vectors,
        }
    }

    fn enable_vectors(&self, kind: VectorKind, events: &[&EventFd]) -> io::Result<()> {
        self.hardware.lock().unwrap().vectors = Some((kind, events.len()));
        Ok(())
    }

    fn disable_vectors(&self, _kind: VectorKind) -> io::Result<()> {
        self.hardware.lock().unwrap().vectors = None;
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        self.hardware.lock().unwrap().resets += 1;
        Ok(())
    }
}
