//! The host's daemon, as commands talk to it.

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hotplug::regroup::{Forecast, Progress, Report, ResetDone, ResetOrder};
use iommu_group::Plan;
use serde_json::{Map, Value};
use vmm_api::{Client, ClientError, Next, connect};

use crate::daemon::{Apply, Began, Check, STEP, STUCK, Told};

/// How long to wait for an event at a time.
const TICK: Duration = Duration::from_secs(5);

/// How long the daemon may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// The daemon, if there is one.
pub(super) struct Daemon(Client);

/// How a change ended that was asked for.
pub(super) enum Ended {
    /// There was nothing to do.
    Nothing,
    /// It was not begun, for these reasons.
    Refused(Vec<String>),
    /// It was begun and has ended.
    Report(Box<Report>),
}

impl Daemon {
    /// The daemon at a socket; none if nobody listens there.
    pub(super) fn at(socket: &Path) -> Result<Option<Self>> {
        match connect(socket, CONNECT) {
            Ok(_) => Ok(Some(Self(Client::new(socket)))),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
                _ => Err(error).with_context(|| {
                    format!("cannot connect to the daemon at {}", socket.display())
                }),
            },
        }
    }

    /// What carrying a plan out would mean now.
    pub(super) fn check(&self, plan: &Plan) -> Result<Forecast> {
        let request = Check { plan: plan.clone() };
        let answer = self.0.put("check", &serde_json::to_value(&request)?)?;
        Ok(serde_json::from_slice(&answer.unwrap_or_default())?)
    }

    /// Has a plan carried out; `told` hears of every step.
    pub(super) fn apply(
        &self,
        plan: Plan,
        guest: Duration,
        told: &mut dyn FnMut(&Progress<'_>),
    ) -> Result<Ended> {
        let request = Apply {
            plan,
            guest_timeout_s: Some(guest.as_secs()),
        };
        self.follow("apply", &serde_json::to_value(&request)?, told)
    }

    /// Has a function reset; refused for the reasons in the inner error.
    pub(super) fn reset(&self, order: &ResetOrder) -> Result<Result<ResetDone, Vec<String>>> {
        match self.0.put("reset", &serde_json::to_value(order)?) {
            Ok(answer) => Ok(Ok(serde_json::from_slice(&answer.unwrap_or_default())?)),
            Err(ClientError::Refused { reasons, .. }) => Ok(Err(reasons)),
            Err(error) => Err(error.into()),
        }
    }

    /// Has a change brought to its end that was interrupted.
    pub(super) fn recover(&self, told: &mut dyn FnMut(&Progress<'_>)) -> Result<Ended> {
        self.follow("recover", &Value::Object(Map::new()), told)
    }

    fn follow(
        &self,
        call: &str,
        body: &Value,
        told: &mut dyn FnMut(&Progress<'_>),
    ) -> Result<Ended> {
        // Before the call, so that nothing is missed.
        let mut events = self.0.events()?;
        let answer = match self.0.put(call, body) {
            Ok(answer) => answer.unwrap_or_default(),
            Err(ClientError::Refused { reasons, .. }) => return Ok(Ended::Refused(reasons)),
            Err(error) => return Err(error.into()),
        };
        let began: Began = serde_json::from_slice(&answer)?;
        let Some(id) = began.transaction else {
            return Ok(Ended::Nothing);
        };
        loop {
            let record = match events.next(TICK)? {
                Next::Event(record) => record,
                // An event may have been missed: what has ended can be asked for.
                Next::Quiet => match self.report(&id)? {
                    Some(report) => return Ok(Ended::Report(Box::new(report))),
                    None => continue,
                },
                Next::End => bail!(
                    "the daemon ended while change {id} was under way\n       \
                     start it again: it brings the change to its end"
                ),
            };
            let properties = record.properties.unwrap_or_default();
            if record.event == STUCK {
                let error = properties.get("error").map_or("", String::as_str);
                bail!("change {id} could not be brought to an end: {error} (p2pctl recover)");
            }
            if properties.get("transaction") != Some(&id) {
                continue;
            }
            match record.event.as_str() {
                STEP => {
                    if let Some(step) = Told::of(&properties) {
                        told(&Progress {
                            record: &step.record,
                            action: step.action.as_ref(),
                        });
                    }
                }
                "transaction-ended" => {
                    let report = self.report(&id)?;
                    let report = report.with_context(|| format!("change {id} left no report"))?;
                    return Ok(Ended::Report(Box::new(report)));
                }
                _ => {}
            }
        }
    }

    fn report(&self, id: &str) -> Result<Option<Report>> {
        const NOT_FOUND: u16 = 404;
        match self.0.get(&format!("transactions/{id}")) {
            Ok(report) => Ok(Some(report)),
            Err(ClientError::Failed {
                status: NOT_FOUND, ..
            }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
