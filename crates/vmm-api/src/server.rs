//! The thread that serves the API.

mod answer;
mod connection;
mod desk;
mod forward;
mod listen;
mod request;
mod riders;
mod routes;
mod stream;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::Notify;

use super::call::{CallQueue, queue};
use crate::{EventLog, Gate, thread};

use crate::SocketError;
use crate::socket::ApiSocket;
use answer::Answers;
use desk::AtDesk;
use forward::Forward;
use routes::VmmCalls;
use stream::Streams;

pub use desk::{Desk, Inquiry, Verb};

/// Calls that a desk answers at once; more wait.
const MOST_ANSWERING: usize = 8;

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
        let (caller, calls) = queue().map_err(ServerError::Thread)?;
        let answers = VmmCalls::new(caller, Streams::new(events.clone()));
        let server = Self::serve(path, answers, events, first)?;
        Ok((server, calls))
    }

    /// Listens at `path`, for root and this process's user only; `desk` answers.
    ///
    /// # Errors
    /// The socket or the thread cannot be made.
    pub fn at_desk(
        path: &Path,
        events: &EventLog,
        desk: Arc<dyn Desk>,
    ) -> Result<Self, ServerError> {
        let answers = AtDesk::new(desk, Streams::new(events.clone()));
        Self::serve(path, answers, events, || Ok(()))
    }

    /// Listens at `path`, for root and this process's user only, and passes calls on to the VMM at `vmm`. `gate` decides about
    /// those that give it devices or take them away.
    ///
    /// # Errors
    /// The socket or the thread cannot be made.
    pub fn before(path: &Path, vmm: PathBuf, gate: Arc<dyn Gate>) -> Result<Self, ServerError> {
        let forward = Forward::new(vmm, gate);
        Self::serve(path, forward, &EventLog::new(), || Ok(()))
    }

    /// Waits until it can serve no more: for a program that does nothing else.
    pub fn join(mut self) {
        self.wait();
    }

    fn wait(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of the API had panicked");
        }
    }

    fn serve(
        path: &Path,
        answers: impl Answers,
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
            // What is still being answered has nobody left to be told.
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
