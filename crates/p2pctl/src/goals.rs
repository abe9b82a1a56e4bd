//! Goals of plans on the command line.

use std::collections::BTreeSet;

use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, ValueEnum, value_parser};
use iommu_group::{AcsBits, Goals, PlanOptions, RoutePreference, Sbdf};

/// What is asked of a plan.
#[derive(Debug, Args)]
pub(crate) struct GoalArgs {
    #[command(flatten)]
    join: JoinSets,
    /// Put each of these into a group without other devices, out of reach of all
    #[arg(long, value_name = "FUNCTION", num_args = 1..)]
    isolate: Vec<Sbdf>,
    /// Set the ACS of a port: a register value (001d), or names (SV+RR+CR+UF)
    #[arg(long, value_name = "PORT=BITS", value_parser = port_word)]
    acs: Vec<(Sbdf, AcsBits)>,
    /// How requests between joined functions shall go
    #[arg(long, value_name = "ROUTE", default_value = "mildest")]
    route: RouteName,
    /// Accept that these become reachable without the IOMMU, or stay so for a VM's devices that come back
    #[arg(long, value_name = "FUNCTION", value_delimiter = ',', num_args = 1..)]
    expose: Vec<Sbdf>,
    /// Accept that these are unplugged for a while, get into a group with the others, or are lost
    #[arg(long, value_name = "FUNCTION", num_args = 1..)]
    with: Vec<Sbdf>,
}

/// How requests between joined functions shall go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RouteName {
    /// Straight if that exposes nobody, else through the IOMMU if the root complex routes, else straight
    Mildest,
    /// Straight across the switch
    Direct,
    /// Through the IOMMU
    Iommu,
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
            route: match self.route {
                RouteName::Mildest => RoutePreference::Mildest,
                RouteName::Direct => RoutePreference::Direct,
                RouteName::Iommu => RoutePreference::Iommu,
            },
            expose: self.expose.iter().copied().collect(),
            with: self.with.iter().copied().collect(),
        }
    }
}

fn port_word(text: &str) -> Result<(Sbdf, AcsBits), String> {
    let (port, bits) = text
        .split_once('=')
        .ok_or("want PORT=BITS, such as 02:00.0=0011")?;
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
                .help("Put these into one group; give it several times for several groups"),
        )
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}
