//! A VM that a test controls while it runs: the VMM over its API, the guest over its console.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "whoever uses it is a test, which fails by panicking"
)]

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::agent::{Output, Running};
use crate::host::Lab;
use crate::vm::{GUEST, Vm};

/// How long a guest may take for one action. An emulated host with an emulated guest is slow.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// How long a VM may run.
const LIFE: Duration = Duration::from_secs(4 * 3600);

/// Directory in the lab host that contains one directory for each VM, with its name.
const DIR: &str = "/tmp/live";

/// Name of a VM that is given none.
const NAME: &str = "web";

/// Path in the lab host of the API socket of a VM without a name.
pub const API_SOCKET: &str = "/tmp/live/web/api";

/// Path in the lab host of the API socket of the VM `name`.
#[must_use]
pub fn api_socket(name: &str) -> String {
    format!("{DIR}/{name}/api")
}

/// Line that a guest prints when it has booted.
const UP: &str = "guest: up";

/// Host resources that a VMM uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holdings {
    /// Open files.
    pub files: usize,
    /// Mappings of memory.
    pub mappings: usize,
    /// Memory that cannot be swapped, in KiB.
    pub locked_kb: u64,
    /// Memory in use, in KiB.
    pub resident_kb: u64,
}

/// A VM with a shell on its console.
pub struct Live<'lab> {
    lab: &'lab Lab,
    name: String,
    vmm: Running<'lab>,
    asked: u32,
    boots: usize,
    /// Events received from the VMM up to now.
    events: String,
    told: usize,
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

impl<'lab> Live<'lab> {
    /// Boots a guest with the NVMe driver, a shell and an API. Waits until the shell is ready.
    pub fn boot(lab: &'lab Lab, words: &str) -> Self {
        let mut live = Self::start(lab, words);
        live.wait_for_boot();
        live
    }

    /// Starts a VMM as [`boot`](Self::boot) does, and waits until its API answers.
    pub fn start(lab: &'lab Lab, words: &str) -> Self {
        let vm = Vm::new("modprobe nvme ; sh").kernel_words(words);
        Self::start_vm(lab, NAME, &vm)
    }

    /// Boots a VM whose guest runs a shell. Waits until the shell is ready.
    pub fn boot_vm(lab: &'lab Lab, vm: &Vm) -> Self {
        Self::boot_named(lab, NAME, vm)
    }

    /// Boots a VM beside others, under its own name.
    pub fn boot_named(lab: &'lab Lab, name: &str, vm: &Vm) -> Self {
        let mut live = Self::start_vm(lab, name, vm);
        live.wait_for_boot();
        live
    }

    /// Boots a VM of cloud-hypervisor; `vm` sets the destination of its events. Waits until the shell is ready.
    ///
    /// cloud-hypervisor reads standard input only from a terminal, so its guest has its own terminal, which is passed
    /// on.
    pub fn boot_stock(lab: &'lab Lab, vm: &Vm) -> Self {
        let argv = vm
            .argv()
            .join("\n")
            .replace("--serial\ntty", "--serial\npty");
        let argv: Vec<String> = argv.lines().map(|word| format!("'{word}'")).collect();
        let script = format!(
            "{} --api-socket {API_SOCKET} </dev/null & vmm=$!; \
             until pty=$(vm-call {API_SOCKET} GET vm.info 2>/dev/null | grep -o '/dev/pts/[0-9]*'); do \
             kill -0 $vmm || exit; usleep 50000; done; \
             cat $pty & console=$!; cat <&3 >$pty & typed=$!; \
             wait $vmm; code=$?; kill $typed; wait $console; exit $code",
            argv.join(" ")
        );
        let mut live = Self::start_script(lab, NAME, &script);
        live.wait_for_boot();
        live
    }

    fn start_vm(lab: &'lab Lab, name: &str, vm: &Vm) -> Self {
        let (dir, socket) = (format!("{DIR}/{name}"), api_socket(name));
        let argv: Vec<String> = vm.argv().iter().map(|word| format!("'{word}'")).collect();
        let script = format!(
            "exec {} --api-socket {socket} --event-monitor path={dir}/events -v <&3",
            argv.join(" ")
        );
        Self::start_script(lab, name, &script)
    }

