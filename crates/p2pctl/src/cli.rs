//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use iommu_group::{ResetMask, Sbdf, Scope};
use vmm_api::DeviceConfig;

use crate::daemon::{NamedSocket, SOCKET};
use crate::goals::GoalArgs;
use crate::show::Colour;

/// Look at, explain and change peer-to-peer DMA between the PCIe devices of a host
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "Exit status: 0 done, 1 failed, 2 refused."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command understands.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Look at this directory instead of /sys
    #[arg(
        long,
        global = true,
        help_heading = "Everywhere",
        value_name = "PATH",
        conflicts_with = "from"
    )]
    pub(crate) sysfs: Option<PathBuf>,
    /// Look at a machine that `p2pctl dump` wrote to this file (`-`: standard input)
    #[arg(long, global = true, help_heading = "Everywhere", value_name = "FILE")]
    pub(crate) from: Option<PathBuf>,
    /// Print JSON instead of a text for people
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) json: bool,
    /// Use colour
    #[arg(
        long,
        global = true,
        help_heading = "Everywhere",
        value_name = "WHEN",
        default_value = "auto"
    )]
    pub(crate) color: Colour,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the tree of PCI functions: groups, links, ACS, drivers
    Topology {
        /// Show only what is at and below these (as lspci prints them: 03:00.0)
        #[arg(value_name = "FUNCTION")]
        below: Vec<Sbdf>,
        /// Show every virtual function in a line of its own
        #[arg(long)]
        all: bool,
        /// Also show which exposures this file accepts, as for p2p-vmm --policy
        #[arg(long, value_name = "FILE")]
        policy_file: Option<PathBuf>,
    },
    /// Show the IOMMU groups and who is in them
    Groups {
        /// Show only the groups of these functions
        #[arg(value_name = "FUNCTION")]
        of: Vec<Sbdf>,
        /// Also say why each function is in its group
        #[arg(long)]
        why: bool,
    },
    /// Show for every pair of devices whether and how one may reach the other
    Matrix {
        /// Compare only these; a port stands for the devices below it
        #[arg(value_name = "FUNCTION")]
        functions: Vec<Sbdf>,
        /// Between which devices P2P is allowed at all
        #[arg(long, value_name = "POLICY", default_value = "same-group")]
        policy: PolicyName,
        /// Judge by the rules in this file and show which exposures it accepts, as for p2p-vmm --policy
        #[arg(long, value_name = "FILE")]
        policy_file: Option<PathBuf>,
    },
    /// Say what is between two devices, why, and what to do about it (exit 2 if it is refused)
    Explain {
        /// The one that starts requests
        initiator: Sbdf,
        /// The one that has the memory
        target: Sbdf,
        /// Between which devices P2P is allowed at all
        #[arg(long, value_name = "POLICY", default_value = "same-group")]
        policy: PolicyName,
        /// Judge by the rules in this file and show which exposures it accepts, as for p2p-vmm --policy
        #[arg(long, value_name = "FILE")]
        policy_file: Option<PathBuf>,
    },
    /// Show how groups and routes could be changed at run time, and what that would do; change nothing (exit 2 if refused)
    Plan {
        #[command(flatten)]
        goals: GoalArgs,
        /// Write the plan to this file, if it is not refused
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        at: PlaceArgs,
    },
    /// Carry a plan out, or put everything back if that fails (exit 2 if it is refused; nothing is changed then)
    Apply {
        /// A plan that `p2pctl plan -o` wrote
        #[arg(value_name = "PLAN", conflicts_with_all = ["join", "isolate", "acs", "route", "expose", "with"])]
        plan: Option<PathBuf>,
        #[command(flatten)]
        goals: GoalArgs,
        #[command(flatten)]
        how: ChangeArgs,
    },
    /// Bring the host to what a file says, and do nothing if it is so already (exit 2 if refused)
    Reconcile {
        /// What the host should be, as resources/p2p-domains.toml
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        #[command(flatten)]
        how: ChangeArgs,
    },
    /// Bring a change to its end that was interrupted, forwards or backwards
    Recover {
        /// Without a daemon: rules for devices of cloud-hypervisors, as for serve
        #[arg(long, value_name = "FILE")]
        policy_file: Option<PathBuf>,
        #[command(flatten)]
        at: PlaceArgs,
    },
    /// Show whether a change is under way or was interrupted, and what is kept up for earlier ones
    Status {
        #[command(flatten)]
        state: StateArgs,
    },
    /// Change groups and routes for others while virtual machines run: the host's daemon
    Serve {
        /// A running virtual machine, by the socket of its VMM's API
        #[arg(long = "vm", value_name = "NAME=SOCKET")]
        guests: Vec<NamedSocket>,
        /// A directory of such sockets, NAME.sock each; they may come and go
        #[arg(long = "vm-dir", value_name = "PATH")]
        guest_dir: Option<PathBuf>,
        /// Rules for devices of cloud-hypervisors that are no ordinary peers, as for p2p-vmm --policy
        #[arg(long, value_name = "FILE")]
        policy_file: Option<PathBuf>,
        /// Leave a change that was interrupted as it is until `p2pctl recover`
        #[arg(long)]
        no_recover: bool,
        #[command(flatten)]
        at: PlaceArgs,
    },
    /// Print what the daemon does and finds, as it happens, until the daemon ends
    Watch {
        #[command(flatten)]
        daemon: DaemonArgs,
    },
    /// Print the kernel argument that comes nearest to a plan at boot
    KernelArgs {
        #[command(flatten)]
        goals: GoalArgs,
    },
    /// Show whom a reset of a function would hit (exit 2 if it cannot be had)
    ResetScope {
        /// The function to reset
        function: Sbdf,
        /// Kinds that are acceptable: device-specific, acpi, flr, af-flr, pm, slot, bus, cxl-bus, joined by `+`, or func,
        /// link, any
        #[arg(long, value_name = "KINDS")]
        kind: Option<ResetMask>,
        /// Functions that you own: refuse a reset that hits others
        #[arg(long, value_name = "FUNCTION", num_args = 1..)]
        owned: Vec<Sbdf>,
    },
    /// Reset a function that nobody uses (exit 2 if refused; nothing is changed then)
    Reset {
        /// The function to reset
        function: Sbdf,
        /// Kinds that are acceptable, as for reset-scope
        #[arg(long, value_name = "KINDS", default_value = "func")]
        kind: ResetMask,
        /// Other functions that may be hit: a reset that hits more is refused
        #[arg(long, value_name = "FUNCTION", num_args = 1..)]
        owned: Vec<Sbdf>,
        #[command(flatten)]
        at: PlaceArgs,
    },
    /// Start cloud-hypervisor with P2P between the devices that have p2p=on, and no others (exit 2 if refused)
    Launch {
        /// Only print the command line that would be run, and why it differs
        #[arg(long)]
        dry_run: bool,
        /// Start it so that `p2pctl apply --join` can make its devices peers while it runs; until then the guest's
        /// accesses to them are slow
        #[arg(long)]
        joinable: bool,
        /// How `p2pctl serve` is to call the VM; the name of its API socket without .sock, unless said
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Rules for devices that are no ordinary peers, as for p2p-vmm --policy
        #[arg(long, value_name = "FILE")]
        policy_file: Option<PathBuf>,
        /// Accept that these are reachable without the IOMMU: functions of others that devices of the VM reach, or
        /// devices of the VM that others reach
        #[arg(long, value_name = "FUNCTION", value_delimiter = ',', num_args = 1..)]
        expose: Vec<Sbdf>,
        /// cloud-hypervisor and its options; p2p=on|off in --device
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
    /// Stand before the API of a cloud-hypervisor: clients may ask for p2p, and get devices that were looked at
    Front {
        /// Where cloud-hypervisor listens
        #[arg(long, value_name = "SOCKET")]
        api_socket: PathBuf,
        /// Where clients are to ask instead, for root and this user only
        #[arg(long, value_name = "SOCKET")]
        listen: PathBuf,
        /// Rules for devices that are no ordinary peers, as for p2p-vmm --policy
        #[arg(long, value_name = "FILE")]
        policy_file: Option<PathBuf>,
        /// The directory that VMs may be restored from; without it vm.restore is refused
        #[arg(long, value_name = "DIR")]
        snapshots: Option<PathBuf>,
        /// Accept that these are reachable without the IOMMU: functions of others that devices of the VM reach, or
        /// devices of the VM that others reach
        #[arg(long, value_name = "FUNCTION", value_delimiter = ',', num_args = 1..)]
        expose: Vec<Sbdf>,
    },
    /// Print the machine as one file that every command reads back with --from
    Dump,
    /// Draw the machine as SVG
    Draw {
        /// What to write above it
        #[arg(long)]
        title: Option<String>,
        /// Draw also what no peer can reach: functions without memory, empty ports
        #[arg(long)]
        all: bool,
        /// Between which devices P2P is allowed at all
        #[arg(long, value_name = "POLICY", default_value = "same-group")]
        policy: PolicyName,
        /// Write to this file instead of standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Look at a running VM, add and remove its devices, through the API of its VMM
    Vm {
        /// What to do
        #[command(subcommand)]
        verb: VmVerb,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, of the whole or of one command
    Man {
        /// The command
        command: Option<String>,
    },
}

/// What to do with a running VM.
#[derive(Debug, Subcommand)]
pub(crate) enum VmVerb {
    /// Show the VM and its devices
    Info {
        #[command(flatten)]
        at: Socket,
    },
    /// Add a device (exit 2 if it is refused; nothing is changed then)
    Add {
        #[command(flatten)]
        at: Socket,
        /// The device, as p2p-vmm's --device takes it; 03:00.0,p2p=on will do, and fd=5 if descriptor 5 is the open device
        #[arg(value_name = "FUNCTION|path=SYSFS|fd=NUMBER[,id=NAME][,p2p=on][,p2p_domain=NAME][,expose=FUNCTION+…]", value_parser = device)]
        device: DeviceConfig,
    },
    /// Ask the guest to let go of a device and wait until it is free (exit 1 if the guest does not)
    Remove {
        #[command(flatten)]
        at: Socket,
        /// The device's name: p2pctl vm info lists them
        id: String,
        /// How long the guest may take, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 30)]
        timeout: u32,
        /// Take the device away when the time is up, ready or not
        #[arg(long)]
        force: bool,
    },
    /// Print what happens, as it happens, until the VMM ends
    Events {
        #[command(flatten)]
        at: Socket,
    },
    /// Show who may reach whom, and how
    P2p {
        #[command(flatten)]
        at: Socket,
    },
}

/// Which VMM.
#[derive(Debug, Args)]
pub(crate) struct Socket {
    /// Socket of the VMM's API, as given to its --api-socket
    #[arg(long, value_name = "PATH")]
    pub(crate) api_socket: PathBuf,
}

/// `03:00.0,p2p=on`, or an option list with a path or a descriptor.
fn device(text: &str) -> Result<DeviceConfig, String> {
    let (first, rest) = text.split_once(',').unwrap_or((text, ""));
    let spelled = match first.parse::<Sbdf>() {
        Ok(sbdf) if rest.is_empty() => format!("path=/sys/bus/pci/devices/{sbdf}"),
        Ok(sbdf) => format!("path=/sys/bus/pci/devices/{sbdf},{rest}"),
        Err(_) => text.to_owned(),
    };
    spelled
        .parse()
        .map_err(|error: vmm_api::OptionError| error.to_string())
}

/// Where changes leave their journals.
#[derive(Debug, Args)]
pub(crate) struct StateArgs {
    /// Directory for journals; it must survive a reboot
    #[arg(long, value_name = "PATH", default_value = "/var/lib/p2pctl")]
    pub(crate) state_dir: PathBuf,
}

/// Where the host's daemon is.
#[derive(Debug, Args)]
pub(crate) struct DaemonArgs {
    /// Socket of the daemon's API
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub(crate) socket: PathBuf,
}

/// Where those are who change the host, and what they leave.
#[derive(Debug, Args)]
pub(crate) struct PlaceArgs {
    #[command(flatten)]
    pub(crate) state: StateArgs,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// How a change is made.
#[derive(Debug, Args)]
pub(crate) struct ChangeArgs {
    /// Show what would be done and what speaks against it; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How long a guest may take to let go of a device, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) guest_timeout: u32,
    #[command(flatten)]
    pub(crate) at: PlaceArgs,
}

/// Between which devices P2P is allowed at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PolicyName {
    /// Devices of one IOMMU group
    SameGroup,
    /// Devices of one virtual machine, whatever their groups
    SameVm,
}

impl From<PolicyName> for Scope {
    fn from(name: PolicyName) -> Self {
        match name {
            PolicyName::SameGroup => Self::SameGroup,
            PolicyName::SameVm => Self::SameVm,
        }
    }
}
