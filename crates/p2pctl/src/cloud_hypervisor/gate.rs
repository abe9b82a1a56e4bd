//! Request filter for a running cloud-hypervisor: API requests are checked like its command line.

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use iommu_group::Sbdf;
use iommu_group::policy::Policy;
use rustix::fs::{FileType, fstat, major, minor};
use serde_json::{Value, json};
use vmm_api::{Client, ClientError, Decision, FilteredCall, RequestFilter};

use super::device::Asked;
use super::json::{ALL_BARS, EXCLUDED, devices, excludes_all, strip, well_formed, wishes};
use super::look::{Question, look};
use super::memory::{DEFAULT_BITS, GuestMemory};
use super::refusal::{CheckError, Limit, Refusal};
use super::restored;
use super::rewrite::risks;
use super::rules::{Settings, Wishes, settle};
use super::seen::Seen;
use super::vdpa;
use super::version::Version;

/// Why `vm.receive-migration` is refused.
const MIGRATION: &str = "the devices of a VM that is migrated from another host cannot be checked before it has them\n       \
    receive it without devices at cloud-hypervisor's own socket, and add the devices here";

/// The request filter of one VM.
pub(crate) struct StockGate {
    sysfs: PathBuf,
    policy: Policy,
    client: Client,
    seen: Mutex<Seen>,
}

/// Why a request is not forwarded.
enum Rejection {
    Refused(Vec<String>),
    Malformed(String),
    Failed(anyhow::Error),
}

impl From<CheckError> for Rejection {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::Refused(refusal) => Self::Refused(refusal.reasons()),
            CheckError::Failed(error) => Self::Failed(error),
        }
    }
}

impl From<Vec<Limit>> for Rejection {
    fn from(limits: Vec<Limit>) -> Self {
        Self::Refused(Refusal::Limits(limits).reasons())
    }
}

impl From<Limit> for Rejection {
    fn from(limit: Limit) -> Self {
        vec![limit].into()
    }
}

impl From<&str> for Rejection {
    fn from(why: &str) -> Self {
        Self::Malformed(why.to_owned())
    }
}

impl From<anyhow::Error> for Rejection {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Rejection> for Decision {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::Refused(reasons) => Self::Refused { reasons },
            Rejection::Malformed(why) => Self::Malformed(why),
            Rejection::Failed(error) => Self::Failed {
                messages: error.chain().map(ToString::to_string).collect(),
            },
        }
    }
}

impl StockGate {
    pub(crate) fn new(sysfs: PathBuf, policy: Policy, client: Client) -> Self {
        Self {
            sysfs,
            policy,
            client,
            seen: Mutex::default(),
        }
    }

    /// The same filter for devices that can become peers later. Devices that are not peers are added without mapped
    /// BARs from the start; otherwise that happens only after the VM had such a device.
    pub(crate) fn for_regrouping(self) -> Self {
        Self {
            seen: Mutex::new(Seen::without_bars()),
            ..self
        }
    }

