//! Rewrites the user's command line into the one for cloud-hypervisor.

use std::collections::BTreeSet;
use std::path::PathBuf;

use iommu_group::Sbdf;
use iommu_group::assignment::{Exposed, has_unshared};
use vmm_api::UNSHARED_TRANSFERS;

use super::command_line::{CommandLine, Value};
use super::constraints::{BitsReason, Host, Settings, VmOptions, bits_as_peers, required_settings};
use super::device::{DeviceError, RequestedDevice};
use super::json::{ALL_BARS, EXCLUDED};
use super::memory::GuestMemory;
use super::option_list::{OptionList, Unpaired, switch};
use super::refusal::Limit;
use super::version::Version;

/// The devices that a command line requests.
pub(crate) fn requested(line: &CommandLine) -> Result<Vec<RequestedDevice>, DeviceError> {
    line.values("--device")
        .iter()
        .map(|value| RequestedDevice::parse(&value.text))
        .collect()
}

/// The device files of the vDPA devices that a command line requests.
pub(crate) fn vdpa(line: &CommandLine) -> Result<Vec<PathBuf>, Unpaired> {
    let devices = line.values("--vdpa");
    let path = |value: &Value| {
        let options = OptionList::parse(&value.text)?;
        Ok(options.get("path").map(PathBuf::from).unwrap_or_default())
    };
    devices.iter().map(path).collect()
}

/// A command line that can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rewritten {
    pub(crate) line: CommandLine,
    /// The changes to the user's command line.
    pub(crate) changes: Vec<Change>,
    /// Notes for the user that need no action.
    pub(crate) notes: Vec<String>,
}

/// A difference from the user's command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) what: String,
    pub(crate) why: String,
}

impl Change {
    fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            why: why.into(),
        }
    }
}

/// How BARs are isolated from devices that are not peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IsolationMode {
    /// For the VM's lifetime, with `vfio_p2p_dma=off`. The guest's accesses stay fast.
    Permanent,
    /// Until the devices become peers: they are added without mapped BARs, and the guest's accesses are trapped.
    UntilJoined,
}

/// Writes cloud-hypervisor's command line, or returns the limits that the request exceeds.
pub(crate) fn rewrite(
    line: &CommandLine,
    requested: &[RequestedDevice],
    host: &Host,
    isolation: IsolationMode,
) -> Result<Rewritten, Vec<Limit>> {
    let settings = required_settings(requested, &vm_options(line), host)?;
    // An explicit `off` is kept.
    let off = option(line, "--platform", "vfio_p2p_dma").is_some();
    let exclude = settings.p2p_off && isolation == IsolationMode::UntilJoined && !off;
    let mut rewritten = Rewritten {
        line: line.clone(),
        changes: Vec::new(),
        notes: notes(line, requested, host, &settings),
    };
    rewritten.devices(requested, host, &settings, exclude);
    if settings.p2p_off && !exclude && !off {
        rewritten.set("--platform", "vfio_p2p_dma", "off");
        rewritten.changes.push(Change::new(
            "--platform vfio_p2p_dma=off",
            "no two devices have p2p=on; without this option every BAR is mapped for every device",
        ));
    }
    // Devices that may be joined later need as few address bits as peers do, and a VM keeps the bits it was started
    // with.
    let later = exclude.then(|| bits_as_peers(requested, &vm_options(line), host));
    if let Some((bits, reason)) = later.flatten().or(settings.bits) {
        rewritten.set("--cpus", "max_phys_bits", &bits.to_string());
        let why = match reason {
            BitsReason::Iommu => {
                format!("the IOMMU translates {bits} address bits, and BARs are placed at the top")
            }
            BitsReason::Windows => {
                "BARs of peers must be outside of windows that ports of the host route by address"
                    .to_owned()
            }
        };
        let what = format!("--cpus max_phys_bits={bits}");
        rewritten.changes.push(Change::new(what, why));
    }
    Ok(rewritten)
}

