//! A VMM at a socket that can be stopped, and whose guest can keep its devices.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

pub(super) struct FakeVmm {
    dir: tempfile::TempDir,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// It answers nobody, as a process that was stopped.
    stopped: AtomicBool,
    /// Its guest lets go of nothing.
    keeps: AtomicBool,
    done: AtomicBool,
    /// The process that it says it is.
    pid: AtomicI64,
    devices: Mutex<Vec<Value>>,
    /// What was asked of it that changes anything, in its order.
    log: Mutex<Vec<String>>,
}

impl FakeVmm {
    /// One with these devices: name, function, P2P.
    pub(super) fn start(devices: &[(&str, &str, bool)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("api")).unwrap();
        listener.set_nonblocking(true).unwrap();
        let shared = Arc::new(Shared::default());
        let device = |(id, function, p2p): &(&str, &str, bool)| json!({"id": id, "path": format!("/sys/bus/pci/devices/{function}"), "p2p": p2p});
        *shared.devices.lock().unwrap() = devices.iter().map(device).collect();
        let vmm = Arc::clone(&shared);
        let thread = thread::spawn(move || vmm.serve(&listener));
        Self {
            dir,
            shared,
            thread: Some(thread),
        }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.path().join("api")
    }

    pub(super) fn stop(&self, stopped: bool) {
        self.shared.stopped.store(stopped, Ordering::SeqCst);
    }

    pub(super) fn keep(&self, keeps: bool) {
        self.shared.keeps.store(keeps, Ordering::SeqCst);
    }

    /// Another process answers from now on.
    pub(super) fn set_pid(&self, pid: i64) {
        self.shared.pid.store(pid, Ordering::SeqCst);
    }

    /// The guest lets go of a device by itself.
    pub(super) fn let_go(&self, id: &str) {
        self.shared.remove(id);
    }

    pub(super) fn log(&self) -> Vec<String> {
        self.shared.log.lock().unwrap().clone()
    }

    pub(super) fn was_asked(&self, what: &str) -> bool {
        self.log().iter().any(|line| line == what)
    }

    pub(super) fn has(&self, id: &str) -> bool {
        let devices = self.shared.devices.lock().unwrap();
        devices.iter().any(|device| device["id"] == id)
    }
}

impl Drop for FakeVmm {
    fn drop(&mut self) {
        self.shared.done.store(true, Ordering::SeqCst);
        let _ended = self.thread.take().unwrap().join();
    }
}

impl Shared {
    fn serve(&self, listener: &UnixListener) {
        while !self.done.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok((stream, _)) if !self.stopped.load(Ordering::SeqCst) => self.answer(stream),
                Ok((stream, _)) => {
                    while self.stopped.load(Ordering::SeqCst) && !self.done.load(Ordering::SeqCst) {
                        thread::sleep(Duration::from_millis(5));
                    }
                    self.answer(stream);
                }
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn answer(&self, mut stream: UnixStream) {
        stream.set_nonblocking(false).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(1)))
            .unwrap();
        let mut request = Vec::new();
        let mut some = [0; 4096];
        let (line, body) = loop {
            match stream.read(&mut some) {
                Ok(count) if count > 0 => request.extend_from_slice(&some[..count]),
                _ => return,
            }
            let text = String::from_utf8_lossy(&request).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("Content-Length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                break (head.lines().next().unwrap().to_owned(), body.to_owned());
            }
        };
        let call = line
            .split(' ')
            .nth(1)
            .unwrap()
            .trim_start_matches("/api/v1/");
        let (status, answer) = self.call(call, &serde_json::from_str(&body).unwrap_or_default());
        let answer = answer.to_string();
        // Whoever asked may have gone.
        let _sent = write!(
            stream,
            "HTTP/1.1 {status} \r\nContent-Length: {}\r\n\r\n{answer}",
            answer.len()
        );
    }

    fn call(&self, call: &str, body: &Value) -> (u16, Value) {
        let id = body["id"].as_str().unwrap_or_default();
        let log = |what: &str| self.log.lock().unwrap().push(format!("{what} {id}"));
        match call {
            "vmm.ping" => (
                200,
                json!({"build_version": "fake", "version": "1", "pid": self.pid.load(Ordering::SeqCst), "features": ["p2p"]}),
            ),
            "vm.info" => (
                200,
                json!({"config": {"devices": *self.devices.lock().unwrap()}}),
            ),
            "vm.p2p-windows" => {
                log(if body["open"] == true {
                    "open"
                } else {
                    "close"
                });
                (200, Value::Null)
            }
            "vm.remove-device" if self.keeps.load(Ordering::SeqCst) => {
                log("remove");
                (500, json!(["Error from API", "the guest keeps it"]))
            }
            "vm.remove-device" => {
                log("remove");
                self.remove(id);
                (200, Value::Null)
            }
            "vm.add-device" => {
                log("add");
                self.devices.lock().unwrap().push(body.clone());
                (200, json!({"id": id, "bdf": "0000:00:05.0"}))
            }
            _ => (404, Value::Null),
        }
    }

    fn remove(&self, id: &str) {
        let mut devices = self.devices.lock().unwrap();
        devices.retain(|device| device["id"] != id);
    }
}
