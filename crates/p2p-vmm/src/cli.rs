//! Command line, with cloud-hypervisor's option syntax.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{ArgAction, Parser, ValueEnum};
use iommu_group::Sbdf;
use log::LevelFilter;
use vmm_api::{
    ConsoleConfig, CpusConfig, DeviceConfig, MemoryConfig, MonitorTarget, OptionError, Options,
    PayloadConfig, PlatformConfig, SerialConfig, VmConfig,
};

use crate::sandbox::{FileRule, Files, Sandbox, ViolationAction};

/// Reference VMM for peer-to-peer DMA between assigned devices
#[derive(Debug, Parser)]
#[command(name = "p2p-vmm", version, max_term_width = 100)]
pub(crate) struct Cli {
    /// Linux kernel to boot (bzImage); optional with --api-socket
    #[arg(long, value_name = "PATH", required_unless_present = "api_socket")]
    kernel: Option<PathBuf>,

    /// Initial RAM file system
    #[arg(long, value_name = "PATH")]
    initramfs: Option<PathBuf>,

    /// Kernel command line
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        allow_hyphen_values = true
    )]
    cmdline: String,

    /// Guest memory; the size takes a suffix K, M or G
    #[arg(long, value_name = "size=SIZE", default_value = "size=512M")]
    memory: MemoryConfig,

    /// vCPUs, 1 to 16
    #[arg(long, value_name = "boot=COUNT", default_value = "boot=1")]
    cpus: CpusConfig,

    /// Host side of the guest's serial port: tty, file=PATH, null or off
    #[arg(long, value_name = "MODE", default_value = "tty")]
    serial: SerialConfig,

    /// Virtio console; not implemented, so only off and null are accepted
    #[arg(long, value_name = "MODE", default_value = "off")]
    console: ConsoleConfig,

    /// iommufd=on assigns devices through iommufd or fails, iommufd=off through VFIO containers; the default is
    /// iommufd if it is supported by the kernel and by all devices; iommufd_fd is an inherited /dev/iommu
    #[arg(long, value_name = "iommufd=on|off[,iommufd_fd=NUMBER]")]
    platform: Option<PlatformConfig>,

    /// Devices to assign, by sysfs path or by inherited descriptor of /dev/vfio/devices/vfioN; p2p=on allows
    /// peer-to-peer DMA between this device and the others with p2p=on and the same p2p_domain
    #[arg(
        long,
        value_name = "path=SYSFS|fd=NUMBER[,id=NAME][,p2p=on|off][,p2p_domain=NAME][,expose=FUNCTION+…]",
        num_args = 1..,
        action = ArgAction::Append
    )]
    device: Vec<DeviceConfig>,

    /// Accept that these functions are reachable without the IOMMU: functions outside the VM that its devices reach,
    /// or devices of the VM that functions outside reach; without this option such devices are refused
    #[arg(
        long,
        value_name = "FUNCTION",
        value_delimiter = ',',
        num_args = 1..,
        action = ArgAction::Append
    )]
    expose: Vec<Sbdf>,

    /// Policy file: devices with restricted P2P (never, target-only or initiator-only, by vendor and device) and
    /// accepted exposures
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,

    /// Serve cloud-hypervisor's REST API on a unix socket, for root and the current user only
    #[arg(long, value_name = "[path=]PATH", value_parser = socket_path)]
    api_socket: Option<PathBuf>,

    /// Write events as JSON to a file or an inherited descriptor
    #[arg(long, value_name = "path=PATH|fd=NUMBER")]
    event_monitor: Option<MonitorTarget>,

    /// Filter the system calls of every thread; with log the kernel logs unexpected calls and permits them
    #[arg(long, value_name = "true|false|log", default_value = "true")]
    seccomp: Seccomp,

    /// Open only the files of the first VM, if the kernel supports Landlock
    #[arg(
        long,
        value_name = "true|false",
        num_args = 0..=1,
        action = ArgAction::Set,
        default_value_t = true,
        default_missing_value = "true"
    )]
    landlock: bool,

    /// More files that may be opened, for example kernels of VMs that are created through the API
    #[arg(long, value_name = "path=PATH,access=r|rw", num_args = 1.., action = ArgAction::Append)]
    landlock_rules: Vec<FileRule>,

    /// Log more to standard error (-v: info, -vv: debug, -vvv: trace)
    #[arg(short, action = ArgAction::Count)]
    verbose: u8,
}

/// What to do on an unexpected system call; the values are cloud-hypervisor's.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Seccomp {
    True,
    False,
    Log,
}

impl Seccomp {
    fn on_violation(self) -> Option<ViolationAction> {
        match self {
            Self::True => Some(ViolationAction::Trap),
            Self::False => None,
            Self::Log => Some(ViolationAction::Log),
        }
    }
}

impl Cli {
    /// The log level that `-v` selects.
    pub(crate) fn log_level(&self) -> LevelFilter {
        match self.verbose {
            0 => LevelFilter::Warn,
            1 => LevelFilter::Info,
            2 => LevelFilter::Debug,
            _ => LevelFilter::Trace,
        }
    }

