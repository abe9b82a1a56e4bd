//! Goals of plans on the command line.

use std::collections::BTreeSet;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, value_parser};
use iommu_group::{AcsBits, Goals, PlanOptions, RoutePreference, Sbdf};

/// Goals and options of a plan.
#[derive(Debug, Args)]
pub(crate) struct GoalArgs {
    #[command(flatten)]
    join: JoinSets,
    /// Put each of these functions into a group without other devices, isolated by the IOMMU
    #[arg(long, value_name = "FUNCTION", num_args = 1..)]
    isolate: Vec<Sbdf>,
    /// Set the ACS control of a port: a register value (001d), or names (SV+RR+CR+UF)
    #[arg(long, value_name = "PORT=BITS", value_parser = port_acs)]
    acs: Vec<(Sbdf, AcsBits)>,
    /// Route of the requests between joined functions
    #[arg(long, value_name = "ROUTE", default_value = "mildest", value_parser = route())]
    route: RoutePreference,
    /// Accept that these functions become reachable without the IOMMU, or stay reachable for devices that return to a VM
    #[arg(long, value_name = "FUNCTION", value_delimiter = ',', num_args = 1..)]
    expose: Vec<Sbdf>,
    /// Accept that these functions are unplugged temporarily, join the group of others, or are lost
    #[arg(long, value_name = "FUNCTION", num_args = 1..)]
    with: Vec<Sbdf>,
}

/// The values of `--route`.
fn route() -> impl TypedValueParser<Value = RoutePreference> {
    let values = [
        PossibleValue::new("mildest").help(
            "Direct if that exposes no function, else through the IOMMU if the root complex routes P2P, else direct",
        ),
        PossibleValue::new("direct").help("Directly across the switch"),
        PossibleValue::new("iommu").help("Through the IOMMU"),
    ];
    PossibleValuesParser::new(values).map(|name| match name.as_str() {
        "direct" => RoutePreference::Direct,
        "iommu" => RoutePreference::Iommu,
        _ => RoutePreference::Mildest,
    })
}

impl GoalArgs {
    pub(crate) fn goals(&self) -> Goals {
        Goals {
            join: self.join.0.clone(),
            isolate: self.isolate.iter().copied().collect(),
            acs: self.acs.iter().copied().collect(),
        }
    }

    pub(crate) fn options(&self) -> PlanOptions {
        PlanOptions {
            route: self.route,
            expose: self.expose.iter().copied().collect(),
            with: self.with.iter().copied().collect(),
        }
    }
}

fn port_acs(text: &str) -> Result<(Sbdf, AcsBits), String> {
    let (port, bits) = text
        .split_once('=')
        .ok_or("expected PORT=BITS, such as 02:00.0=0011")?;
    let port = port.parse().map_err(|error| format!("{error}"))?;
    let bits = bits.parse().map_err(|error| format!("{error}"))?;
    Ok((port, bits))
}

/// The sets to join, one per occurrence of `--join`.
#[derive(Debug)]
struct JoinSets(Vec<BTreeSet<Sbdf>>);

const JOIN: &str = "join";

// Written by hand because the derived code merges the values of all occurrences into one list.
impl FromArgMatches for JoinSets {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let sets = matches.get_occurrences::<Sbdf>(JOIN);
        Ok(Self(
            sets.into_iter()
                .flatten()
                .map(|set| set.copied().collect())
                .collect(),
        ))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for JoinSets {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.arg(
            Arg::new(JOIN)
                .long(JOIN)
                .value_name("FUNCTION")
                .num_args(1..)
                .action(ArgAction::Append)
                .value_parser(value_parser!(Sbdf))
                .help("Put these functions into one group; repeat the option for further groups"),
        )
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}