    /// `vm.create`: the body is the complete configuration.
    fn create(&self, mut config: Value) -> Result<Value, Rejection> {
        well_formed(&config).map_err(Rejection::Malformed)?;
        let listed = config.get_mut("devices").and_then(Value::as_array_mut);
        for device in listed.into_iter().flatten() {
            self.name_by_kernel(device);
        }
        let listed = config.get_mut("vdpa").and_then(Value::as_array_mut);
        listed.into_iter().flatten().for_each(without_links);
        let (asked, vdpa) = (asked(&config)?, vdpa::paths(&config)?);
        if asked.is_empty() && vdpa.is_empty() {
            return Ok(config);
        }
        let wishes = wishes(&config);
        let settings = self.check(&asked, &vdpa, &wishes, None)?;
        let devices = config.get_mut("devices").and_then(Value::as_array_mut);
        for (at, device) in devices.into_iter().flatten().enumerate() {
            strip(device);
            if settings.cliques.contains(&at) {
                set(device, "x_nv_gpudirect_clique", json!(0));
            }
        }
        if settings.p2p_off && wishes.p2p_dma.is_none() {
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
        self.seen().created(&config, &asked);
        Ok(config)
    }

    /// `vm.restore`: the configuration is in a directory and cannot be changed.
    fn restore(&self, mut request: Value) -> Result<Value, Rejection> {
        let found = restored::config(&request);
        let (config, directory) = found.map_err(|why| Rejection::Refused(vec![why.to_string()]))?;
        well_formed(&config).map_err(Rejection::Malformed)?;
        let (asked, wishes) = (asked(&config)?, wishes(&config));
        self.check_configured(&config, &asked, &wishes, wishes.p2p_dma != Some(false))?;
        self.seen().created(&config, &asked);
        set(&mut request, "source_url", restored::url(&directory));
        Ok(request)
    }

    /// `vm.boot` and `vm.reboot`: the VM opens its devices. The host may have changed since they were checked.
    fn open(&self) -> Result<Value, Rejection> {
        let Some((_, config)) = self.vm_info()? else {
            return Ok(Value::Null);
        };
        let (wishes, mapped) = existing_options(&config);
        let asked = self.existing(&config, mapped);
        if let Some(device) = asked.iter().find(|device| device.path.is_none()) {
            let options = device.options.to_string();
            return Err(Limit::Descriptor { options }.into());
        }
        let mapped = mapped && devices(&config).any(|device| !excludes_all(device));
        self.check_configured(&config, &asked, &wishes, mapped)?;
        Ok(Value::Null)
    }

    /// Checks the VM's configured devices. The configuration cannot be changed here. `mapped` is true if the VM maps
    /// BARs.
    fn check_configured(
        &self,
        config: &Value,
        asked: &[Asked],
        wishes: &Wishes,
        mapped: bool,
    ) -> Result<(), Rejection> {
        let vdpa = vdpa::paths(config)?;
        if asked.is_empty() && vdpa.is_empty() {
            return Ok(());
        }
        let settings = self.check(asked, &vdpa, wishes, None)?;
        match unchangeable(asked, &settings, mapped, wishes.bits) {
            limits if limits.is_empty() => Ok(()),
            limits => Err(limits.into()),
        }
    }

    /// The answer to `vm.info` and the configuration in it. `None` without a VM: cloud-hypervisor then answers the
    /// request with an error itself.
    fn vm_info(&self) -> Result<Option<(Value, Value)>> {
        let info: Value = match self.client.get("vm.info") {
            Ok(info) => info,
            Err(ClientError::Failed { .. }) => return Ok(None),
            Err(error) => return Err(error).context("cannot get the VM's configuration"),
        };
        let config = info.get("config").cloned().unwrap_or_default();
        Ok(Some((info, config)))
    }

    /// `vm.add-vdpa` for an existing VM.
    fn add_vdpa(&self, mut device: Value) -> Result<Value, Rejection> {
        without_links(&mut device);
        let new = vdpa::path(&device)?;
        let Some((_, config)) = self.vm_info()? else {
            return Ok(device);
        };
        let (wishes, mapped) = existing_options(&config);
        let asked = self.existing(&config, mapped);
        let mut vdpa = vdpa::paths(&config)?;
        vdpa.push(new);
        self.check(&asked, &vdpa, &wishes, None)?;
        Ok(device)
    }

    /// `vm.add-device` for an existing VM, whose start options cannot be changed.
    fn add(&self, mut device: Value, descriptors: &[OwnedFd]) -> Result<Value, Rejection> {
        self.name_by_kernel(&mut device);
        let mut new = Asked::of_json(&device, false)?;
        match (&new.path, descriptors) {
            (Some(_), []) => {}
            (None, [descriptor]) => new.path = self.device_of(descriptor),
            _ => return Err("a device needs a path, or one descriptor with the request".into()),
        }
        if new.path.is_none() {
            let options = new.options.to_string();
            return Err(Limit::Descriptor { options }.into());
        }
        let Some((info, config)) = self.vm_info()? else {
            strip(&mut device);
            return Ok(device);
        };
        let vdpa = vdpa::paths(&config)?;
        let (wishes, mapped) = existing_options(&config);
        let mut asked = self.existing(&config, mapped);
        let (at, peer) = (asked.len(), new.p2p);
        let for_all = mapped_for_all(&new);
        asked.push(new);
        let departed = self.seen().departed().clone();
        let checked = self.check(&asked, &vdpa, &wishes, Some(&departed));
        let settings = checked.map_err(|error| match Rejection::from(error) {
            Rejection::Refused(mut reasons) => {
                // The existing devices count as peers here, although nobody may have requested that.
                if mapped && !peer {
                    reasons.push(for_all.to_string());
                }
                if peer && let Some(device) = self.seen().peer_without_bars(&config) {
                    reasons.push(Limit::WithoutBars { device }.to_string());
                }
                Rejection::Refused(reasons)
            }
            other => other,
        })?;
        let mut seen = self.seen();
        seen.look(&config);
        let exclude = settings.p2p_off && mapped && seen.may_lack_bars();
        if mapped && let Some(id) = seen.leaving(&info, !exclude) {
            return Err(Limit::Leaving { id }.into());
        }
        let open = devices(&config).any(|device| !excludes_all(device));
        let mapped = mapped && (!exclude || open);
        let mut limits = unchangeable(&asked, &settings, mapped, wishes.bits);
        if peer && let Some(device) = seen.peer_without_bars(&config) {
            limits.push(Limit::WithoutBars { device });
        }
        if !limits.is_empty() {
            return Err(limits.into());
        }
        seen.come(asked.get(at..).unwrap_or_default());
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
            let mut seen = self.seen();
            seen.look(config);
            seen.removal(config, id);
        }
    }

