//! Events of devices on their way to the VMM, limited for each device and each kind of event, so that a flood of one
//! hides no other.
//!
//! ```text
//! vCPU, device locked ──event──▶ allowance ──▶ queue ──▶ the VMM's thread
//!                                  └─ used up: counted, and the count is reported
//! ```
//! A guest can cause an event with every access. The thread that delivers an event writes nothing itself.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::mem::{Discriminant, discriminant};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use iommu_group::Sbdf;
use vmm_sys_util::eventfd::EventFd;

use crate::device::DeviceEvent;
use crate::lock::lock;
use crate::vmm::EventSink;

/// Most events of a kind that a device may emit at once.
const BURST: u32 = 16;
/// Time until the allowance grows by one event.
const REFILL: Duration = Duration::from_secs(1);
/// Interval of the reports of suppressed events.
const REPORT: Duration = Duration::from_secs(10);

/// The remaining events of one kind from one device.
struct Allowance {
    left: u32,
    /// When `left` was last computed.
    at: Instant,
    suppressed: u64,
    /// When to report the suppressed events.
    report: Option<Instant>,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            at: now,
            suppressed: 0,
            report: None,
        }
    }

    /// Whether one more event is allowed at `now`.
    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at);
        let more = u32::try_from(passed.as_secs() / REFILL.as_secs()).unwrap_or(u32::MAX);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(BURST);
            self.at = now;
        }
        if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
            return true;
        }
        self.suppressed = self.suppressed.saturating_add(1);
        self.report.get_or_insert(now + REPORT);
        false
    }

    /// Whether the allowance equals a new one.
    fn is_full(&self, now: Instant) -> bool {
        self.report.is_none() && now >= self.at + REFILL * BURST
    }

    /// The number of suppressed events, if a report is due.
    fn report(&mut self, now: Instant) -> Option<u64> {
        self.report.take_if(|due| *due <= now)?;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[derive(Default)]
struct Waiting {
    events: VecDeque<(Sbdf, DeviceEvent)>,
    allowances: HashMap<(Sbdf, Discriminant<DeviceEvent>), Allowance>,
}

/// What [`DeviceEvents::take`] returns.
pub(super) struct Taken {
    pub(super) events: VecDeque<(Sbdf, DeviceEvent)>,
    /// Suppressed events of each device since its last report.
    pub(super) suppressed: BTreeMap<Sbdf, u64>,
}

/// The queue of device events.
pub(super) struct DeviceEvents {
    waiting: Mutex<Waiting>,
    wake: EventFd,
}

impl DeviceEvents {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            waiting: Mutex::default(),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
        })
    }

    /// Readable when there are events to take.
    pub(super) fn wake(&self) -> &EventFd {
        &self.wake
    }

    pub(super) fn take(&self, now: Instant) -> Taken {
        // An event without a count is no error.
        let _ = self.wake.read();
        let mut waiting = lock(&self.waiting);
        let mut suppressed = BTreeMap::new();
        for ((sbdf, _), allowance) in &mut waiting.allowances {
            if let Some(count) = allowance.report(now) {
                let total: &mut u64 = suppressed.entry(*sbdf).or_default();
                *total = total.saturating_add(count);
            }
        }
        // Full allowances are dropped, so devices that are gone leave nothing behind.
        waiting
            .allowances
            .retain(|_, allowance| !allowance.is_full(now));
        Taken {
            suppressed,
            events: std::mem::take(&mut waiting.events),
        }
    }

    /// When [`take`](Self::take) must be called to report suppressed events.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let waiting = lock(&self.waiting);
        waiting
            .allowances
            .values()
            .filter_map(|allowance| allowance.report)
            .min()
    }

    fn put(&self, sbdf: Sbdf, event: DeviceEvent, now: Instant) {
        // The host emits these, not the guest. They must not be lost.
        let always = matches!(
            event,
            DeviceEvent::Requested | DeviceEvent::Error | DeviceEvent::Vanished
        );
        let mut waiting = lock(&self.waiting);
        let allowances = &mut waiting.allowances;
        let kind = (sbdf, discriminant(&event));
        let allowance = allowances
            .entry(kind)
            .or_insert_with(|| Allowance::new(now));
        let silent = allowance.suppressed > 0;
        if always || allowance.take(now) {
            waiting.events.push_back((sbdf, event));
        } else if silent {
            // The other thread already has the deadline of the report.
            return;
        }
        drop(waiting);
        if let Err(error) = self.wake.write(1) {
            log::error!("{sbdf}: cannot wake the thread that takes events: {error}");
        }
    }
}

impl EventSink for DeviceEvents {
    fn device_event(&self, sbdf: Sbdf, event: DeviceEvent) {
        self.put(sbdf, event, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(number: u8) -> Sbdf {
        format!("0000:{number:02x}:00.0").parse().unwrap()
    }

    #[test]
    fn a_flood_is_limited_and_counted_per_device_and_kind() {
        const FLOOD: u64 = 100_000;
        let events = DeviceEvents::new().unwrap();
        let start = Instant::now();
        for _ in 0..FLOOD {
            events.put(device(3), DeviceEvent::Reset, start);
        }
        events.put(device(4), DeviceEvent::Reset, start);
        let failed = io::Error::from_raw_os_error(libc::EIO);
        events.put(device(3), DeviceEvent::ResetFailed(failed), start);
        events.put(device(3), DeviceEvent::Requested, start);

        let taken = events.take(start);
        let of = |number| {
            let events = taken.events.iter();
            events.filter(|(sbdf, _)| *sbdf == device(number)).count()
        };
        assert_eq!((of(3), of(4)), (BURST as usize + 2, 1));
        assert!(matches!(
            taken.events.back(),
            Some((_, DeviceEvent::Requested))
        ));
        assert!(taken.suppressed.is_empty());

        let due = events.deadline().unwrap();
        assert_eq!(due, start + REPORT);
        let taken = events.take(due);
        let count = FLOOD - u64::from(BURST);
        assert_eq!(taken.suppressed, BTreeMap::from([(device(3), count)]));
        assert!(taken.events.is_empty());
        assert_eq!(events.deadline(), None);
        assert!(events.take(due + REPORT).suppressed.is_empty());
    }

    #[test]
    fn a_sustained_flood_is_limited_to_one_event_a_second() {
        let events = DeviceEvents::new().unwrap();
        let start = Instant::now();
        let (mut delivered, mut suppressed) = (0, 0);
        for tenth in 0..1000 {
            let now = start + Duration::from_millis(100) * tenth;
            events.put(device(3), DeviceEvent::Reset, now);
            let taken = events.take(now);
            delivered += taken.events.len() as u64;
            suppressed += taken.suppressed.values().sum::<u64>();
        }
        assert!((110..=120).contains(&delivered), "{delivered}");
        let last = events.take(start + Duration::from_secs(200)).suppressed;
        suppressed += last.values().sum::<u64>();
        assert_eq!(delivered + suppressed, 1000);
    }

    #[test]
    fn the_allowance_of_an_idle_device_is_dropped_after_its_report() {
        let events = DeviceEvents::new().unwrap();
        let now = Instant::now();
        for _ in 0..100 {
            events.put(device(3), DeviceEvent::Reset, now);
        }
        assert_eq!(events.take(now + REPORT).suppressed.len(), 1);
        assert_eq!(lock(&events.waiting).allowances.len(), 1);
        events.take(now + REFILL * BURST);
        assert!(lock(&events.waiting).allowances.is_empty());
    }
}
