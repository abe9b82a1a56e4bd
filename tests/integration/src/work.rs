//! What a guest does all the while: it counts, and copies a file on a drive of its own, compares and begins again.
//!
//! What goes wrong is a panic: it fails the test.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use crate::live::Live;

/// The first half of the third drive is copied into its second half, a megabyte at a time.
const LOOP: &str = "d=/dev/$(basename $(dirname $(grep -l nvme2 /sys/class/nvme/*/serial)))n1; \
    (i=0; w=0; read p x < /proc/uptime; p=${p%.*}${p#*.}; \
    while :; do i=$((i+1)); k=$((i%16)); \
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

    /// Expects it to have gone on since the last time: without an error, and without a pause of more than ten seconds.
    /// Returns how often it was done so far, and the longest pause in hundredths of a second.
    pub fn goes_on(&mut self, live: &mut Live<'_>) -> (u64, u64) {
        const LONGEST_CENTISECONDS: u64 = 1000;
        let bad = live.guest("[ -e /tmp/bad ] && echo DIFFERS");
        assert!(!bad.contains("DIFFERS"), "a copy was not like the file");
        let text = live.guest("cat /tmp/work");
        let line = text.lines().map(str::trim).find(|line| {
            let mut words = line.split(' ');
            words.clone().count() == 2 && words.all(|word| word.parse::<u64>().is_ok())
        });
        let mut numbers = line
            .unwrap()
            .split(' ')
            .map(|word| word.parse::<u64>().unwrap());
        let (count, longest) = (numbers.next().unwrap(), numbers.next().unwrap());
        assert!(
            count > self.count + 3,
            "{count} rounds, {} before",
            self.count
        );
        assert!(
            longest < LONGEST_CENTISECONDS,
            "it paused for {longest}/100 s"
        );
        self.count = count;
        (count, longest)
    }
}