    /// The parsed request.
    pub(crate) fn into_request(self) -> Request {
        let vm = self.kernel.map(|kernel| VmConfig {
            cpus: self.cpus,
            memory: self.memory,
            payload: PayloadConfig {
                kernel,
                initramfs: self.initramfs,
                cmdline: Some(self.cmdline).filter(|text| !text.is_empty()),
            },
            platform: self.platform.unwrap_or_default(),
            devices: self.device,
            serial: self.serial,
            console: self.console,
        });
        let files = self.landlock.then(|| Files {
            rules: self.landlock_rules,
            socket: self.api_socket.clone(),
        });
        Request {
            sandbox: Sandbox::new(self.seccomp.on_violation(), files).into(),
            vm,
            policy: self.policy,
            expose: self.expose,
            api_socket: self.api_socket,
            event_monitor: self.event_monitor,
        }
    }
}

/// The operator's request.
#[derive(Debug)]
pub(crate) struct Request {
    /// The sandbox of the process.
    pub(crate) sandbox: Arc<Sandbox>,
    /// The VM to boot; `None` if it is created through the API.
    pub(crate) vm: Option<VmConfig>,
    /// The policy file.
    pub(crate) policy: Option<PathBuf>,
    /// Functions whose exposure the operator accepts.
    pub(crate) expose: Vec<Sbdf>,
    /// Path of the API socket.
    pub(crate) api_socket: Option<PathBuf>,
    /// Target of the event log.
    pub(crate) event_monitor: Option<MonitorTarget>,
}

/// The path in `path=/run/vm.sock` or `/run/vm.sock`.
fn socket_path(text: &str) -> Result<PathBuf, OptionError> {
    if text.starts_with("path=") {
        let options = Options::parse(text, &["path"])?;
        return options.required("path").map(PathBuf::from);
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(args: &[&str]) -> Result<VmConfig, clap::Error> {
        let args = ["p2p-vmm"].iter().chain(args);
        let request = Cli::try_parse_from(args).map(Cli::into_request)?;
        Ok(request.vm.unwrap())
    }

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_need_only_a_kernel() {
        let config = parse(&["--kernel", "/k"]).unwrap();
        assert_eq!(config.memory.size_bytes(), 512 << 20);
        assert_eq!(config.cpus.boot_vcpus(), 1);
        assert_eq!(config.serial, SerialConfig::Tty);
        assert_eq!(config.devices, []);
    }

    #[test]
    fn several_devices_in_one_option_and_repeated_options_add_up() {
        let config = parse(&[
            "--kernel",
            "/k",
            "--device",
            "path=/a,p2p=on",
            "path=/b,id=two",
            "--device",
            "path=/c",
            "--serial",
            "null",
        ])
        .unwrap();
        let paths = config.devices.iter().map(|d| d.path.clone());
        let paths: Vec<_> = paths.flatten().collect();
        assert_eq!(
            paths,
            ["/a", "/b", "/c"].map(PathBuf::from),
            "in the order given"
        );
        assert!(config.devices[0].p2p && !config.devices[1].p2p);
        assert_eq!(config.devices[1].id.as_deref(), Some("two"));
    }

    #[test]
    fn bad_option_exits_with_two_and_names_the_key() {
        let error = parse(&["--kernel", "/k", "--device", "path=/a,p2pp=on"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let text = error.to_string();
        assert!(
            text.contains("unknown option \"p2pp\" (known: path, fd, id, p2p, p2p_domain, expose)")
        );
    }

    #[test]
    fn exposures_are_accepted_by_comma_or_one_by_one() {
        let args = [
            "p2p-vmm",
            "--kernel",
            "/k",
            "--expose",
            "04:00.0,05:00.0",
            "--expose",
            "0001:06:00.0",
        ];
        let request = Cli::try_parse_from(args).map(Cli::into_request).unwrap();
        let functions: Vec<String> = request.expose.iter().map(Sbdf::to_string).collect();
        assert_eq!(functions, ["0000:04:00.0", "0000:05:00.0", "0001:06:00.0"]);
    }

    #[test]
    fn cmdline_may_begin_with_a_hyphen() {
        let config = parse(&["--kernel", "/k", "--cmdline", "-s x=1"]).unwrap();
        assert_eq!(config.payload.cmdline.as_deref(), Some("-s x=1"));
    }

    #[test]
    fn the_kernel_is_optional_with_an_api_socket() {
        for socket in ["path=/run/vm.sock", "/run/vm.sock"] {
            let cli = Cli::try_parse_from(["p2p-vmm", "--api-socket", socket]).unwrap();
            let request = cli.into_request();
            assert_eq!(request.vm, None);
            assert_eq!(request.api_socket, Some("/run/vm.sock".into()));
        }
        assert!(Cli::try_parse_from(["p2p-vmm"]).is_err());
    }
}