    /// Starts a VMM with a script that finds the console input at its descriptor 3. Waits until the API answers.
    fn start_script(lab: &'lab Lab, name: &str, script: &str) -> Self {
        let (dir, socket) = (format!("{DIR}/{name}"), api_socket(name));
        // This comes first: the test must not wait for the socket of an earlier VMM that was killed.
        lab.sh(&format!("rm -rf {dir}")).unwrap();
        let script = format!(
            "mkdir -p {dir} && mkfifo {dir}/in && echo $$ > {dir}/pid && exec 3<>{dir}/in && \
             {{ {script} ; }}"
        );
        let vmm = lab.command(["sh", "-c", &script]).deadline(LIFE);
        let live = Self {
            lab,
            name: name.to_owned(),
            vmm: vmm.spawn().unwrap(),
            asked: 0,
            boots: 0,
            events: String::new(),
            told: 0,
        };
        let ready = format!("until [ -S {socket} ]; do usleep 20000; done");
        lab.sh(&ready).unwrap();
        live
    }

    /// Directory of its files in the lab host.
    fn dir(&self) -> String {
        format!("{DIR}/{}", self.name)
    }

    /// Waits until the guest has booted. Each call waits for one more boot.
    pub fn wait_for_boot(&mut self) {
        self.boots += 1;
        let started = Instant::now();
        while self.vmm.stdout().unwrap().matches(UP).count() < self.boots {
            assert!(started.elapsed() < GUEST, "boot {} is late", self.boots);
            self.lab.run(["usleep", "100000"]).unwrap().ok().unwrap();
        }
        self.guest("stty -echo");
    }

    /// Reboots the guest through the VMM and waits until it has booted. Earlier reboots by the guest itself are
    /// counted.
    pub fn reboot(&mut self) {
        self.boots = self.vmm.stdout().unwrap().matches(UP).count();
        let (status, body) = self.call("PUT", "vm.reboot", None);
        assert_eq!(status, 204, "{body}");
        self.wait_for_boot();
    }

    /// Runs a shell command line in the guest and returns its output.
    pub fn guest(&mut self, line: &str) -> String {
        self.asked += 1;
        let number = self.asked;
        // The console may echo the input, so the typed mark differs from the printed one. The prompt comes before the
        // output.
        let typed = format!("echo ; {line} ; echo answer-$(({number})) ends");
        let before = self.vmm.stdout().unwrap().len();
        self.type_in(&typed);
        let mark = format!("answer-{number} ends");
        let console = self.vmm.wait_for(&mark, PATIENCE).unwrap();
        let (text, _) = console[before..].split_once(&mark).unwrap();
        text.to_owned()
    }

    /// Calls the API and returns status and body.
    pub fn call(&self, verb: &str, call: &str, body: Option<&Value>) -> (u16, String) {
        let body = body.map(Value::to_string);
        let socket = api_socket(&self.name);
        let words = ["vm-call", &socket, verb, call].into_iter();
        let words = words.chain(body.as_deref());
        let answer = self.lab.run(words).unwrap().ok().unwrap();
        let (status, body) = answer.split_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }

    /// Adds a device and returns status and body.
    pub fn add(&self, id: &str, bdf: &str, p2p: bool) -> (u16, String) {
        let path = format!("/sys/bus/pci/devices/{bdf}");
        let device = json!({"path": path, "id": id, "p2p": p2p});
        self.call("PUT", "vm.add-device", Some(&device))
    }

    /// Adds two drives with P2P, expects an event for each, and waits until the guest's driver has them.
    pub fn add_drives(&mut self, drives: [(&str, &str); 2]) {
        for (id, bdf) in drives {
            let (status, body) = self.add(id, bdf, true);
            assert_eq!(status, 200, "{body}");
            self.told(&[("added", id)]);
        }
        self.guest("while ! [ -b /dev/nvme0n1 -a -b /dev/nvme1n1 ]; do usleep 50000; done");
    }

    /// Waits until `count` of QEMU's `edu` devices are usable in the guest. The guest scans some time after the event,
    /// and creates the file of registers last.
    pub fn wait_for_engines(&mut self, count: usize) {
        let files = "for d in $(grep -l 0x11e8 /sys/bus/pci/devices/*/device); do ls ${d%device}resource0; done";
        self.guest(&format!(
            "until [ $({files} 2>/dev/null | wc -l) -ge {count} ]; do usleep 100000; done"
        ));
    }

    /// Requests the removal of a device.
    pub fn remove(&self, request: &Value) {
        let (status, body) = self.call("PUT", "vm.remove-device", Some(request));
        assert_eq!(status, 204, "{body}");
    }

