//! Log to standard error, one line per message.

use std::io::Write;
use std::time::Instant;

use log::{LevelFilter, Log, Metadata, Record, SetLoggerError};

struct StderrLogger {
    start: Instant,
}

impl Log for StderrLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let elapsed = self.start.elapsed().as_secs_f64();
        let level = record.level().as_str().to_ascii_lowercase();
        let line = format!("p2p-vmm {elapsed:9.3}s {level}: {}\n", record.args());
        // There is nowhere left to report that standard error is gone.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// Makes standard error the log of this process; times are seconds since this call.
pub(crate) fn init(level: LevelFilter) -> Result<(), SetLoggerError> {
    log::set_boxed_logger(Box::new(StderrLogger {
        start: Instant::now(),
    }))?;
    log::set_max_level(level);
    Ok(())
}
