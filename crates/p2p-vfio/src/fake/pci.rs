//! Fake PCI function whose BARs are pieces of a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use crate::pci::{Line, Mappable, PciBackend, Region, RegionInfo, VectorKind, Vectors, VfioEvent};
use crate::sys::BarMmap;

use super::vm::FakeVm;

/// The host's view of a fake device.
#[derive(Debug, Default)]
pub(crate) struct FakeHardware {
    pub(crate) config: Vec<u8>,
    /// The kind that is on, the number of vectors with which it was turned on, and the connected vectors.
    pub(crate) vectors: Option<(VectorKind, u32, Vec<u32>)>,
    pub(crate) line: bool,
    pub(crate) resets: u32,
    pub(crate) notices: BTreeMap<u8, EventFd>,
    /// Errno of all calls from now on: the device was removed.
    pub(crate) gone: Option<i32>,
    /// Addresses at which peers could reach it during the last reset.
    pub(crate) peers_at_reset: Vec<u64>,
}

/// A PCI function of the fake host.
pub(crate) struct FakePci {
    vm: Arc<FakeVm>,
    pub(crate) hardware: Arc<Mutex<FakeHardware>>,
    pub(crate) sizes: [u64; 6],
    pub(crate) mappable: Mappable,
    pub(crate) msi_vectors: u32,
    pub(crate) msix_vectors: u32,
    pub(crate) dynamic: bool,
    file: File,
}

/// Length of the vendor and device ids, which are read-only.
const IDS: usize = 4;
/// Bytes of the file that are reserved for each BAR.
const BAR_STRIDE: u64 = 1 << 24;

impl FakePci {
    pub(crate) fn new(vm: &Arc<FakeVm>, config: Vec<u8>, sizes: [u64; 6]) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(6 * BAR_STRIDE).unwrap();
        Self {
            vm: Arc::clone(vm),
            hardware: Arc::new(Mutex::new(FakeHardware {
                config,
                ..FakeHardware::default()
            })),
            sizes,
            mappable: Mappable::Whole,
            msi_vectors: 0,
            msix_vectors: 0,
            dynamic: true,
            file,
        }
    }

    fn call(&self) -> io::Result<()> {
        self.vm.countdown.tick()?;
        match self.hardware.lock().unwrap().gone {
            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            None => Ok(()),
        }
    }
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

impl PciBackend for FakePci {
    fn region(&self, region: Region) -> RegionInfo {
        match region {
            Region::Bar(bar) => RegionInfo {
                size_bytes: self.sizes[usize::from(bar)],
                mappable: self.mappable.clone(),
            },
            Region::Config => RegionInfo {
                size_bytes: self.hardware.lock().unwrap().config.len() as u64,
                mappable: Mappable::Nothing,
            },
        }
    }

    fn read(&self, region: Region, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.call()?;
        match region {
            Region::Bar(bar) => self
                .file
                .read_exact_at(data, u64::from(bar) * BAR_STRIDE + offset),
            Region::Config => {
                let at = usize::try_from(offset).unwrap();
                let hardware = self.hardware.lock().unwrap();
                let from = hardware.config.get(at..at + data.len());
                data.copy_from_slice(from.ok_or_else(invalid)?);
                Ok(())
            }
        }
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) -> io::Result<()> {
        self.call()?;
        match region {
            Region::Bar(bar) => self
                .file
                .write_all_at(data, u64::from(bar) * BAR_STRIDE + offset),
            Region::Config => {
                let at = usize::try_from(offset).unwrap();
                let mut hardware = self.hardware.lock().unwrap();
                let to = hardware.config.get_mut(at..at + data.len());
                let to = to.ok_or_else(invalid)?.iter_mut().zip(data);
                for (register, value) in to.skip(IDS.saturating_sub(at)) {
                    *register = *value;
                }
                Ok(())
            }
        }
    }

    fn map(&self, region: Region, offset: u64, len_bytes: usize) -> io::Result<BarMmap> {
        self.call()?;
        let Region::Bar(bar) = region else {
            return Err(invalid());
        };
        let at = u64::from(bar) * BAR_STRIDE + offset;
        let mapping = BarMmap::new(self.file.as_fd(), at, offset, len_bytes)?;
        self.vm.know_bar(mapping.as_ptr(), &self.hardware);
        Ok(mapping)
    }

    fn vectors(&self, kind: VectorKind) -> Vectors {
        Vectors {
            count: match kind {
                VectorKind::Msi => self.msi_vectors,
                VectorKind::Msix => self.msix_vectors,
            },
            dynamic: self.dynamic && kind == VectorKind::Msix,
        }
    }

    fn set_vectors(
        &self,
        kind: VectorKind,
        first: u32,
        events: &[Option<&EventFd>],
    ) -> io::Result<()> {
        self.call()?;
        let end = first + u32::try_from(events.len()).unwrap();
        let known = self.vectors(kind);
        let mut hardware = self.hardware.lock().unwrap();
        if end > known.count || hardware.line {
            return Err(invalid());
        }
        let (_, given, signals) = match &mut hardware.vectors {
            Some(on) if on.0 != kind || !known.dynamic && end > on.1 => return Err(invalid()),
            Some(on) => on,
            off => off.insert((kind, end, Vec::new())),
        };
        *given = end.max(*given);
        for (n, event) in (first..).zip(events) {
            signals.retain(|old| *old != n);
            if event.is_some() {
                signals.push(n);
            }
        }
        signals.sort_unstable();
        Ok(())
    }

    fn disable_vectors(&self, kind: VectorKind) -> io::Result<()> {
        self.call()?;
        let mut hardware = self.hardware.lock().unwrap();
        match &hardware.vectors {
            Some((on, ..)) if *on == kind => hardware.vectors = None,
            _ => return Err(invalid()),
        }
        Ok(())
    }

    fn has_line(&self) -> bool {
        self.hardware.lock().unwrap().config[0x3d] != 0
    }

    fn set_line(&self, line: Option<Line<'_>>) -> io::Result<()> {
        self.call()?;
        let mut hardware = self.hardware.lock().unwrap();
        if line.is_some() && (hardware.vectors.is_some() || hardware.line) {
            return Err(invalid());
        }
        hardware.line = line.is_some();
        Ok(())
    }

    fn has_notice(&self, _notice: VfioEvent) -> bool {
        true
    }

    fn set_notice(&self, notice: VfioEvent, event: &EventFd) -> io::Result<()> {
        self.call()?;
        let mut hardware = self.hardware.lock().unwrap();
        let event = event.try_clone()?;
        hardware
            .notices
            .insert(u8::from(notice == VfioEvent::Request), event);
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        self.call()?;
        let mut hardware = self.hardware.lock().unwrap();
        hardware.resets += 1;
        hardware.peers_at_reset = self.vm.dma_of(&self.hardware);
        Ok(())
    }
}
