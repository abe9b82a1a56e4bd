//! A guest to start in the lab host with `p2p-vmm` or with a VMM that has the same command line.

use std::env;
use std::time::Duration;

use crate::initramfs::{GUEST_INITRAMFS, GUEST_KERNEL};

/// How long a guest may take from the start of its VMM to power-off. It needs half a minute of processor time, and
/// other work on the machine competes for the processor.
pub const GUEST: Duration = Duration::from_secs(600);

/// A guest's kernel command line, before the words that a test adds. Kernel messages about refused transfers (level 3)
/// would interrupt the lines that a probe prints. Stall warnings are off as in the host: a processor that waits is not
/// stalled.
pub const CMDLINE: &str =
    "console=ttyS0 loglevel=3 panic=-1 mitigations=off rcupdate.rcu_cpu_stall_suppress=1";

/// Builder for the command line of a VMM.
#[derive(Debug, Clone)]
pub struct Vm {
    guest: String,
    words: String,
    platform: Option<String>,
    memory_mib: u32,
    devices: Vec<String>,
    policy: Option<String>,
    further: Vec<String>,
    vmm: Vec<String>,
}

impl Vm {
    /// A guest with 512 MiB that runs a shell command line of at most 31 words and powers off. `LAB_IOMMUFD` says how
    /// its devices are assigned; if it is not set, the VMM chooses.
    #[must_use]
    pub fn new(guest: &str) -> Self {
        let iommufd = env::var("LAB_IOMMUFD").ok();
        Self {
            guest: guest.to_owned(),
            words: String::new(),
            platform: iommufd.map(|wanted| format!("iommufd={wanted}")),
            memory_mib: 512,
            devices: Vec::new(),
            policy: None,
            further: Vec::new(),
            vmm: vec!["p2p-vmm".to_owned()],
        }
    }

    /// Adds words to the kernel's command line.
    #[must_use]
    pub fn kernel_words(mut self, words: &str) -> Self {
        self.words.push(' ');
        self.words.push_str(words);
        self
    }

    /// Sets the `--platform` option, whatever `LAB_IOMMUFD` says. With `None`, the VMM chooses.
    #[must_use]
    pub fn platform(mut self, option: Option<&str>) -> Self {
        self.platform = option.map(str::to_owned);
        self
    }

    /// Assigns a function.
    #[must_use]
    pub fn device(self, bdf: &str) -> Self {
        self.device_option(&format!("path=/sys/bus/pci/devices/{bdf}"))
    }

    /// Assigns a function that takes part in P2P.
    #[must_use]
    pub fn p2p_device(self, bdf: &str) -> Self {
        self.device_option(&format!("path=/sys/bus/pci/devices/{bdf},p2p=on"))
    }

    /// Adds a `--device` option as it is.
    #[must_use]
    pub fn device_option(mut self, option: &str) -> Self {
        self.devices.push(option.to_owned());
        self
    }

    /// Gives the VMM a policy file of the lab host.
    #[must_use]
    pub fn policy(mut self, path: &str) -> Self {
        self.policy = Some(path.to_owned());
        self
    }

    /// Adds a word to the end of the VMM's command line.
    #[must_use]
    pub fn word(mut self, word: &str) -> Self {
        self.further.push(word.to_owned());
        self
    }

    /// Replaces p2p-vmm with another program that accepts the same options. `words` are the program and its first
    /// arguments.
    #[must_use]
    pub fn vmm(mut self, words: &[&str]) -> Self {
        self.vmm = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Program and arguments; the serial console is standard output.
    #[must_use]
    pub fn argv(&self) -> Vec<String> {
        let mut argv = self.vmm.clone();
        let arguments = [
            "--kernel",
            GUEST_KERNEL,
            "--initramfs",
            GUEST_INITRAMFS,
            "--cmdline",
            &format!("{CMDLINE}{} -- run {}", self.words, self.guest),
            "--memory",
            &format!("size={}M", self.memory_mib),
            "--cpus",
            "boot=1",
            "--serial",
            "tty",
            "--console",
            "off",
        ];
        argv.extend(arguments.map(str::to_owned));
        if let Some(platform) = &self.platform {
            argv.extend(["--platform".to_owned(), platform.clone()]);
        }
        if !self.devices.is_empty() {
            argv.push("--device".to_owned());
            argv.extend(self.devices.iter().cloned());
        }
        if let Some(path) = &self.policy {
            argv.extend(["--policy".to_owned(), path.clone()]);
        }
        argv.extend(self.further.iter().cloned());
        argv
    }
}

#[cfg(test)]
mod tests {
    use super::{CMDLINE, Vm};

    #[test]
    fn devices_share_one_option_as_cloud_hypervisor_has_it() {
        let argv = Vm::new("x")
            .p2p_device("0000:03:00.0")
            .device("0000:04:00.0")
            .argv();
        let devices = argv.iter().skip_while(|word| *word != "--device").skip(1);
        assert_eq!(
            devices.collect::<Vec<_>>(),
            [
                "path=/sys/bus/pci/devices/0000:03:00.0,p2p=on",
                "path=/sys/bus/pci/devices/0000:04:00.0"
            ]
        );
        let words = Vm::new("x ; y").kernel_words("a").kernel_words("b=c");
        let line = format!("{CMDLINE} a b=c -- run x ; y");
        assert!(words.argv().contains(&line));
        let other = Vm::new("x").vmm(&["a", "-b"]).argv();
        assert_eq!(other[..3], ["a", "-b", "--kernel"]);
        assert!(!Vm::new("x").argv().contains(&"--device".to_owned()));
    }
}
