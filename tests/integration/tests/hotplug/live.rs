//! A VM that a test talks to while it runs: to the VMM over its API, to the guest over its console.

use std::time::{Duration, Instant};

use lab::{GUEST, Lab, Output, Running, Vm};
use serde_json::Value;

/// How long a guest may take for one thing. An emulated host with an emulated guest is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(150);

const DIR: &str = "/tmp/live";

/// The VM, with a shell on its console.
pub(crate) struct Live<'lab> {
    lab: &'lab Lab,
    vmm: Running<'lab>,
    asked: u32,
    told: usize,
}

impl<'lab> Live<'lab> {
    /// Boots a guest with the NVMe driver and a shell, and an API.
    pub(crate) fn boot(lab: &'lab Lab, words: &str) -> Self {
        let vm = Vm::new("modprobe nvme ; sh").kernel_words(words);
        let argv: Vec<String> = vm.argv().iter().map(|word| format!("'{word}'")).collect();
        let script = format!(
            "rm -rf {DIR} && mkdir {DIR} && mkfifo {DIR}/in && exec 3<>{DIR}/in && \
             exec {} --api-socket {DIR}/api --event-monitor path={DIR}/events -v <&3",
            argv.join(" ")
        );
        let vmm = lab.command(["sh", "-c", &script]).deadline(GUEST * 4);
        let mut vmm = vmm.spawn().unwrap();
        vmm.wait_for("guest: up", GUEST).unwrap();
        let (asked, told) = (0, 0);
        let mut live = Self {
            lab,
            vmm,
            asked,
            told,
        };
        live.guest("stty -echo");
        live
    }

    /// Runs a line of shell in the guest; what it printed.
    pub(crate) fn guest(&mut self, line: &str) -> String {
        self.asked += 1;
        let number = self.asked;
        // The console may echo what is typed, so the mark is not typed as it is printed; and the prompt is in front.
        let typed = format!("echo ; {line} ; echo answer-$(({number})) ends");
        let before = self.vmm.stdout().unwrap().len();
        self.lab
            .command(["sh", "-c", &format!("cat > {DIR}/in")])
            .stdin(format!("{typed}\n"))
            .run()
            .unwrap()
            .ok()
            .unwrap();
        let mark = format!("answer-{number} ends");
        let console = self.vmm.wait_for(&mark, PATIENCE).unwrap();
        let (text, _) = console[before..].split_once(&mark).unwrap();
        text.to_owned()
    }

    /// Calls the API; status and body.
    pub(crate) fn call(&self, verb: &str, call: &str, body: Option<&Value>) -> (u16, String) {
        let socket = format!("{DIR}/api");
        let body = body.map(Value::to_string);
        let words = ["vm-call", &socket, verb, call].into_iter();
        let words = words.chain(body.as_deref());
        let answer = self.lab.run(words).unwrap().ok().unwrap();
        let (status, body) = answer.split_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }

    /// Adds a device; status and body.
    pub(crate) fn add(&self, id: &str, bdf: &str, p2p: bool) -> (u16, String) {
        let path = format!("/sys/bus/pci/devices/{bdf}");
        let device = serde_json::json!({"path": path, "id": id, "p2p": p2p});
        self.call("PUT", "vm.add-device", Some(&device))
    }

    /// Asks for a device to go.
    pub(crate) fn remove(&self, request: &Value) {
        let (status, body) = self.call("PUT", "vm.remove-device", Some(request));
        assert_eq!(status, 204, "{body}");
    }

    /// Everything that the VMM has told, as name and device.
    pub(crate) fn events(&self) -> Vec<(String, String)> {
        let text = self.lab.read(&format!("{DIR}/events")).unwrap();
        let values = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        values
            .map_while(Result::ok)
            .map(|event| (word(&event["event"]), word(&event["properties"]["id"])))
            .collect()
    }

    /// Waits until `expected` was told of devices, in this order and nothing else, since the last time.
    pub(crate) fn told(&mut self, expected: &[(&str, &str)]) {
        let started = Instant::now();
        let of_device = |event: &(String, String)| event.0.starts_with("device-");
        let news = loop {
            let events: Vec<_> = self.events().into_iter().filter(of_device).collect();
            let news = events.get(self.told..).unwrap_or_default().to_vec();
            if news.len() >= expected.len() || started.elapsed() > PATIENCE {
                break news;
            }
            self.lab.run(["usleep", "100000"]).unwrap().ok().unwrap();
        };
        self.told += news.len();
        let expected: Vec<_> = expected
            .iter()
            .map(|(event, id)| (format!("device-{event}"), (*id).to_owned()))
            .collect();
        assert_eq!(news, expected);
    }

    /// What the VMM has open below a directory.
    pub(crate) fn open_files(&self, below: &str) -> Vec<String> {
        let script = "for fd in /proc/$(pidof p2p-vmm)/fd/*; do readlink $fd; done";
        let all = self.lab.sh(script).unwrap();
        let below = |file: &&str| file.starts_with(below);
        all.lines().filter(below).map(str::to_owned).collect()
    }

    /// Kilobytes of memory that the VMM has locked, for devices to reach.
    pub(crate) fn locked_kb(&self) -> u64 {
        let script =
            "grep VmPin /proc/$(pidof p2p-vmm)/status; grep VmLck /proc/$(pidof p2p-vmm)/status";
        let text = self.lab.sh(script).unwrap();
        let numbers = text
            .split_ascii_whitespace()
            .filter_map(|word| word.parse::<u64>().ok());
        numbers.sum()
    }

    /// Switches the guest off.
    pub(crate) fn power_off(self) -> Output {
        let script = format!("echo 'poweroff -f' > {DIR}/in");
        self.lab.sh(&script).unwrap();
        self.vmm.wait().unwrap()
    }
}
