//! Admission for a running cloud-hypervisor: API requests are checked like its command line.

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
use vmm_api::{Client, ClientError, FilteredCall, RequestFilter};

use super::device::Asked;
use super::json::{ALL_BARS, EXCLUDED, devices, excludes_all, misshapen, strip, wishes};
use super::look::{Question, look};
use super::memory::{DEFAULT_BITS, GuestMemory};
use super::refusal::{Limit, Refusal};
use super::restored;
use super::rewrite::told;
use super::rules::{Settings, Wishes, settle};
use super::seen::Seen;
use super::vdpa;
use super::version::Version;

/// Why `vm.receive-migration` is refused.
const MIGRATION: &str = "which devices a VM has that comes from another host shows only when it has them\n       \
    receive it at cloud-hypervisor's own socket without devices, and add them here";

/// The request filter of one VM.
pub(crate) struct StockGate {
    sysfs: PathBuf,
    policy: Policy,
    client: Client,
    seen: Mutex<Seen>,
}

/// A decision, before the conversion to the proxy's type.
enum Decision {
    /// Forward the request with this body; with the original body if this is null.
    Passes(Value),
    Refused(Vec<String>),
    Malformed(String),
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
    fn create(&self, mut config: Value) -> Result<Decision> {
        if let Some(why) = misshapen(&config) {
            return Ok(Decision::Malformed(why));
        }
        let listed = config.get_mut("devices").and_then(Value::as_array_mut);
        for device in listed.into_iter().flatten() {
            self.name_by_kernel(device);
        }
        let listed = config.get_mut("vdpa").and_then(Value::as_array_mut);
        listed.into_iter().flatten().for_each(without_links);
        let (asked, vdpa) = match asked(&config).and_then(|all| Ok((all, vdpa::paths(&config)?))) {
            Ok(found) => found,
            Err(why) => return Ok(Decision::Malformed(why.to_owned())),
        };
        if asked.is_empty() && vdpa.is_empty() {
            return Ok(Decision::Passes(config));
        }
        let wishes = wishes(&config);
        let settings = match self.judge(&asked, &vdpa, &wishes, None)? {
            Ok(settings) => settings,
            Err(refusal) => return Ok(Decision::Refused(refusal.reasons())),
        };
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
        let mut seen = self.seen();
        seen.created();
        seen.look(&config);
        seen.come(&asked);
        Ok(Decision::Passes(config))
    }

    /// `vm.restore`: the configuration is in a directory and cannot be changed.
    fn restore(&self, mut request: Value) -> Result<Decision> {
        let (config, directory) = match restored::config(&request) {
            Ok(found) => found,
            Err(why) => return Ok(Decision::Refused(vec![why.to_string()])),
        };
        if let Some(why) = misshapen(&config) {
            return Ok(Decision::Malformed(why));
        }
        let asked = match asked(&config) {
            Ok(asked) => asked,
            Err(why) => return Ok(Decision::Malformed(why.to_owned())),
        };
        let mapped = wishes(&config).p2p_dma != Some(false);
        if let Some(no) = self.stands_in_the_way(&config, &asked, &wishes(&config), mapped)? {
            return Ok(no);
        }
        let mut seen = self.seen();
        seen.created();
        seen.look(&config);
        seen.come(&asked);
        drop(seen);
        set(&mut request, "source_url", restored::url(&directory));
        Ok(Decision::Passes(request))
    }

    /// `vm.boot` and `vm.reboot`: the VM opens its devices. The host may have changed since they were checked.
    fn open(&self) -> Result<Decision> {
        let Some((_, config)) = self.vm_info()? else {
            return Ok(Decision::Passes(Value::Null));
        };
        let mut wishes = wishes(&config);
        let mapped = wishes.p2p_dma != Some(false);
        wishes.p2p_dma = wishes.p2p_dma.filter(|on| !on);
        let asked = self.existing(&config, mapped);
        let without = asked.iter().find(|device| device.path.is_none());
        if let Some(Asked { options, .. }) = without {
            let options = options.to_string();
            let limit = Limit::Descriptor { options };
            return Ok(Decision::Refused(vec![limit.to_string()]));
        }
        let mapped = mapped && devices(&config).any(|device| !excludes_all(device));
        let no = self.stands_in_the_way(&config, &asked, &wishes, mapped)?;
        Ok(no.unwrap_or(Decision::Passes(Value::Null)))
    }

