//! Fake VM: memory slots, DMA mappings, interrupt routes and device events.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use iommu_group::{Address, AddressRange, Gpa, Iova, Sbdf};
use vmm_sys_util::eventfd::EventFd;

use crate::device::DeviceEvent;
use crate::dma::{DmaBackend, DmaError};
use crate::memory::HostMemory;
use crate::vmm::{
    AddressClaims, EventSink, IntxLine, MemorySlots, MsiMessage, MsiRouter, RouteId, SlotId,
};

use super::countdown::Countdown;
use super::pci::FakeHardware;

/// State of the fake kernel and VMM. Overlaps fail with `EEXIST`, addresses beyond 39 bits or in the MSI doorbells with
/// `EINVAL`, and BARs of a device with memory decode off with `EFAULT`.
#[derive(Debug, Default)]
pub(crate) struct FakeVm {
    pub(crate) countdown: Countdown,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    slots: Vec<(u32, u64, HostMemory)>,
    claims: Vec<AddressRange<Gpa>>,
    dma: Vec<(AddressRange<Iova>, HostMemory)>,
    /// Number of DMA mappings made.
    maps: usize,
    bars: Vec<(usize, Arc<Mutex<FakeHardware>>)>,
    routes: Vec<(u32, MsiMessage)>,
    lines: usize,
    told: Vec<String>,
    /// Start addresses of BARs that were unmapped for peers while their device was a bus master.
    torn: Vec<u64>,
    next: u32,
}

/// Ranges that the fake IOMMU translates: 39 bits without x86's MSI doorbells.
pub(crate) fn iova_ranges() -> Vec<AddressRange<Iova>> {
    let range = |start: u64, end: u64| AddressRange::new(Iova::new(start), end - start);
    [range(0, 0xfee0_0000), range(0xfef0_0000, 1 << 39)]
        .into_iter()
        .flatten()
        .collect()
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

impl FakeVm {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Creates a fake VM whose calls count together with those of others.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn failing_with(countdown: Countdown) -> Self {
        Self {
            countdown,
            ..Self::default()
        }
    }

    /// Memory slots of the guest, in order.
    pub(crate) fn slot_ranges(&self) -> Vec<AddressRange<Gpa>> {
        let state = self.state();
        let range = |(_, at, memory): &(u32, u64, HostMemory)| {
            AddressRange::new(Gpa::new(*at), memory.len_bytes() as u64)
        };
        let mut ranges: Vec<_> = state.slots.iter().filter_map(range).collect();
        ranges.sort_unstable();
        ranges
    }

    /// DMA mappings of BARs, in order.
    pub(crate) fn dma_ranges(&self) -> Vec<AddressRange<Iova>> {
        let mut ranges: Vec<_> = self.state().dma.iter().map(|(range, _)| *range).collect();
        ranges.sort_unstable();
        ranges
    }

    /// Claimed ranges, in order.
    pub(crate) fn claim_ranges(&self) -> Vec<AddressRange<Gpa>> {
        let mut ranges = self.state().claims.clone();
        ranges.sort_unstable();
        ranges
    }

    /// Start addresses of the DMA mappings of one function's BARs, in order.
    pub(super) fn dma_of(&self, hardware: &Arc<Mutex<FakeHardware>>) -> Vec<u64> {
        let state = self.state();
        let is_its = |memory: &HostMemory| {
            let at = memory.as_ptr().addr();
            let known = |(bar, of): &(usize, _)| *bar == at && Arc::ptr_eq(of, hardware);
            state.bars.iter().any(known)
        };
        let mapped = state.dma.iter().filter(|(_, memory)| is_its(memory));
        let mut starts: Vec<_> = mapped.map(|(range, _)| range.start().value()).collect();
        starts.sort_unstable();
        starts
    }

    /// Start addresses of the memory slots, in order.
    pub(crate) fn slots(&self) -> Vec<u64> {
        let ranges = self.slot_ranges().into_iter();
        ranges.map(|range| range.start().value()).collect()
    }

    /// Start addresses of the DMA mappings of BARs, in order.
    pub(crate) fn dma(&self) -> Vec<u64> {
        let ranges = self.dma_ranges().into_iter();
        ranges.map(|range| range.start().value()).collect()
    }

    /// Number of DMA mappings made.
    pub(crate) fn maps(&self) -> usize {
        self.state().maps
    }

    /// Start addresses of the claimed ranges, in order.
    pub(crate) fn claims(&self) -> Vec<u64> {
        let ranges = self.claim_ranges().into_iter();
        ranges.map(|range| range.start().value()).collect()
    }

    /// Messages of the current routes.
    pub(crate) fn messages(&self) -> Vec<MsiMessage> {
        let state = self.state();
        state.routes.iter().map(|(_, message)| *message).collect()
    }

    /// Number of devices connected to interrupt lines.
    pub(crate) fn lines(&self) -> usize {
        self.state().lines
    }

    /// Takes the device events since the last call, as text.
    pub(crate) fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.state().told)
    }

    /// Start addresses of BARs that were unmapped for peers while bus mastering of their device was on.
    pub(crate) fn torn(&self) -> Vec<u64> {
        self.state().torn.clone()
    }

    /// Whether there are no slots, mappings, claims, routes or connected lines.
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.state();
        state.slots.is_empty()
            && state.claims.is_empty()
            && state.dma.is_empty()
            && state.routes.is_empty()
            && state.lines == 0
    }

    /// A device writes a word by DMA: it reaches the memory that is mapped at `iova`, and faults if there is none.
    #[cfg(test)]
    pub(crate) fn store(&self, iova: Iova, word: u32) {
        let state = self.state();
        for (range, memory) in &state.dma {
            if let Some(offset) = range.offset_of(iova) {
                memory.store(usize::try_from(offset).unwrap(), word);
            }
        }
    }

    /// Records the function whose BAR is mapped at an address of this process.
    pub(super) fn know_bar(&self, memory: *mut u8, hardware: &Arc<Mutex<FakeHardware>>) {
        let mut state = self.state();
        state.bars.retain(|(at, _)| *at != memory.addr());
        state.bars.push((memory.addr(), Arc::clone(hardware)));
    }
}

