use std::io::Read;
use std::os::fd::AsRawFd;

use super::*;
use crate::{Event, Record};

fn inherited(number: i32) -> InheritedFd {
    number.to_string().parse().unwrap()
}

fn records(text: &str) -> Vec<Record> {
    text.split_terminator("\n\n")
        .map(|text| serde_json::from_str(text).unwrap())
        .collect()
}

#[test]
fn targets_are_a_path_or_a_descriptor() {
    let path = MonitorTarget::Path("/tmp/e".into());
    assert_eq!("path=/tmp/e".parse(), Ok(path));
    assert_eq!("fd=7".parse(), Ok(MonitorTarget::Fd(inherited(7))));
    for text in ["fd=1", "fd=-1", "fd=x", "path=/a,fd=4", "file=/a", ""] {
        assert!(text.parse::<MonitorTarget>().is_err(), "{text}");
    }
}

#[test]
fn a_file_gets_every_event_and_an_empty_line_after_each() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events");
    let log = EventLog::new();
    let monitor = EventMonitor::start(&log, &MonitorTarget::Path(path.clone()), || Ok(())).unwrap();
    log.publish(&Event::VmBooting);
    log.publish(&Event::VmBooted);
    drop(monitor);

    let text = std::fs::read_to_string(path).unwrap();
    assert!(
        text.starts_with("{\n  \"timestamp\": {\n    \"secs\": 0,"),
        "{text}"
    );
    assert!(text.ends_with("}\n\n"), "{text}");
    let names: Vec<_> = records(&text).into_iter().map(|r| r.event).collect();
    assert_eq!(names, ["booting", "booted"]);
}

#[test]
fn a_full_pipe_loses_no_event_and_blocks_no_publisher() {
    let (mut reader, writer) = io::pipe().unwrap();
    let log = EventLog::new();
    let target = MonitorTarget::Fd(inherited(writer.as_raw_fd()));
    let monitor = EventMonitor::start(&log, &target, || Ok(())).unwrap();
    drop(writer);
    // More than a pipe holds, and fewer than the log keeps.
    const COUNT: usize = 1000;
    for number in 0..COUNT {
        let reason = format!("{number} {}", "x".repeat(300));
        log.publish(&Event::DeviceError {
            id: "nvme0".into(),
            reason,
        });
    }
    let collector = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    drop(monitor);
    assert_eq!(records(&collector.join().unwrap()).len(), COUNT);
}

#[test]
fn dropping_the_monitor_ends_within_the_time_limit() {
    let (_reader, writer) = io::pipe().unwrap();
    let log = EventLog::new();
    let monitor = EventMonitor::start(
        &log,
        &MonitorTarget::Fd(inherited(writer.as_raw_fd())),
        || Ok(()),
    )
    .unwrap();
    for _ in 0..1000 {
        log.publish(&Event::DeviceError {
            id: "nvme0".into(),
            reason: "x".repeat(300),
        });
    }
    let started = Instant::now();
    drop(monitor);
    assert!(started.elapsed() < PATIENCE * 5);
}

#[test]
fn a_descriptor_that_is_not_open_is_refused() {
    let error = EventMonitor::start(
        &EventLog::new(),
        &MonitorTarget::Fd(inherited(987_654)),
        || Ok(()),
    )
    .err()
    .unwrap();
    assert!(matches!(
        error,
        MonitorError::Descriptor { fd, .. } if fd == inherited(987_654)
    ));
}

#[test]
fn a_file_at_its_limit_is_restarted_with_the_number_of_lost_events() {
    const MAX: u64 = 64 << 10;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events");
    let target = MonitorTarget::Path(path.clone());
    let log = EventLog::new();
    let monitor = EventMonitor::start_bounded(&log, &target, MAX, || Ok(())).unwrap();
    const COUNT: usize = 1000;
    for number in 0..COUNT {
        log.publish(&Event::DeviceError {
            id: "nvme0".into(),
            reason: format!("{number} {}", "x".repeat(300)),
        });
    }
    drop(monitor);

    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.len() as u64 <= MAX, "{}", text.len());
    let records = records(&text);
    let property = |record: &Record, key: &str| record.properties.clone().unwrap()[key].clone();
    assert_eq!(records[0].event, "events-missed");
    // The events after the first are the last ones, without a gap.
    let last = property(records.last().unwrap(), "reason");
    assert!(last.starts_with("999 "), "{last}");
    let first = property(&records[1], "reason");
    let first: usize = first.split(' ').next().unwrap().parse().unwrap();
    assert_eq!(first, COUNT - (records.len() - 1));
    let lost: usize = property(&records[0], "count").parse().unwrap();
    assert!(lost > 0 && lost <= first, "{lost}");
}

#[test]
fn a_file_without_room_for_two_events_has_the_last_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events");
    let target = MonitorTarget::Path(path.clone());
    let log = EventLog::new();
    let monitor = EventMonitor::start_bounded(&log, &target, 1, || Ok(())).unwrap();
    log.publish(&Event::VmBooting);
    log.publish(&Event::VmBooted);
    drop(monitor);
    let text = std::fs::read_to_string(path).unwrap();
    let names: Vec<_> = records(&text).into_iter().map(|r| r.event).collect();
    assert_eq!(names, ["events-missed", "booted"]);
}