    /// The devices of the VM. A device that was not added through the proxy has the VM's start settings.
    fn existing(&self, config: &Value, mapped: bool) -> Vec<Asked> {
        let seen = self.seen();
        devices(config)
            .filter_map(|device| {
                let path = device.get("path").and_then(Value::as_str).map(Path::new);
                let came = path.and_then(|path| seen.asked_for(path));
                let p2p = came.map_or(mapped, |asked| asked.p2p) && !excludes_all(device);
                let mut asked = Asked::of_json(device, p2p).ok()?;
                asked.expose = came.map(|asked| asked.expose.clone()).unwrap_or_default();
                Some(asked)
            })
            .collect()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks whether the VM may have these devices. With `departed`, the functions that left the VM, only the last
    /// device is new.
    fn check(
        &self,
        asked: &[Asked],
        vdpa: &[PathBuf],
        wishes: &Wishes,
        departed: Option<&BTreeSet<Sbdf>>,
    ) -> Result<Settings, CheckError> {
        let ping = self.client.ping();
        let ping = ping.context("cannot get the version of cloud-hypervisor")?;
        let version = Version::find(&ping.version).or_else(|| Version::find(&ping.build_version));
        let question = Question {
            asked,
            vdpa,
            policy: self.policy.clone(),
            version,
            departed,
        };
        let host = look(&self.sysfs, question)?;
        for note in risks(&host) {
            eprintln!("note: {note}");
        }
        let settings = settle(asked, wishes, &host).map_err(Refusal::Limits)?;
        Ok(settings)
    }
}

/// The options of an existing VM, and whether it maps BARs. `on` is the default, so it is not an explicit request.
fn existing_options(config: &Value) -> (Wishes, bool) {
    let mut wishes = wishes(config);
    let mapped = wishes.p2p_dma != Some(false);
    wishes.p2p_dma = wishes.p2p_dma.filter(|on| !on);
    (wishes, mapped)
}

/// The devices in a VM's configuration.
fn asked(config: &Value) -> Result<Vec<Asked>, &'static str> {
    let all: Vec<Asked> = devices(config)
        .map(|device| Asked::of_json(device, false))
        .collect::<Result<_, _>>()?;
    match all.iter().all(|device| device.path.is_some()) {
        true => Ok(all),
        false => Err("a device of a new VM needs its path"),
    }
}

/// Limits due to the start settings of an existing VM, which cannot be changed.
fn unchangeable(
    asked: &[Asked],
    settings: &Settings,
    mapped: bool,
    bits: Option<u8>,
) -> Vec<Limit> {
    let mut limits = Vec::new();
    if let (true, true, [_, .., new]) = (settings.p2p_off, mapped, asked) {
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
fn mapped_for_all(new: &Asked) -> Limit {
    let device = new.options.get("path").unwrap_or_default();
    Limit::Mapped { device }
}

impl RequestFilter for StockGate {
    fn function_left(&self, function: Sbdf) {
        self.seen().left(function);
    }

    fn memory(&self, config: &Value) -> Option<Vec<RangeInclusive<u64>>> {
        wishes(config).memory.map(GuestMemory::ranges)
    }

    fn decide(&self, call: FilteredCall, body: &[u8], descriptors: &[OwnedFd]) -> Decision {
        let value = match serde_json::from_slice(body) {
            Ok(value @ Value::Object(_)) => value,
            // These calls have no body; cloud-hypervisor refuses one.
            _ if call.has_no_body() => Value::Null,
            // serde parses an array as a struct.
            Ok(_) => return Decision::Malformed("the body is no JSON object".to_owned()),
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
            FilteredCall::ReceiveMigration => Err(Rejection::Refused(vec![MIGRATION.to_owned()])),
        };
        match decision {
            // The original body.
            Ok(Value::Null) => Decision::Forward(body.to_vec()),
            Ok(body) => Decision::Forward(body.to_string().into_bytes()),
            Err(rejection) => rejection.into(),
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