    /// Types a line in the guest and does not wait for the result.
    pub fn type_in(&self, line: &str) {
        self.lab
            .command(["sh", "-c", &format!("cat > {}/in", self.dir())])
            .stdin(format!("{line}\n"))
            .run()
            .unwrap()
            .ok()
            .unwrap();
    }

    /// All events that the VMM has sent, as name and device.
    pub fn events(&mut self) -> Vec<(String, String)> {
        let script = format!("tail -c +{} {}/events", self.events.len() + 1, self.dir());
        self.events.push_str(&self.lab.sh(&script).unwrap());
        self.told_so_far()
            .map(|event| (word(&event["event"]), word(&event["properties"]["id"])))
            .collect()
    }

    fn told_so_far(&self) -> impl Iterator<Item = Value> {
        let values = serde_json::Deserializer::from_str(&self.events).into_iter::<Value>();
        values.map_while(Result::ok)
    }

    /// The reason in the last event, if it has one.
    pub fn last_reason(&self) -> String {
        let last = self.told_so_far().last();
        last.map_or_else(String::new, |event| word(&event["properties"]["reason"]))
    }

    /// Device events since the last call, as soon as there are `count` of them.
    pub fn news(&mut self, count: usize) -> Vec<(String, String)> {
        let started = Instant::now();
        let of_device = |event: &(String, String)| event.0.starts_with("device-");
        let news = loop {
            let events: Vec<_> = self.events().into_iter().filter(of_device).collect();
            let news = events.get(self.told..).unwrap_or_default().to_vec();
            if news.len() >= count || started.elapsed() > PATIENCE {
                break news;
            }
            self.lab.run(["usleep", "50000"]).unwrap().ok().unwrap();
        };
        self.told += news.len();
        news
    }

    /// Waits until exactly the `expected` device events arrived since the last call, in this order.
    #[track_caller]
    pub fn told(&mut self, expected: &[(&str, &str)]) {
        let news = self.news(expected.len());
        let expected: Vec<_> = expected
            .iter()
            .map(|(event, id)| (format!("device-{event}"), (*id).to_owned()))
            .collect();
        assert_eq!(news, expected);
    }

    /// Files below a directory that the VMM has open.
    pub fn open_files(&self, below: &str) -> Vec<String> {
        let dir = self.dir();
        // A file that is closed meanwhile does not count.
        let script = format!("for fd in /proc/$(cat {dir}/pid)/fd/*; do readlink $fd; done; true");
        let all = self.lab.sh(&script).unwrap();
        let below = |file: &&str| file.starts_with(below);
        all.lines().filter(below).map(str::to_owned).collect()
    }

    /// Memory that the VMM has locked for DMA, in KiB.
    pub fn locked_kb(&self) -> u64 {
        let holdings = self.holdings();
        holdings.locked_kb
    }

    /// Names of the VM's devices, sorted, without the drive of the guest's work, and whether each is a peer.
    pub fn peers(&self) -> Vec<(String, bool)> {
        let (status, body) = self.call("GET", "vm.info", None);
        assert_eq!(status, 200, "{body}");
        let info: Value = serde_json::from_str(&body).unwrap();
        let devices = info["config"]["devices"].as_array().unwrap().iter();
        let peer = |device: &Value| (word(&device["id"]), device["p2p"] == true);
        let mut peers: Vec<_> = devices.map(peer).filter(|(id, _)| id != "work").collect();
        peers.sort();
        peers
    }

    /// Host resources that the VMM uses.
    pub fn holdings(&self) -> Holdings {
        let dir = self.dir();
        let script =
            format!("cd /proc/$(cat {dir}/pid) && ls fd | wc -l && wc -l < maps && cat status");
        let text = self.lab.sh(&script).unwrap();
        let mut lines = text.lines();
        let mut count = || lines.next().unwrap().trim().parse().unwrap();
        let (files, mappings) = (count(), count());
        let kb = |key: &str| -> u64 {
            let mut words = text.lines().map(str::split_ascii_whitespace);
            let value =
                words.find_map(|mut words| (words.next() == Some(key)).then(|| words.next()));
            value.flatten().unwrap().parse().unwrap()
        };
        Holdings {
            files,
            mappings,
            locked_kb: kb("VmLck:") + kb("VmPin:"),
            resident_kb: kb("VmRSS:"),
        }
    }

    /// Waits until a killed VMM has ended. Returns its result.
    pub fn end(self) -> Output {
        self.vmm.wait().unwrap()
    }

    /// Switches the guest off.
    pub fn power_off(self) -> Output {
        self.type_in("poweroff -f");
        self.vmm.wait().unwrap()
    }
}
