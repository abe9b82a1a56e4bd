//! Admission for a running cloud-hypervisor: what its API is asked for is judged as its command line would be.

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

/// Why no VM is received.
const MIGRATION: &str = "which devices a VM has that comes from another host shows only when it has them\n       \
    receive it at cloud-hypervisor's own socket without devices, and add them here";

/// The gate of one VM.
pub(crate) struct StockGate {
    sysfs: PathBuf,
    policy: Policy,
    client: Client,
    seen: Mutex<Seen>,
}

/// A decision, before it is one for HTTP.
enum Decision {
    /// With this body; as it came if that is nothing.
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

    /// The same for devices that move in and out of being peers: what is no peer is added with its BARs mapped for
    /// nobody from the start, and not only after one was seen of which that was so already.
    pub(crate) fn for_regrouping(self) -> Self {
        Self {
            seen: Mutex::new(Seen::without_bars()),
            ..self
        }
    }

    /// A VM that is to be: its description says all.
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

    /// A VM that is described in a directory: what is there cannot be changed.
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

    /// A VM that opens its devices, for the first time or again: the host may have changed since they were judged.
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

    /// Why a VM may not have the devices that it is described with, if anything speaks against it. Nothing about it can be
    /// changed; `mapped` if it maps BARs.
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

    /// What the VM says of itself, and the description in it. Without a VM there is nothing to decide about, and
    /// cloud-hypervisor says so itself.
    fn vm_info(&self) -> Result<Option<(Value, Value)>> {
        let info: Value = match self.client.get("vm.info") {
            Ok(info) => info,
            Err(ClientError::Failed { .. }) => return Ok(None),
            Err(error) => return Err(error).context("cannot ask the VM what it has"),
        };
        let config = info.get("config").cloned().unwrap_or_default();
        Ok(Some((info, config)))
    }

    /// A vDPA device for a VM that is there.
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

    /// A device for a VM that is there: what it was started with cannot be changed.
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
        // That it is on was nobody's wish: it is so unless said.
        wishes.p2p_dma = wishes.p2p_dma.filter(|on| !on);
        let mut asked = self.existing(&config, mapped);
        let (at, peer) = (asked.len(), new.p2p);
        asked.push(new);
        let departed = self.seen().departed().clone();
        let settings = match self.judge(&asked, &vdpa, &wishes, Some(&departed))? {
            Ok(settings) => settings,
            Err(refusal) => {
                let mut reasons = refusal.reasons();
                // The others were taken for peers, which nobody may have asked for.
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

    /// Puts the kernel's own path of a function in the place of a link to it: what is judged is what will be opened.
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

    /// The function behind a descriptor of `/dev/vfio/devices/vfioN`; none if it is something else.
    fn device_of(&self, descriptor: &OwnedFd) -> Option<PathBuf> {
        let status = fstat(descriptor).ok()?;
        if FileType::from_raw_mode(status.st_mode) != FileType::CharacterDevice {
            return None;
        }
        let number = format!("{}:{}", major(status.st_rdev), minor(status.st_rdev));
        fs::canonicalize(self.sysfs.join("dev/char").join(number).join("device")).ok()
    }

    /// A device that is asked back: what the VM says of it now it says no more later.
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

    /// The devices that the VM has. One that did not come this way has what the VM was started with.
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

    /// Whether the VM may have these devices. With `departed`, those that it had and has no more, the last one comes to
    /// the others.
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

/// The devices of a VM's description.
fn asked(config: &Value) -> Result<Vec<Asked>, &'static str> {
    let all: Vec<Asked> = devices(config)
        .map(|device| Asked::of_json(device, false))
        .collect::<Result<_, _>>()?;
    match all.iter().all(|device| device.path.is_some()) {
        true => Ok(all),
        false => Err("a device of a new VM needs its path"),
    }
}

/// What would have to be different about a VM that is there.
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

/// Why a device that asked for no P2P cannot come to a VM that maps every BAR.
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
            // cloud-hypervisor refuses a body, if there is one.
            _ if call.has_no_body() => Value::Null,
            // serde would take an array for a struct.
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

/// Puts the path of a file in the place of a link to it: what is judged is what will be opened.
fn without_links(device: &mut Value) {
    let path = device.get("path").and_then(Value::as_str);
    if let Some(path) = path.and_then(|path| fs::canonicalize(path).ok()) {
        set(device, "path", json!(path));
    }
}

/// Sets a key in a part of a description, which is `fresh` if it is not there.
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
