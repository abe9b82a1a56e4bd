//! What a guest does all the while: it counts, and copies a file on the drive whose serial number begins with `work`,
//! compares and begins again.
//!
//! What goes wrong is a panic: it fails the test.

use std::time::Instant;

use crate::live::{Live, PATIENCE};

/// A file is written to sixteen places of the drive, one after the other, and read back. They are behind the first
/// 256 KiB: there guest-probe tries to write, and where pages are on their way to the drive the kernel does by itself what
/// the drive was not allowed to (linux 7.2 block/fops.c: `blkdev_direct_write` turns to the page cache on `EBUSY`).
const LOOP: &str = "d=/dev/$(basename $(dirname $(grep -l work /sys/class/nvme/*/serial)))n1; \
    (i=0; w=0; read p x < /proc/uptime; p=${p%.*}${p#*.}; \
    while :; do i=$((i+1)); k=$((i%16+1)); \
    dd if=/tmp/file of=$d bs=64k seek=$((k*4)) conv=notrunc,fsync 2>/dev/null && \
    dd if=$d bs=64k skip=$((k*4)) count=4 2>/dev/null | cmp -s - /tmp/file || echo bad >> /tmp/bad; \
    read n x < /proc/uptime; n=${n%.*}${n#*.}; g=$((n-p)); p=$n; [ $g -le $w ] || w=$g; \
    echo $i $w > /tmp/work.new; mv /tmp/work.new /tmp/work; done) >/dev/null 2>&1 & true";

/// The work of a guest.
pub struct Work {
    count: u64,
}

impl Work {
    /// Begins it in a guest that has the drive.
    pub fn start(live: &mut Live<'_>) -> Self {
        live.guest("dd if=/dev/urandom of=/tmp/file bs=64k count=4 2>/dev/null");
        live.guest(LOOP);
        Self { count: 0 }
    }

    /// Expects it to have gone on since the last time: without an error, and without a pause as long as a request that
    /// is lost makes one. Returns how often it was done so far, and the longest pause in hundredths of a second.
    pub fn goes_on(&mut self, live: &mut Live<'_>) -> (u64, u64) {
        // linux 7.2 drivers/nvme/host/core.c: nvme_io_timeout. Less is how busy the machine is that emulates all this.
        const LONGEST_CENTISECONDS: u64 = 3000;
        let started = Instant::now();
        let (count, longest) = loop {
            let bad = live.guest("[ -e /tmp/bad ] && echo DIFFERS");
            assert!(!bad.contains("DIFFERS"), "a copy was not like the file");
            let found = progress(&live.guest("cat /tmp/work"));
            match found {
                Some((count, longest)) if count > self.count + 3 => break (count, longest),
                _ => assert!(
                    started.elapsed() < PATIENCE,
                    "{found:?} rounds and longest pause, {} rounds before",
                    self.count
                ),
            }
        };
        assert!(
            longest < LONGEST_CENTISECONDS,
            "it paused for {longest}/100 s"
        );
        self.count = count;
        (count, longest)
    }
}

/// Rounds and longest pause, if they are there yet.
fn progress(text: &str) -> Option<(u64, u64)> {
    text.lines().find_map(|line| {
        let (count, longest) = line.trim().split_once(' ')?;
        Some((count.parse().ok()?, longest.parse().ok()?))
    })
}
