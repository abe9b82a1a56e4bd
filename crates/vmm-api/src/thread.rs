//! Threads that run a function, such as one that drops privileges, before their body.

use std::io;
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};

/// Starts a thread that runs `first` and then `body`.
///
/// # Errors
/// The thread cannot be started, or `first` failed. Then `body` did not run.
pub fn start(
    name: &str,
    first: impl FnOnce() -> io::Result<()> + Send + 'static,
    body: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let (sender, receiver) = sync_channel(1);
    let thread = Builder::new().name(name.to_owned()).spawn(move || {
        let result = first();
        let goes_on = result.is_ok();
        // `start` waits for this result.
        let _ = sender.send(result);
        if goes_on {
            body();
        }
    })?;
    match receiver.recv() {
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
    fn the_body_does_not_run_if_the_first_function_fails() {
        let error = start(
            "x",
            || Err(io::ErrorKind::PermissionDenied.into()),
            || RAN.store(true, Ordering::SeqCst),
        );
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let panics = start("x", || panic!("expected"), || {});
        assert_eq!(panics.unwrap_err().to_string(), "it panicked");
        assert!(!RAN.load(Ordering::SeqCst));

        let run = || RAN.store(true, Ordering::SeqCst);
        start("x", || Ok(()), run).unwrap().join().unwrap();
        assert!(RAN.load(Ordering::SeqCst));
    }
}
