//! Request filter for a running cloud-hypervisor: API requests are checked like its command line.

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use iommu_group::Sbdf;
use iommu_group::policy::Policy;
use rustix::fs::{FileType, fstat, major, minor};
use serde_json::{Value, json};
use vmm_api::{Client, ClientError, Decision, FilteredCall, RequestFilter};

use super::constraints::{Settings, VmOptions, required_settings};
use super::device::RequestedDevice;
use super::inspect::{CheckError, CheckRequest, inspect};
use super::json::{ALL_BARS, EXCLUDED, devices, excludes_all, strip, vm_options, well_formed};
use super::memory::{DEFAULT_BITS, GuestMemory};
use super::refusal::{Limit, Refusal};
use super::restored;
use super::rewrite::risks;
use super::state::RecordedState;
use super::vdpa;
use super::version::Version;

/// Why `vm.receive-migration` is refused.
const MIGRATION: &str = "the devices of a VM that is migrated from another host cannot be checked before it has them\n       \
    receive it without devices at cloud-hypervisor's own socket, and add the devices here";

/// The request filter of one VM.
pub(crate) struct CloudHypervisorFilter {
    sysfs: PathBuf,
    policy: Policy,
    client: Client,
    state: Mutex<RecordedState>,
}

impl From<CheckError> for Decision {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::Refused(refusal) => Self::Refused {
                reasons: refusal.reasons(),
            },
            CheckError::Failed(error) => Self::Failed {
                messages: error.chain().map(ToString::to_string).collect(),
            },
        }
    }
}

fn refused(limits: Vec<Limit>) -> Decision {
    CheckError::Refused(Refusal::Limits(limits)).into()
}

impl CloudHypervisorFilter {
    pub(crate) fn new(sysfs: PathBuf, policy: Policy, client: Client) -> Self {
        Self {
            sysfs,
            policy,
            client,
            state: Mutex::default(),
        }
    }

    /// The same filter for devices that can become peers later. Devices that are not peers are added without mapped
    /// BARs from the start; otherwise that happens only after the VM had such a device.
    pub(crate) fn for_regrouping(self) -> Self {
        Self {
            state: Mutex::new(RecordedState::without_bars()),
            ..self
        }
    }

    /// `vm.create`: the body is the complete configuration.
    fn create(&self, mut config: Value) -> Result<Value, Decision> {
        well_formed(&config).map_err(Decision::Malformed)?;
        let listed = config.get_mut("devices").and_then(Value::as_array_mut);
        for device in listed.into_iter().flatten() {
            self.name_by_kernel(device);
        }
        let listed = config.get_mut("vdpa").and_then(Value::as_array_mut);
        listed.into_iter().flatten().for_each(without_links);
        let requested = requested(&config).map_err(Decision::Malformed)?;
        let vdpa = vdpa::paths(&config).map_err(Decision::Malformed)?;
        if requested.is_empty() && vdpa.is_empty() {
            return Ok(config);
        }
        let vm_options = vm_options(&config);
        let settings = self.check(&requested, &vdpa, &vm_options, None)?;
        let devices = config.get_mut("devices").and_then(Value::as_array_mut);
        for (at, device) in devices.into_iter().flatten().enumerate() {
            strip(device);
            if settings.cliques.contains(&at) {
                set(device, "x_nv_gpudirect_clique", json!(0));
            }
        }
        if settings.p2p_off && vm_options.p2p_dma.is_none() {
            set_in(
                &mut config,
                "platform",
                json!({}),
                "vfio_p2p_dma",
                json!(false),
            );
        }
        if let Some((bits, _)) = settings.bits {
            let one = json!({"boot_vcpus": 1, "max_vcpus": 1});
            set_in(&mut config, "cpus", one, "max_phys_bits", json!(bits));
        }
        self.state().created(&config, &requested);
        Ok(config)
    }

    /// `vm.restore`: the configuration is in a directory and cannot be changed.
    fn restore(&self, mut request: Value) -> Result<Value, Decision> {
        let found = restored::config(&request);
        let (config, directory) = found.map_err(|why| Decision::Refused {
            reasons: vec![why.to_string()],
        })?;
        well_formed(&config).map_err(Decision::Malformed)?;
        let requested = requested(&config).map_err(Decision::Malformed)?;
        let vm_options = vm_options(&config);
        self.check_configured(
            &config,
            &requested,
            &vm_options,
            vm_options.p2p_dma != Some(false),
        )?;
        self.state().created(&config, &requested);
        set(&mut request, "source_url", restored::url(&directory));
        Ok(request)
    }