impl Rewritten {
    fn devices(
        &mut self,
        requested: &[RequestedDevice],
        host: &Host,
        settings: &Settings,
        exclude: bool,
    ) {
        for (at, (value, device)) in self
            .line
            .values("--device")
            .iter()
            .zip(requested)
            .enumerate()
        {
            let mut options = device.options.clone();
            let properties = host.devices.get(at).and_then(Option::as_ref);
            let name = properties.map_or_else(
                || options.to_string(),
                |properties| properties.sbdf.to_string(),
            );
            if settings.cliques.contains(&at) {
                // The VM's only domain has clique 0.
                options.set("x_nv_gpudirect_clique", 0);
                self.changes.push(Change::new(
                    format!("--device x_nv_gpudirect_clique=0 ({name})"),
                    "its driver in the guest uses this instead of the topology",
                ));
            }
            if exclude {
                let all = ALL_BARS.map(|bar| bar.to_string()).join(",");
                options.set(EXCLUDED, format_args!("[{all}]"));
                self.changes.push(Change::new(
                    format!("--device {EXCLUDED}=[{all}] ({name})"),
                    "its BARs are not mapped until it is joined; until then the guest's accesses are trapped, which is slow",
                ));
            }
            let text = options.to_string();
            if text != value.text {
                self.line.replace(value, &text);
            }
        }
    }

    /// Sets a key of an option that has a single list.
    fn set(&mut self, option: &str, key: &str, text: &str) {
        match self.line.values(option).last() {
            Some(value) => {
                // cloud-hypervisor reports an invalid list itself.
                let Ok(mut list) = OptionList::parse(&value.text) else {
                    return;
                };
                list.set(key, text);
                self.line.replace(value, &list.to_string());
            }
            None => self.line.append(option, &format!("{key}={text}")),
        }
    }
}

fn vm_options(line: &CommandLine) -> VmOptions {
    VmOptions {
        p2p_dma: option(line, "--platform", "vfio_p2p_dma").and_then(|text| switch(&text)),
        bits: option(line, "--cpus", "max_phys_bits").and_then(|text| text.parse().ok()),
        memory: GuestMemory::from_command_line(line),
    }
}

/// The value of a key of an option that has a single list.
pub(crate) fn option(line: &CommandLine, option: &str, key: &str) -> Option<String> {
    let value = line.values(option).pop()?;
    OptionList::parse(&value.text).ok()?.get(key)
}

fn notes(
    line: &CommandLine,
    requested: &[RequestedDevice],
    host: &Host,
    settings: &Settings,
) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(version) = host.version.filter(|version| *version < Version::OLDEST) {
        notes.push(format!(
            "cloud-hypervisor {version} is older than {}, the oldest tested version",
            Version::OLDEST
        ));
    }
    let peers = requested.iter().filter(|device| device.p2p).count();
    let iommufd = option(line, "--platform", "iommufd").and_then(|text| switch(&text));
    if peers > 1 {
        notes.push(
            "cloud-hypervisor shows a flat bus: drivers that depend on the topology (Linux p2pdma) use P2P only in a guest with an AMD Zen CPU; p2p-vmm shows a switch"
                .to_owned(),
        );
    }
    if host.accepts_any_p2pdma && has_unshared(requested.iter().map(RequestedDevice::domain_name)) {
        notes.push(UNSHARED_TRANSFERS.to_owned());
    }
    if !settings.p2p_off && !requested.is_empty() && iommufd == Some(true) {
        notes.push(
            "with iommufd=on cloud-hypervisor maps BARs by address, which iommufd refuses (EFAULT)"
                .to_owned(),
        );
    }
    if line.has("--restore") {
        notes.push("the devices of a restored VM are not checked".to_owned());
    }
    notes.extend(risks(host));
    if let Some(hole) = settings.doubtful.first() {
        notes.push(format!(
            "guest memory will be at {hole}; most root complexes forward such requests nevertheless"
        ));
    }
    notes
}

/// Notes about accepted risks, and about all exposures that are possible at once.
pub(crate) fn risks(host: &Host) -> Vec<String> {
    let (accepted, possible): (Vec<&Exposed>, Vec<_>) = host
        .exposures
        .iter()
        .partition(|exposed| exposed.exposure.needs_consent());
    let interrupts = host.unsafe_interrupts.iter().map(ToString::to_string);
    let accepted = accepted.iter().map(ToString::to_string);
    let mut notes: Vec<String> = interrupts.chain(accepted).collect();
    let functions: BTreeSet<Sbdf> = possible.iter().map(|one| one.exposure.function).collect();
    if !functions.is_empty() {
        let functions: Vec<String> = functions.iter().map(Sbdf::to_string).collect();
        notes.push(format!(
            "the root complex, or their multifunction device, may route requests to these functions without the IOMMU: {}",
            functions.join(" ")
        ));
    }
    notes
}

#[cfg(test)]
mod tests;