    /// The refusal of the VM's configured devices, if there is one. The configuration cannot be changed here. `mapped`
    /// is true if the VM maps BARs.
    fn stands_in_the_way(
        &self,
        config: &Value,
        asked: &[Asked],
        wishes: &Wishes,
        mapped: bool,
    ) -> Result<Option<Decision>> {
        let vdpa = match vdpa::paths(config) {
            Ok(paths) => paths,
            Err(why) => return Ok(Some(Decision::Malformed(why.to_owned()))),
        };
        if asked.is_empty() && vdpa.is_empty() {
            return Ok(None);
        }
        let settings = match self.judge(asked, &vdpa, wishes, None)? {
            Ok(settings) => settings,
            Err(refusal) => return Ok(Some(Decision::Refused(refusal.reasons()))),
        };
        let limits = unchangeable(asked, &settings, mapped, wishes.bits);
        Ok((!limits.is_empty()).then(|| Decision::Refused(Refusal::Limits(limits).reasons())))
    }

    /// The answer to `vm.info` and the configuration in it. `None` without a VM: cloud-hypervisor then answers the
    /// request with an error itself.
    fn vm_info(&self) -> Result<Option<(Value, Value)>> {
        let info: Value = match self.client.get("vm.info") {
            Ok(info) => info,
            Err(ClientError::Failed { .. }) => return Ok(None),
            Err(error) => return Err(error).context("cannot ask the VM what it has"),
        };
        let config = info.get("config").cloned().unwrap_or_default();
        Ok(Some((info, config)))
    }

    /// `vm.add-vdpa` for an existing VM.
    fn add_vdpa(&self, mut device: Value) -> Result<Decision> {
        without_links(&mut device);
        let new = match vdpa::path(&device) {
            Ok(path) => path,
            Err(why) => return Ok(Decision::Malformed(why.to_owned())),
        };
        let Some((_, config)) = self.vm_info()? else {
            return Ok(Decision::Passes(device));
        };
        let mut wishes = wishes(&config);
        let asked = self.existing(&config, wishes.p2p_dma != Some(false));
        wishes.p2p_dma = wishes.p2p_dma.filter(|on| !on);
        let mut vdpa = match vdpa::paths(&config) {
            Ok(paths) => paths,
            Err(why) => return Ok(Decision::Malformed(why.to_owned())),
        };
        vdpa.push(new);
        Ok(match self.judge(&asked, &vdpa, &wishes, None)? {
            Ok(_) => Decision::Passes(device),
            Err(refusal) => Decision::Refused(refusal.reasons()),
        })
    }