    /// `vm.boot` and `vm.reboot`: the VM opens its devices. The host may have changed since they were checked.
    fn open(&self) -> Result<Value, Decision> {
        let Some((_, config)) = self.vm_info()? else {
            return Ok(Value::Null);
        };
        let (vm_options, mapped) = existing_options(&config);
        let requested = self.existing(&config, mapped);
        if let Some(device) = requested.iter().find(|device| device.path.is_none()) {
            let options = device.options.to_string();
            return Err(refused(vec![Limit::Descriptor { options }]));
        }
        let mapped = mapped && devices(&config).any(|device| !excludes_all(device));
        self.check_configured(&config, &requested, &vm_options, mapped)?;
        Ok(Value::Null)
    }

    /// Checks the VM's configured devices. The configuration cannot be changed here. `mapped` is true if the VM maps
    /// BARs.
    fn check_configured(
        &self,
        config: &Value,
        requested: &[RequestedDevice],
        vm_options: &VmOptions,
        mapped: bool,
    ) -> Result<(), Decision> {
        let vdpa = vdpa::paths(config).map_err(Decision::Malformed)?;
        if requested.is_empty() && vdpa.is_empty() {
            return Ok(());
        }
        let settings = self.check(requested, &vdpa, vm_options, None)?;
        match unchangeable(requested, &settings, mapped, vm_options.bits) {
            limits if limits.is_empty() => Ok(()),
            limits => Err(refused(limits)),
        }
    }

    /// The answer to `vm.info` and the configuration in it. `None` without a VM: cloud-hypervisor then answers the
    /// request with an error itself.
    fn vm_info(&self) -> Result<Option<(Value, Value)>, CheckError> {
        let info: Value = match self.client.get("vm.info") {
            Ok(info) => info,
            Err(ClientError::Failed { .. }) => return Ok(None),
            Err(error) => {
                let error = anyhow::Error::from(error);
                return Err(error.context("cannot get the VM's configuration").into());
            }
        };
        let config = info.get("config").cloned().unwrap_or_default();
        Ok(Some((info, config)))
    }

    /// `vm.add-vdpa` for an existing VM.
    fn add_vdpa(&self, mut device: Value) -> Result<Value, Decision> {
        without_links(&mut device);
        let new = vdpa::path(&device).map_err(Decision::Malformed)?;
        let Some((_, config)) = self.vm_info()? else {
            return Ok(device);
        };
        let (vm_options, mapped) = existing_options(&config);
        let requested = self.existing(&config, mapped);
        let mut vdpa = vdpa::paths(&config).map_err(Decision::Malformed)?;
        vdpa.push(new);
        self.check(&requested, &vdpa, &vm_options, None)?;
        Ok(device)
    }

    /// `vm.add-device` for an existing VM, whose start options cannot be changed.
    fn add(&self, mut device: Value, descriptors: &[OwnedFd]) -> Result<Value, Decision> {
        self.name_by_kernel(&mut device);
        let mut new = RequestedDevice::of_json(&device, false).map_err(Decision::Malformed)?;
        match (&new.path, descriptors) {
            (Some(_), []) => {}
            (None, [descriptor]) => new.path = self.device_of(descriptor),
            _ => {
                return Err(Decision::Malformed(
                    "a device needs a path, or one descriptor with the request".to_owned(),
                ));
            }
        }
        if new.path.is_none() {
            let options = new.options.to_string();
            return Err(refused(vec![Limit::Descriptor { options }]));
        }
        let Some((info, config)) = self.vm_info()? else {
            strip(&mut device);
            return Ok(device);
        };
        let vdpa = vdpa::paths(&config).map_err(Decision::Malformed)?;
        let (vm_options, mapped) = existing_options(&config);
        let mut requested = self.existing(&config, mapped);
        let (at, peer) = (requested.len(), new.p2p);
        let for_all = mapped_for_all(&new);
        requested.push(new);
        let departed = self.state().departed().clone();
        let checked = self.check(&requested, &vdpa, &vm_options, Some(&departed));
        let settings = checked.map_err(|error| match Decision::from(error) {
            Decision::Refused { mut reasons } => {
                // The existing devices count as peers here, although nobody may have requested that.
                if mapped && !peer {
                    reasons.push(for_all.to_string());
                }
                if peer && let Some(device) = self.state().peer_without_bars(&config) {
                    reasons.push(Limit::WithoutBars { device }.to_string());
                }
                Decision::Refused { reasons }
            }
            other => other,
        })?;
        let mut state = self.state();
        state.record(&config);
        let exclude = settings.p2p_off && mapped && state.may_lack_bars();
        if mapped && let Some(id) = state.leaving(&info, !exclude) {
            return Err(refused(vec![Limit::Leaving { id }]));
        }
        let open = devices(&config).any(|device| !excludes_all(device));
        let mapped = mapped && (!exclude || open);
        let mut limits = unchangeable(&requested, &settings, mapped, vm_options.bits);
        if peer && let Some(device) = state.peer_without_bars(&config) {
            limits.push(Limit::WithoutBars { device });
        }
        if !limits.is_empty() {
            return Err(refused(limits));
        }
        state.added(requested.get(at..).unwrap_or_default());
        strip(&mut device);
        if settings.cliques.contains(&at) {
            set(&mut device, "x_nv_gpudirect_clique", json!(0));
        }
        if exclude {
            set(&mut device, EXCLUDED, json!(ALL_BARS));
        }
        Ok(device)
    }

