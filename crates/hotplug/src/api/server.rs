//! The thread that serves the API.

mod answer;
mod connection;
mod listen;
mod request;
mod routes;
mod stream;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::Notify;

use super::call::{CallQueue, queue};
use crate::{EventLog, thread};

use crate::SocketError;
use crate::socket::ApiSocket;

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// There is no socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The thread cannot be made.
    #[error("cannot start the thread of the API")]
    Thread(#[source] io::Error),
}

/// The running API. Dropping it answers what is being asked, ends the thread, and removes the socket.
pub struct ApiServer {
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Listens at `path`, for root and this process's user only; calls come out of the queue. The thread begins with
    /// `first`, which may take rights away from it: to accept connections and to remove the socket is all that it needs.
    ///
    /// # Errors
    /// The socket or the thread cannot be made, or `first` failed.
    pub fn start(
        path: &Path,
        events: &EventLog,
        first: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<(Self, CallQueue), ServerError> {
        let socket = ApiSocket::bind(path)?;
        let (caller, calls) = queue().map_err(ServerError::Thread)?;
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let routes = routes::Shared::new(caller, events.clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(ServerError::Thread)?;
        let body = move || runtime.block_on(listen::serve(socket, routes, stopped));
        let thread = thread::start("api", first, body).map_err(ServerError::Thread)?;
        let server = Self {
            stop,
            thread: Some(thread),
        };
        Ok((server, calls))
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of the API had panicked");
        }
    }
}

#[cfg(test)]
mod tests;