    /// `vm.add-device` for an existing VM, whose start options cannot be changed.
    fn add(&self, mut device: Value, descriptors: &[OwnedFd]) -> Result<Decision> {
        self.name_by_kernel(&mut device);
        let mut new = match Asked::of_json(&device, false) {
            Ok(asked) => asked,
            Err(why) => return Ok(Decision::Malformed(why.to_owned())),
        };
        match (&new.path, descriptors) {
            (Some(_), []) => {}
            (None, [descriptor]) => new.path = self.device_of(descriptor),
            _ => {
                let why = "a device is a path, or one descriptor that comes with the request";
                return Ok(Decision::Malformed(why.to_owned()));
            }
        }
        if new.path.is_none() {
            let options = new.options.to_string();
            return Ok(Decision::Refused(vec![
                Limit::Descriptor { options }.to_string(),
            ]));
        }
        let Some((info, config)) = self.vm_info()? else {
            strip(&mut device);
            return Ok(Decision::Passes(device));
        };
        let vdpa = match vdpa::paths(&config) {
            Ok(paths) => paths,
            Err(why) => return Ok(Decision::Malformed(why.to_owned())),
        };
        let mut wishes = wishes(&config);
        let mapped = wishes.p2p_dma != Some(false);
        // `on` is the default, so it is not an explicit request.
        wishes.p2p_dma = wishes.p2p_dma.filter(|on| !on);
        let mut asked = self.existing(&config, mapped);
        let (at, peer) = (asked.len(), new.p2p);
        asked.push(new);
        let departed = self.seen().departed().clone();
        let settings = match self.judge(&asked, &vdpa, &wishes, Some(&departed))? {
            Ok(settings) => settings,
            Err(refusal) => {
                let mut reasons = refusal.reasons();
                // The existing devices count as peers here, although nobody may have requested that.
                if mapped && !peer {
                    reasons.extend(asked.last().map(|new| mapped_for_all(new).to_string()));
                }
                if peer && let Some(device) = self.seen().peer_without_bars(&config) {
                    reasons.push(Limit::WithoutBars { device }.to_string());
                }
                return Ok(Decision::Refused(reasons));
            }
        };
        let mut seen = self.seen();
        seen.look(&config);
        let exclude = settings.p2p_off && mapped && seen.may_lack_bars();
        if mapped && let Some(id) = seen.leaving(&info, !exclude) {
            return Ok(Decision::Refused(vec![Limit::Leaving { id }.to_string()]));
        }
        let open = devices(&config).any(|device| !excludes_all(device));
        let mapped = mapped && (!exclude || open);
        let mut limits = unchangeable(&asked, &settings, mapped, wishes.bits);
        if peer && let Some(device) = seen.peer_without_bars(&config) {
            limits.push(Limit::WithoutBars { device });
        }
        if !limits.is_empty() {
            return Ok(Decision::Refused(Refusal::Limits(limits).reasons()));
        }
        seen.come(asked.get(at..).unwrap_or_default());
        strip(&mut device);
        if settings.cliques.contains(&at) {
            set(&mut device, "x_nv_gpudirect_clique", json!(0));
        }
        if exclude {
            set(&mut device, EXCLUDED, json!(ALL_BARS));
        }
        Ok(Decision::Passes(device))
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
    fn judge(
        &self,
        asked: &[Asked],
        vdpa: &[PathBuf],
        wishes: &Wishes,
        departed: Option<&BTreeSet<Sbdf>>,
    ) -> Result<Result<Settings, Refusal>> {
        let version = self
            .client
            .ping()
            .context("cannot ask cloud-hypervisor for its version")?;
        let version =
            Version::find(&version.version).or_else(|| Version::find(&version.build_version));
        let question = Question {
            asked,
            vdpa,
            policy: self.policy.clone(),
            version,
            departed,
        };
        let host = match look(&self.sysfs, question)? {
            Ok(host) => host,
            Err(refusal) => return Ok(Err(refusal)),
        };
        for note in told(&host) {
            eprintln!("note: {note}");
        }
        Ok(settle(asked, wishes, &host).map_err(Refusal::Limits))
    }
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

    fn decide(
        &self,
        call: FilteredCall,
        body: &[u8],
        descriptors: &[OwnedFd],
    ) -> vmm_api::Decision {
        let value = match serde_json::from_slice(body) {
            Ok(value @ Value::Object(_)) => value,
            // These calls have no body; cloud-hypervisor refuses one.
            _ if call.has_no_body() => Value::Null,
            // serde parses an array as a struct.
            Ok(_) => return vmm_api::Decision::Malformed("the body is no JSON object".to_owned()),
            Err(error) => return vmm_api::Decision::Malformed(error.to_string()),
        };
        let decision = match call {
            FilteredCall::Create => self.create(value),
            FilteredCall::AddDevice => self.add(value, descriptors),
            FilteredCall::AddVdpa => self.add_vdpa(value),
            FilteredCall::Boot | FilteredCall::Reboot => self.open(),
            FilteredCall::RemoveDevice => {
                self.remove(&value);
                Ok(Decision::Passes(value))
            }
            FilteredCall::Restore => self.restore(value),
            FilteredCall::ReceiveMigration => Ok(Decision::Refused(vec![MIGRATION.to_owned()])),
        };
        match decision {
            Ok(Decision::Passes(Value::Null)) => vmm_api::Decision::Forward(body.to_vec()),
            Ok(Decision::Passes(body)) => vmm_api::Decision::Forward(body.to_string().into_bytes()),
            Ok(Decision::Refused(reasons)) => vmm_api::Decision::Refused { reasons },
            Ok(Decision::Malformed(why)) => vmm_api::Decision::Malformed(why),
            Err(error) => vmm_api::Decision::Failed {
                messages: error.chain().map(ToString::to_string).collect(),
            },
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