    /// Replaces a link to a function by the kernel's path, so that the path that is checked is the one that is opened.
    fn name_by_kernel(&self, device: &mut Value) {
        let path = device.get("path").and_then(Value::as_str).map(Path::new);
        let Some(found) = path.and_then(|path| fs::canonicalize(path).ok()) else {
            return;
        };
        let name = found.file_name().and_then(|name| name.to_str());
        let Some(sbdf) = name.and_then(|name| name.parse::<Sbdf>().ok()) else {
            return;
        };
        let own = self.sysfs.join("bus/pci/devices").join(sbdf.to_string());
        if fs::canonicalize(&own).is_ok_and(|own| own == found) {
            set(device, "path", json!(own));
        }
    }

    /// The function behind a descriptor of `/dev/vfio/devices/vfioN`; `None` for other files.
    fn device_of(&self, descriptor: &OwnedFd) -> Option<PathBuf> {
        let status = fstat(descriptor).ok()?;
        if FileType::from_raw_mode(status.st_mode) != FileType::CharacterDevice {
            return None;
        }
        let number = format!("{}:{}", major(status.st_rdev), minor(status.st_rdev));
        fs::canonicalize(self.sysfs.join("dev/char").join(number).join("device")).ok()
    }

    /// Records a device before its removal is requested: the VM does not list it afterwards.
    fn remove(&self, request: &Value) {
        let info = self.client.get::<Value>("vm.info");
        let id = request.get("id").and_then(Value::as_str);
        if let (Ok(info), Some(id)) = (info, id) {
            let config = info.get("config").unwrap_or(&Value::Null);
            let mut state = self.state();
            state.record(config);
            state.removal(config, id);
        }
    }

    /// The devices of the VM. A device that was not added through the proxy has the VM's start settings.
    fn existing(&self, config: &Value, mapped: bool) -> Vec<RequestedDevice> {
        let state = self.state();
        devices(config)
            .filter_map(|device| {
                let path = device.get("path").and_then(Value::as_str).map(Path::new);
                let came = path.and_then(|path| state.requested_as(path));
                let p2p = came.map_or(mapped, |requested| requested.p2p) && !excludes_all(device);
                let mut requested = RequestedDevice::of_json(device, p2p).ok()?;
                requested.expose = came
                    .map(|requested| requested.expose.clone())
                    .unwrap_or_default();
                Some(requested)
            })
            .collect()
    }

    fn state(&self) -> MutexGuard<'_, RecordedState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks whether the VM may have these devices. With `departed`, the functions that left the VM, only the last
    /// device is new.
    fn check(
        &self,
        requested: &[RequestedDevice],
        vdpa: &[PathBuf],
        vm_options: &VmOptions,
        departed: Option<&BTreeSet<Sbdf>>,
    ) -> Result<Settings, CheckError> {
        let ping = self.client.ping();
        let ping = ping.context("cannot get the version of cloud-hypervisor")?;
        let version = Version::find(&ping.version).or_else(|| Version::find(&ping.build_version));
        let request = CheckRequest {
            requested,
            vdpa,
            policy: self.policy.clone(),
            version,
            departed,
        };
        let host = inspect(&self.sysfs, request)?;
        for note in risks(&host) {
            eprintln!("note: {note}");
        }
        let settings = required_settings(requested, vm_options, &host).map_err(Refusal::Limits)?;
        Ok(settings)
    }
}

