//! The API server: one thread.

mod answer;
mod connection;
mod fd_stream;
mod handler;
mod listen;
mod proxy;
mod request;
mod routes;
mod stream;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::Notify;

use super::call::{CallQueue, queue};
use crate::{EventLog, RequestFilter, thread};

use crate::SocketError;
use crate::socket::ApiSocket;
use answer::Service;
use handler::HandlerService;
use proxy::ApiProxy;
use routes::VmmCalls;
use stream::Streams;

pub use handler::{ApiCall, Handler, HttpMethod};

/// Calls that a handler answers at once. Further calls wait.
const MOST_ANSWERING: usize = 8;

/// Error when the API server starts.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The socket cannot be created.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The thread cannot be started.
    #[error("cannot start the API thread")]
    Thread(#[source] io::Error),
}

/// A running API server. Dropping it waits for open answers, ends the thread and removes the socket.
pub struct ApiServer {
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Listens at `path`, for root and this process's user only. Calls arrive in the returned queue. The thread first
    /// runs `first`, which may drop privileges: the thread only accepts connections and removes the socket.
    ///
    /// # Errors
    /// The socket cannot be created, the thread cannot be started, or `first` failed.
    pub fn start(
        path: &Path,
        events: &EventLog,
        first: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<(Self, CallQueue), ServerError> {
        let (caller, calls) = queue().map_err(ServerError::Thread)?;
        let answers = VmmCalls::new(caller, Streams::new(events.clone()));
        let server = Self::serve(path, answers, events, first)?;
        Ok((server, calls))
    }

    /// Listens at `path`, for root and this process's user only. `handler` answers the calls.
    ///
    /// # Errors
    /// The socket cannot be created or the thread cannot be started.
    pub fn with_handler(
        path: &Path,
        events: &EventLog,
        handler: Arc<dyn Handler>,
    ) -> Result<Self, ServerError> {
        let answers = HandlerService::new(handler, Streams::new(events.clone()));
        Self::serve(path, answers, events, || Ok(()))
    }

    /// Listens at `path`, for root and this process's user only, and forwards calls to the VMM at `vmm`. `filter` decides
    /// about calls that add or remove devices.
    ///
    /// # Errors
    /// The socket cannot be created or the thread cannot be started.
    pub fn proxy(
        path: &Path,
        vmm: PathBuf,
        filter: Arc<dyn RequestFilter>,
    ) -> Result<Self, ServerError> {
        let forward = ApiProxy::new(vmm, filter);
        Self::serve(path, forward, &EventLog::new(), || Ok(()))
    }

    /// Waits until the server ends, for programs that do nothing else.
    pub fn join(mut self) {
        self.wait();
    }

    fn wait(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the API thread panicked");
        }
    }

    fn serve(
        path: &Path,
        answers: impl Service,
        events: &EventLog,
        first: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> Result<Self, ServerError> {
        let socket = ApiSocket::bind(path)?;
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let events = events.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(MOST_ANSWERING)
            .build()
            .map_err(ServerError::Thread)?;
        let body = move || {
            runtime.block_on(listen::serve(socket, answers, events, stopped));
            // Service that are still running have no client left.
            runtime.shutdown_background();
        };
        let thread = thread::start("api", first, body).map_err(ServerError::Thread)?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop.notify_one();
        self.wait();
    }
}

#[cfg(test)]
mod tests;
