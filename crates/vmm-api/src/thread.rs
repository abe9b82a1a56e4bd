//! Threads that do one thing before all else, such as giving up what they do not need.

use std::io;
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};

/// Starts a thread that runs `first` and then `body`.
///
/// # Errors
/// There is no thread, or `first` failed in it; then `body` was not run.
pub fn start(
    name: &str,
    first: impl FnOnce() -> io::Result<()> + Send + 'static,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let (tell, told) = sync_channel(1);
    let thread = Builder::new().name(name.to_owned()).spawn(move || {
        let result = first();
        let goes_on = result.is_ok();
        // Whoever starts a thread waits for this.
        let _ = tell.send(result);
        if goes_on {
            body();
        }
    })?;
    match told.recv() {
        Ok(result) => result.map(|()| thread),
        Err(_) => Err(io::Error::other("it panicked")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    static RAN: AtomicBool = AtomicBool::new(false);

    #[test]
    fn what_could_not_begin_does_not_run() {
        let error = start(
            "x",
            || Err(io::ErrorKind::PermissionDenied.into()),
            || RAN.store(true, Ordering::SeqCst),
        );
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let panics = start("x", || panic!("as it shall"), || {});
        assert_eq!(panics.unwrap_err().to_string(), "it panicked");
        assert!(!RAN.load(Ordering::SeqCst));

        let run = || RAN.store(true, Ordering::SeqCst);
        start("x", || Ok(()), run).unwrap().join().unwrap();
        assert!(RAN.load(Ordering::SeqCst));
    }
}