/// The options of an existing VM, and whether it maps BARs. `on` is the default, so it is not an explicit request.
fn existing_options(config: &Value) -> (VmOptions, bool) {
    let mut vm_options = vm_options(config);
    let mapped = vm_options.p2p_dma != Some(false);
    vm_options.p2p_dma = vm_options.p2p_dma.filter(|on| !on);
    (vm_options, mapped)
}

/// The devices in a VM's configuration.
fn requested(config: &Value) -> Result<Vec<RequestedDevice>, String> {
    let all: Vec<RequestedDevice> = devices(config)
        .map(|device| RequestedDevice::of_json(device, false))
        .collect::<Result<_, _>>()?;
    match all.iter().all(|device| device.path.is_some()) {
        true => Ok(all),
        false => Err("a device of a new VM needs its path".to_owned()),
    }
}

/// Limits due to the start settings of an existing VM, which cannot be changed.
fn unchangeable(
    requested: &[RequestedDevice],
    settings: &Settings,
    mapped: bool,
    bits: Option<u8>,
) -> Vec<Limit> {
    let mut limits = Vec::new();
    if let (true, true, [_, .., new]) = (settings.p2p_off, mapped, requested) {
        limits.push(mapped_for_all(new));
    }
    if let Some((fewer, _)) = settings.bits {
        limits.push(Limit::Bits {
            guest: bits.unwrap_or(DEFAULT_BITS),
            bits: fewer,
        });
    }
    limits
}

/// Why a device without P2P cannot be added to a VM that maps all BARs.
fn mapped_for_all(new: &RequestedDevice) -> Limit {
    let device = new.options.get("path").unwrap_or_default();
    Limit::Mapped { device }
}

impl RequestFilter for CloudHypervisorFilter {
    fn function_left(&self, function: Sbdf) {
        self.state().left(function);
    }

    fn memory(&self, config: &Value) -> Option<Vec<RangeInclusive<u64>>> {
        vm_options(config).memory.map(GuestMemory::ranges)
    }

    fn decide(&self, call: FilteredCall, body: &[u8], descriptors: &[OwnedFd]) -> Decision {
        let value = match serde_json::from_slice(body) {
            Ok(value @ Value::Object(_)) => value,
            // These calls have no body; cloud-hypervisor refuses one.
            _ if call.has_no_body() => Value::Null,
            // serde parses an array as a struct.
            Ok(_) => return Decision::Malformed("the body is not a JSON object".to_owned()),
            Err(error) => return Decision::Malformed(error.to_string()),
        };
        let decision = match call {
            FilteredCall::Create => self.create(value),
            FilteredCall::AddDevice => self.add(value, descriptors),
            FilteredCall::AddVdpa => self.add_vdpa(value),
            FilteredCall::Boot | FilteredCall::Reboot => self.open(),
            FilteredCall::RemoveDevice => {
                self.remove(&value);
                Ok(value)
            }
            FilteredCall::Restore => self.restore(value),
            FilteredCall::ReceiveMigration => Err(Decision::Refused {
                reasons: vec![MIGRATION.to_owned()],
            }),
        };
        match decision {
            // The original body.
            Ok(Value::Null) => Decision::Forward(body.to_vec()),
            Ok(body) => Decision::Forward(body.to_string().into_bytes()),
            Err(decision) => decision,
        }
    }
}

/// Resolves links in a file path, so that the path that is checked is the one that is opened.
fn without_links(device: &mut Value) {
    let path = device.get("path").and_then(Value::as_str);
    if let Some(path) = path.and_then(|path| fs::canonicalize(path).ok()) {
        set(device, "path", json!(path));
    }
}

/// Sets a key in a section of a configuration. A missing section is created as `fresh`.
fn set_in(config: &mut Value, part: &str, fresh: Value, key: &str, value: Value) {
    let Some(parts) = config.as_object_mut() else {
        return;
    };
    let part = parts.entry(part).or_insert(Value::Null);
    if part.is_null() {
        *part = fresh;
    }
    set(part, key, value);
}

fn set(object: &mut Value, key: &str, value: Value) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(key.to_owned(), value);
    }
}
