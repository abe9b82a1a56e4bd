//! Client of the host's daemon.

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hotplug::regroup::{Forecast, Report, ResetDone, ResetOrder};
use iommu_group::Plan;
use serde_json::{Map, Value};
use vmm_api::{Client, ClientError, Next, connect};

use crate::daemon::{Apply, Check, STEP, STUCK, StartedTransaction};
use crate::json::Reason;
use crate::progress::{ProgressEvent, ProgressPrinter};

/// Timeout of one wait for an event.
const TICK: Duration = Duration::from_secs(5);

/// Timeout of a connection to the daemon.
const CONNECT: Duration = Duration::from_secs(10);

/// A running daemon.
pub(super) struct Daemon(Client);

/// Result of a requested change.
pub(super) enum Ended {
    /// There was nothing to do.
    Nothing,
    /// The change was not started, for these reasons.
    Refused(Vec<Reason>),
    /// The change was started and has ended.
    Report(Box<Report>),
}

impl Daemon {
    /// Connects to the daemon at a socket; `None` if no process listens there.
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

    /// The current effects of a plan.
    pub(super) fn check(&self, plan: &Plan) -> Result<Forecast> {
        let request = Check { plan: plan.clone() };
        let answer = self.0.put("check", &serde_json::to_value(&request)?)?;
        Ok(serde_json::from_slice(&answer.unwrap_or_default())?)
    }

    /// Applies a plan and prints every step.
    pub(super) fn apply(
        &self,
        plan: Plan,
        guest: Duration,
        printer: &mut ProgressPrinter,
    ) -> Result<Ended> {
        let request = Apply {
            plan,
            guest_timeout_s: Some(guest.as_secs()),
        };
        self.follow("apply", &serde_json::to_value(&request)?, printer)
    }

    /// Resets a function. The inner error holds the reasons of a refusal.
    pub(super) fn reset(&self, order: &ResetOrder) -> Result<Result<ResetDone, Vec<String>>> {
        match self.0.put("reset", &serde_json::to_value(order)?) {
            Ok(answer) => Ok(Ok(serde_json::from_slice(&answer.unwrap_or_default())?)),
            Err(ClientError::Refused { reasons, .. }) => Ok(Err(reasons)),
            Err(error) => Err(error.into()),
        }
    }

    /// Recovers an interrupted change.
    pub(super) fn recover(&self, printer: &mut ProgressPrinter) -> Result<Ended> {
        self.follow("recover", &Value::Object(Map::new()), printer)
    }

    fn follow(&self, call: &str, body: &Value, printer: &mut ProgressPrinter) -> Result<Ended> {
        // Subscribes before the call, so that no event is missed.
        let mut events = self.0.events()?;
        let answer = match self.0.put(call, body) {
            Ok(answer) => answer.unwrap_or_default(),
            Err(ClientError::Refused { reasons, .. }) => {
                let reasons = reasons.into_iter().map(Reason::text_only);
                return Ok(Ended::Refused(reasons.collect()));
            }
            Err(error) => return Err(error.into()),
        };
        let began: StartedTransaction = serde_json::from_slice(&answer)?;
        let Some(id) = began.transaction else {
            return Ok(Ended::Nothing);
        };
        loop {
            let record = match events.next(TICK)? {
                Next::Event(record) => record,
                // An event may have been missed, so the report is requested.
                Next::Quiet => match self.report(&id)? {
                    Some(report) => return Ok(Ended::Report(Box::new(report))),
                    None => continue,
                },
                Next::End => bail!(
                    "the daemon ended during change {id}\n       \
                     start it again: it completes the change or rolls it back"
                ),
            };
            let properties = record.properties.unwrap_or_default();
            if record.event == STUCK {
                let error = properties.get("error").map_or("", String::as_str);
                bail!(
                    "change {id} could neither be completed nor rolled back: {error} (p2pctl recover)"
                );
            }
            if properties.get("transaction") != Some(&id) {
                continue;
            }
            match record.event.as_str() {
                // A daemon of another version may report other steps.
                STEP => {
                    if let Ok(event) = ProgressEvent::parse(&properties) {
                        printer.event(event);
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
