//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use iommu_group::{ResetMask, Sbdf, Scope};
use vmm_api::DeviceConfig;

use crate::daemon::{NamedSocket, SOCKET};
use crate::goals::GoalArgs;
use crate::show::Colour;

/// Show, explain and change peer-to-peer DMA between the PCIe devices of a host
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

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Read this directory instead of /sys
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "from")]
    pub(crate) sysfs: Option<PathBuf>,
    /// Read the machine from a file that `p2pctl dump` wrote (`-`: standard input)
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) from: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// When to use colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: Colour,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the tree of PCI functions: groups, links, ACS, drivers
    Topology(TopologyArgs),
    /// Show the IOMMU groups and their members
    Groups(GroupsArgs),
    /// Show for every pair of devices whether and how one can reach the other
    Matrix(MatrixArgs),
    /// Explain the path between two devices, the verdict, and what would change it (exit 2 if refused)
    Explain(ExplainArgs),
    /// Show how to change groups and routes at run time, and all effects; change nothing (exit 2 if refused)
    Plan(PlanArgs),
    /// Carry out a plan, or undo it if a step fails (exit 2 if refused; nothing is changed then)
    Apply(ApplyArgs),
    /// Bring the host into the state that a file describes; do nothing if it is in that state (exit 2 if refused)
    Reconcile(ReconcileArgs),
    /// Complete an interrupted change, or roll it back
    Recover(RecoverArgs),
    /// Show whether a change is running or was interrupted, and which ports are kept awake
    Status {
        #[command(flatten)]
        state: StateArgs,
    },
    /// Run the host's daemon, which changes groups and routes while virtual machines run
    Serve(ServeArgs),
    /// Print the daemon's events as they occur, until the daemon ends
    Watch {
        #[command(flatten)]
        daemon: DaemonArgs,
    },
    /// Print the kernel argument whose effect at boot is closest to that of a plan
    KernelArgs {
        #[command(flatten)]
        goals: GoalArgs,
    },
    /// Show which functions a reset of a function affects (exit 2 if the reset is not possible)
    ResetScope(ResetScopeArgs),
    /// Reset a function that is not in use (exit 2 if refused; nothing is changed then)
    Reset(ResetArgs),
    /// Start cloud-hypervisor with P2P between the devices that have p2p=on, and no others (exit 2 if refused)
    Launch(LaunchArgs),
    /// Serve the API of a cloud-hypervisor: accept p2p options, and check every device that a client adds
    #[command(alias = "front")]
    Proxy(ProxyArgs),
    /// Print the machine as one file, which every command reads with --from
    Dump,
    /// Draw the machine as SVG
    Draw(DrawArgs),
    /// Show a running VM, and add and remove its devices, through the API of its VMM
    Vm {
        /// The command for the VM
        #[command(subcommand)]
        command: VmCommand,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page of p2pctl or of one command
    Man {
        /// The command
        command: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct TopologyArgs {
    /// Show only these functions and the functions below them (as lspci prints them: 03:00.0)
    #[arg(value_name = "FUNCTION")]
    pub(crate) below: Vec<Sbdf>,
    /// Show every virtual function on its own line
    #[arg(long)]
    pub(crate) all: bool,
    /// Also show the exposures that this policy file accepts (the format of p2p-vmm --policy)
    #[arg(long, value_name = "FILE")]
    pub(crate) policy_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct GroupsArgs {
    /// Show only the groups of these functions
    #[arg(value_name = "FUNCTION")]
    pub(crate) of: Vec<Sbdf>,
    /// Also show why each function is in its group
    #[arg(long)]
    pub(crate) why: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MatrixArgs {
    /// Compare only these functions; a port stands for the devices below it
    #[arg(value_name = "FUNCTION")]
    pub(crate) functions: Vec<Sbdf>,
    #[command(flatten)]
    pub(crate) rules: RuleArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The function that initiates the requests
    pub(crate) initiator: Sbdf,
    /// The function whose memory is accessed
    pub(crate) target: Sbdf,
    #[command(flatten)]
    pub(crate) rules: RuleArgs,
}

/// The rules of a verdict.
#[derive(Debug, Args)]
pub(crate) struct RuleArgs {
    /// Between which devices P2P is allowed
    #[arg(long, value_name = "POLICY", default_value = "same-group", value_parser = scope())]
    pub(crate) policy: Scope,
    /// Apply the rules in this policy file and show the exposures that it accepts (the format of p2p-vmm --policy)
    #[arg(long, value_name = "FILE")]
    pub(crate) policy_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) goals: GoalArgs,
    /// Write the plan to this file, unless it is refused
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) at: PlaceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// A plan that `p2pctl plan -o` wrote
    #[arg(value_name = "PLAN", conflicts_with_all = ["join", "isolate", "acs", "route", "expose", "with"])]
    pub(crate) plan: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) goals: GoalArgs,
    #[command(flatten)]
    pub(crate) how: ChangeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ReconcileArgs {
    /// The desired state, as in resources/p2p-domains.toml
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    #[command(flatten)]
    pub(crate) how: ChangeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    /// Without a daemon: policy file for devices of cloud-hypervisor VMs, as for serve
    #[arg(long, value_name = "FILE")]
    pub(crate) policy_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) at: PlaceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// A virtual machine, by the API socket of its VMM
    #[arg(long = "vm", value_name = "NAME=SOCKET")]
    pub(crate) guests: Vec<NamedSocket>,
    /// A directory of API sockets that are named NAME.sock; they may be added and removed at any time
    #[arg(long = "vm-dir", value_name = "PATH")]
    pub(crate) guest_dir: Option<PathBuf>,
    /// Policy file for devices of cloud-hypervisor VMs (the format of p2p-vmm --policy)
    #[arg(long, value_name = "FILE")]
    pub(crate) policy_file: Option<PathBuf>,
    /// Do not recover an interrupted change at the start; `p2pctl recover` does it later
    #[arg(long)]
    pub(crate) no_recover: bool,
    #[command(flatten)]
    pub(crate) at: PlaceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ResetScopeArgs {
    /// The function to reset
    pub(crate) function: Sbdf,
    /// Acceptable kinds: device-specific, acpi, flr, af-flr, pm, slot, bus, cxl-bus, joined by `+`, or func, link, any
    #[arg(long, value_name = "KINDS")]
    pub(crate) kind: Option<ResetMask>,
    /// Functions that you own: refuse a reset that affects other functions
    #[arg(long, value_name = "FUNCTION", num_args = 1..)]
    pub(crate) owned: Vec<Sbdf>,
}

#[derive(Debug, Args)]
pub(crate) struct ResetArgs {
    /// The function to reset
    pub(crate) function: Sbdf,
    /// Acceptable kinds, as for reset-scope
    #[arg(long, value_name = "KINDS", default_value = "func")]
    pub(crate) kind: ResetMask,
    /// Other functions that you own: refuse a reset that affects more than these
    #[arg(long, value_name = "FUNCTION", num_args = 1..)]
    pub(crate) owned: Vec<Sbdf>,
    #[command(flatten)]
    pub(crate) at: PlaceArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LaunchArgs {
    /// Only print the resulting command line and the reasons for its changes
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Allow `p2pctl apply --join` to make the devices peers while the VM runs; until then, accesses of the guest to
    /// their BARs are slow
    #[arg(long)]
    pub(crate) joinable: bool,
    /// Name of the VM for `p2pctl serve`; by default the name of its API socket without .sock
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) consent: ConsentArgs,
    /// cloud-hypervisor and its options; --device also takes p2p=on|off
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct ProxyArgs {
    /// The API socket of cloud-hypervisor
    #[arg(long, value_name = "SOCKET")]
    pub(crate) api_socket: PathBuf,
    /// The socket for clients; root and this user may connect
    #[arg(long, value_name = "SOCKET")]
    pub(crate) listen: PathBuf,
    /// The directory of snapshots that VMs may be restored from; without it, vm.restore is refused
    #[arg(long, value_name = "DIR")]
    pub(crate) snapshots: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) consent: ConsentArgs,
}

/// What the operator accepts for devices of a VM.
#[derive(Debug, Args)]
pub(crate) struct ConsentArgs {
    /// Policy file with the roles of devices and accepted exposures (the format of p2p-vmm --policy)
    #[arg(long, value_name = "FILE")]
    pub(crate) policy_file: Option<PathBuf>,
    /// Accept that these functions are reachable without the IOMMU: functions of others from devices of the VM, or
    /// devices of the VM from others
    #[arg(long, value_name = "FUNCTION", value_delimiter = ',', num_args = 1..)]
    pub(crate) expose: Vec<Sbdf>,
}

#[derive(Debug, Args)]
pub(crate) struct DrawArgs {
    /// Title of the picture
    #[arg(long)]
    pub(crate) title: Option<String>,
    /// Also draw functions without memory, and ports without devices
    #[arg(long)]
    pub(crate) all: bool,
    /// Between which devices P2P is allowed
    #[arg(long, value_name = "POLICY", default_value = "same-group", value_parser = scope())]
    pub(crate) policy: Scope,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

/// Commands for a running VM.
#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Show the VM and its devices
    Info {
        #[command(flatten)]
        at: Socket,
    },
    /// Add a device (exit 2 if refused; nothing is changed then)
    Add {
        #[command(flatten)]
        at: Socket,
        /// The device, as for p2p-vmm --device; 03:00.0,p2p=on is enough; with fd=5, descriptor 5 is the open device
        #[arg(value_name = "FUNCTION|path=SYSFS|fd=NUMBER[,id=NAME][,p2p=on][,p2p_domain=NAME][,expose=FUNCTION+…]", value_parser = device)]
        device: DeviceConfig,
    },
    /// Ask the guest to release a device, and wait until it has (exit 1 if the guest keeps it)
    Remove(RemoveArgs),
    /// Print the VM's events as they occur, until the VMM ends
    Events {
        #[command(flatten)]
        at: Socket,
    },
    /// Show which devices can reach each other, and how
    P2p {
        #[command(flatten)]
        at: Socket,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    #[command(flatten)]
    pub(crate) at: Socket,
    /// The ID of the device, as in p2pctl vm info
    pub(crate) id: String,
    /// How long the guest may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) timeout: u32,
    /// Remove the device after this time even if the guest has not released it
    #[arg(long)]
    pub(crate) force: bool,
}

/// The socket of a VMM.
#[derive(Debug, Args)]
pub(crate) struct Socket {
    /// The API socket of the VMM, as in its --api-socket
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

/// The state directory.
#[derive(Debug, Args)]
pub(crate) struct StateArgs {
    /// Directory of the journals; it must survive a reboot
    #[arg(long, value_name = "PATH", default_value = "/var/lib/p2pctl")]
    pub(crate) state_dir: PathBuf,
}

/// The socket of the daemon.
#[derive(Debug, Args)]
pub(crate) struct DaemonArgs {
    /// The API socket of the daemon
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub(crate) socket: PathBuf,
}

/// The state directory and the daemon.
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
    /// Show the plan and the reasons against it; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How long a guest may take to release a device, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) guest_timeout: u32,
    #[command(flatten)]
    pub(crate) at: PlaceArgs,
}

/// The values of `--policy`.
fn scope() -> impl TypedValueParser<Value = Scope> {
    let values = [
        PossibleValue::new("same-group").help("Devices of one IOMMU group"),
        PossibleValue::new("same-vm").help("Devices of one virtual machine, in any groups"),
    ];
    PossibleValuesParser::new(values).map(|name| match name.as_str() {
        "same-vm" => Scope::SameVm,
        _ => Scope::SameGroup,
    })
}
