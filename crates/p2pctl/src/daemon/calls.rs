//! The calls of the daemon's API.

use std::collections::BTreeMap;
use std::time::Duration;

use iommu_group::{Goals, Kernel, Plan, PlanOptions, Scope};
use serde::Serialize;
use serde_json::Value;
use vmm_api::{ApiCall, Failure, Handler, HttpMethod};

use super::messages::{AcsRequest, Apply, Check, GuestList, Ping, PlanRequest, StartedTransaction};
use super::transactions::TransactionRunner;
use crate::accepted;
use crate::cli::Global;
use crate::command::{groups, matrix};
use crate::json;
use crate::source::Source;

/// Handler of the API calls.
pub(crate) struct Calls {
    runner: TransactionRunner,
    global: Global,
}

impl Calls {
    pub(crate) fn new(runner: TransactionRunner, global: Global) -> Self {
        Self { runner, global }
    }

    fn source(&self) -> Result<Source, Failure> {
        let source = Source::load(&self.global).map_err(|error| failed(&error))?;
        let policy = self.runner.host().guests.policy().clone();
        Ok(source.with_policy(policy))
    }

    fn plan(&self, goals: &Goals, options: &PlanOptions) -> Result<Value, Failure> {
        let source = self.source()?;
        let topology = source.topology();
        let made = Plan::make(topology, &Kernel::of(topology), goals, options);
        let forecast = match &made {
            Ok(plan) if !plan.steps.is_empty() => Some(self.runner.check(plan)?),
            _ => None,
        };
        let document = json::plan(&made, forecast.as_ref());
        value(&document.map_err(|error| failed(&error))?)
    }

    /// Sets the ACS control of several ports in one transaction.
    fn acs(&self, request: AcsRequest) -> Result<Value, Failure> {
        let goals = Goals {
            acs: request.ports,
            ..Goals::default()
        };
        let source = self.source()?;
        let topology = source.topology();
        let made = Plan::make(topology, &Kernel::of(topology), &goals, &request.options);
        let plan = made.map_err(|refusal| Failure::Refused {
            reasons: refusal.reasons.iter().map(ToString::to_string).collect(),
        })?;
        let transaction = self.runner.apply(plan, None)?;
        value(&StartedTransaction { transaction })
    }

    fn apply(&self, request: Apply) -> Result<Value, Failure> {
        let guest = request.guest_timeout_s.map(Duration::from_secs);
        let transaction = self.runner.apply(request.plan, guest)?;
        value(&StartedTransaction { transaction })
    }

    fn status(&self) -> Result<Value, Failure> {
        let host = self.runner.host();
        let boot = host.regroup().boot_id();
        let boot = boot.map_err(|error| Failure::failed(&error))?;
        let status = host.state.status(&boot);
        value(&json::status(
            &status.map_err(|error| Failure::failed(&error))?,
        ))
    }

    fn guests(&self) -> GuestList {
        let sockets = self.runner.host().guests.sockets();
        let guests = sockets.into_iter();
        let guests: BTreeMap<String, String> = guests
            .map(|guest| (guest.name, guest.socket.display().to_string()))
            .collect();
        GuestList { guests }
    }

    fn handle(&self, call: &ApiCall) -> Result<Value, Failure> {
        match call.call {
            "ping" => value(&Ping {
                version: env!("CARGO_PKG_VERSION"),
                pid: std::process::id(),
            }),
            "guests" => value(&self.guests()),
            "topology" => {
                let source = self.source()?;
                let accepted = accepted::of(&source, &[]);
                value(&json::topology(source.topology(), &[], &accepted))
            }
            "groups" => value(&groups::document(self.source()?.topology(), &[])),
            "matrix" => {
                let document = matrix::document(&self.source()?, &[], Scope::SameGroup);
                value(&document.map_err(|error| failed(&error))?)
            }
            "plan" => {
                let wanted: PlanRequest = call.json()?;
                self.plan(&wanted.goals, &wanted.options)
            }
            "check" => {
                let check: Check = call.json()?;
                value(&self.runner.check(&check.plan)?)
            }
            "reset" => value(&self.runner.reset(&call.json()?)?),
            "apply" => self.apply(call.json()?),
            "acs" => self.acs(call.json()?),
            "recover" => {
                call.nothing()?;
                value(&StartedTransaction {
                    transaction: self.runner.recover()?,
                })
            }
            "status" => self.status(),
            _ => {
                let id = &call.rest;
                let report = self.runner.report(id).ok_or_else(|| {
                    Failure::NotFound(format!("transaction {id} is unknown or has not ended"))
                })?;
                value(&report)
            }
        }
    }
}

/// All calls except the event stream.
pub(super) const CALLS: &[(&str, HttpMethod)] = &[
    ("ping", HttpMethod::Get),
    ("guests", HttpMethod::Get),
    ("topology", HttpMethod::Get),
    ("groups", HttpMethod::Get),
    ("matrix", HttpMethod::Get),
    ("plan", HttpMethod::Put),
    ("check", HttpMethod::Put),
    ("apply", HttpMethod::Put),
    ("acs", HttpMethod::Put),
    ("reset", HttpMethod::Put),
    ("recover", HttpMethod::Put),
    ("status", HttpMethod::Get),
    ("transactions/", HttpMethod::Get),
];

impl Handler for Calls {
    fn calls(&self) -> &'static [(&'static str, HttpMethod)] {
        CALLS
    }

    fn answer(&self, call: &ApiCall) -> Result<Option<Value>, Failure> {
        self.handle(call).map(Some)
    }
}

fn value(value: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(value).map_err(|error| Failure::failed(&error))
}

fn failed(error: &anyhow::Error) -> Failure {
    Failure::Failed {
        messages: error.chain().map(ToString::to_string).collect(),
    }
}