impl MemorySlots for FakeVm {
    fn add(&self, gpa: Gpa, memory: HostMemory) -> io::Result<SlotId> {
        self.countdown.tick()?;
        let mut state = self.state();
        let range = |gpa, memory: &HostMemory| AddressRange::new(gpa, memory.len_bytes() as u64);
        let new = range(gpa, &memory).ok_or_else(|| errno(libc::EINVAL))?;
        if state.slots.iter().any(|(_, at, m)| {
            let old = range(Gpa::new(*at), m).unwrap();
            old.intersect(&new).is_some()
        }) {
            return Err(errno(libc::EEXIST));
        }
        state.next += 1;
        let id = state.next;
        state.slots.push((id, gpa.value(), memory));
        Ok(SlotId(id))
    }

    fn remove(&self, slot: SlotId) -> io::Result<()> {
        self.countdown.tick()?;
        let mut state = self.state();
        let at = state.slots.iter().position(|(id, ..)| *id == slot.0);
        let at = at.ok_or_else(|| errno(libc::ENOENT))?;
        state.slots.remove(at);
        Ok(())
    }
}

impl AddressClaims for FakeVm {
    fn claim(&self, range: AddressRange<Gpa>) -> io::Result<()> {
        self.countdown.tick()?;
        let mut state = self.state();
        if state.claims.iter().any(|r| r.intersect(&range).is_some()) {
            return Err(errno(libc::EEXIST));
        }
        state.claims.push(range);
        Ok(())
    }

    fn release(&self, range: AddressRange<Gpa>) {
        let mut state = self.state();
        let at = state.claims.iter().position(|r| *r == range).unwrap();
        state.claims.remove(at);
    }
}

impl DmaBackend for FakeVm {
    fn map(&self, iova: Iova, memory: HostMemory) -> Result<AddressRange<Iova>, DmaError> {
        let len_bytes = memory.len_bytes();
        let range = AddressRange::new(iova, len_bytes as u64)
            .ok_or(DmaError::BadRange { iova, len_bytes })?;
        let fail = |error| DmaError::Map { range, error };
        self.countdown.tick().map_err(fail)?;
        let mut state = self.state();
        if !iova_ranges().iter().any(|usable| usable.contains(&range)) {
            return Err(fail(errno(libc::EINVAL)));
        }
        if state.dma.iter().any(|(r, _)| r.intersect(&range).is_some()) {
            return Err(fail(errno(libc::EEXIST)));
        }
        let asleep = |hardware: &FakeHardware| hardware.config[4] & 2 == 0;
        let address = memory.as_ptr().addr();
        if state
            .bars
            .iter()
            .any(|(at, hardware)| *at == address && asleep(&hardware.lock().unwrap()))
        {
            return Err(fail(errno(libc::EFAULT)));
        }
        state.dma.push((range, memory));
        state.maps += 1;
        Ok(range)
    }

    fn unmap(&self, range: AddressRange<Iova>) -> Result<(), DmaError> {
        let tick = self.countdown.tick();
        tick.map_err(|error| DmaError::Unmap { range, error })?;
        let mut state = self.state();
        let at = state.dma.iter().position(|(r, _)| *r == range);
        let (_, memory) = state.dma.remove(at.ok_or(DmaError::NotMapped(range))?);
        let address = memory.as_ptr().addr();
        let masters = |hardware: &FakeHardware| hardware.config[4] & 4 != 0;
        if state
            .bars
            .iter()
            .any(|(at, hardware)| *at == address && masters(&hardware.lock().unwrap()))
        {
            state.torn.push(range.start().value());
        }
        Ok(())
    }
}

impl MsiRouter for FakeVm {
    fn connect(&self, _event: &EventFd, message: MsiMessage) -> io::Result<RouteId> {
        self.countdown.tick()?;
        let mut state = self.state();
        state.next += 1;
        let id = state.next;
        state.routes.push((id, message));
        Ok(RouteId(id))
    }

    fn update(&self, route: RouteId, message: MsiMessage) -> io::Result<()> {
        self.countdown.tick()?;
        let mut state = self.state();
        let found = state.routes.iter_mut().find(|(id, _)| *id == route.0);
        found.ok_or_else(|| errno(libc::ENOENT))?.1 = message;
        Ok(())
    }

    fn disconnect(&self, route: RouteId, _event: &EventFd) -> io::Result<()> {
        self.countdown.tick()?;
        let mut state = self.state();
        let at = state.routes.iter().position(|(id, _)| *id == route.0);
        state.routes.remove(at.ok_or_else(|| errno(libc::ENOENT))?);
        Ok(())
    }
}

impl IntxLine for FakeVm {
    fn connect(&self, _raised: &EventFd, _handled: &EventFd) -> io::Result<()> {
        self.countdown.tick()?;
        self.state().lines += 1;
        Ok(())
    }

    fn disconnect(&self, _raised: &EventFd, _handled: &EventFd) -> io::Result<()> {
        self.countdown.tick()?;
        self.state().lines -= 1;
        Ok(())
    }
}

impl EventSink for FakeVm {
    fn device_event(&self, sbdf: Sbdf, event: DeviceEvent) {
        self.state().told.push(format!("{sbdf}: {event}"));
    }
}
