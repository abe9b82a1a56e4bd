//! Continuous work of a guest: it counts, writes a file to the drive whose serial number begins with `work`, compares
//! the copy, and starts again.
//!
//! Any failure panics, which fails the test.

use std::time::Instant;

use crate::live::{Live, PATIENCE};

/// Shell script that writes a file to sixteen places of the drive, one after the other, and reads it back. The places
/// are behind the first 256 KiB, because guest-probe tries to write there. While pages of a region are being written to
/// the drive, the kernel does by itself what the drive was not allowed to do (linux 7.2 block/fops.c:
/// `blkdev_direct_write` turns to the page cache on `EBUSY`).
const LOOP: &str = "d=/dev/$(basename $(dirname $(grep -l work /sys/class/nvme/*/serial)))n1; \
    (i=0; w=0; read p x < /proc/uptime; p=${p%.*}${p#*.}; \
    while :; do i=$((i+1)); k=$((i%16+1)); \
    dd if=/tmp/file of=$d bs=64k seek=$((k*4)) conv=notrunc,fsync 2>/dev/null && \
    dd if=$d bs=64k skip=$((k*4)) count=4 2>/dev/null | cmp -s - /tmp/file || echo bad >> /tmp/bad; \
    read n x < /proc/uptime; n=${n%.*}${n#*.}; g=$((n-p)); p=$n; [ $g -le $w ] || w=$g; \
    echo $i $w > /tmp/work.new; mv /tmp/work.new /tmp/work; done) >/dev/null 2>&1 & true";

/// The running work of a guest.
pub struct Work {
    count: u64,
}

impl Work {
    /// Starts the work in a guest that has the drive.
    pub fn start(live: &mut Live<'_>) -> Self {
        live.guest("dd if=/dev/urandom of=/tmp/file bs=64k count=4 2>/dev/null");
        live.guest(LOOP);
        Self { count: 0 }
    }

    /// Checks that the work has continued since the last call, without an error and without a pause as long as the
    /// timeout of a lost request. Returns the number of rounds so far, and the longest pause in hundredths of a second.
    pub fn goes_on(&mut self, live: &mut Live<'_>) -> (u64, u64) {
        // linux 7.2 drivers/nvme/host/core.c: nvme_io_timeout. Shorter pauses come from the load of the emulating
        // machine.
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

/// Number of rounds and longest pause, if they are available.
fn progress(text: &str) -> Option<(u64, u64)> {
    text.lines().find_map(|line| {
        let (count, longest) = line.trim().split_once(' ')?;
        Some((count.parse().ok()?, longest.parse().ok()?))
    })
}
