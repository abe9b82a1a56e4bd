//! `cargo xtask bench`: performance, as ratios that hold on other machines too.

mod hotplug;
mod regroup;

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use crate::target_dir;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Number of rounds; ratios are computed within a round, and the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// Measure regroups in the lab instead: two, four and eight endpoints in one transaction and one by one, with
    /// and without a running guest that has them
    #[arg(long)]
    regroup: bool,
    /// Measure boot and hotplug of a drive in the lab instead, compared with QEMU and, with CH_BIN, with
    /// cloud-hypervisor
    #[arg(long, conflicts_with = "regroup")]
    hotplug: bool,
}

/// A row of the table: a time, or the ratio of two times.
struct Row {
    what: &'static str,
    measured: &'static str,
    /// The benchmark by which the time is divided; `None` for a time in milliseconds.
    by: Option<&'static str>,
    /// Ratio of the work of the two benchmarks.
    work: f64,
    goal: f64,
}

const ROWS: [Row; 8] = [
    Row {
        what: "scan of 10,000 functions, by `lspci -vvv`",
        measured: "scan/scan/10000",
        by: Some("scan/lspci/10000"),
        work: 1.0,
        goal: 0.5,
    },
    Row {
        what: "scan of 10,000 functions, by reading the same files",
        measured: "scan/scan/10000",
        by: Some("scan/bare/10000"),
        work: 1.0,
        goal: 1.5,
    },
    Row {
        what: "groups and all 4,032 verdicts of 64 peers",
        measured: "peers/verdicts/64",
        by: None,
        work: 1.0,
        goal: 10.0,
    },
    Row {
        what: "groups of 10,000 functions",
        measured: "groups/groups/10000",
        by: None,
        work: 1.0,
        goal: 10.0,
    },
    Row {
        what: "scan per function, 5,000 by 1,000 functions",
        measured: "scan/scan/5000",
        by: Some("scan/scan/1000"),
        work: 5.0,
        goal: 1.5,
    },
    Row {
        what: "scan per function, 10,000 by 1,000 functions",
        measured: "scan/scan/10000",
        by: Some("scan/scan/1000"),
        work: 10.0,
        goal: 1.5,
    },
    Row {
        what: "groups per function, 5,000 by 1,000 functions",
        measured: "groups/groups/5000",
        by: Some("groups/groups/1000"),
        work: 5.0,
        goal: 1.5,
    },
    Row {
        what: "groups per function, 10,000 by 1,000 functions",
        measured: "groups/groups/10000",
        by: Some("groups/groups/1000"),
        work: 10.0,
        goal: 1.5,
    },
];

pub(crate) fn run(args: &Args) -> Result<()> {
    let dir = target_dir().join("bench");
    if args.regroup {
        return keep(&dir, "regroup.md", &regroup::run(args.rounds)?);
    }
    if args.hotplug {
        return keep(&dir, "hotplug.md", &hotplug::run(args.rounds)?);
    }
    let home = dir.join("criterion");
    let shell = Shell::new()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let lspci = lab::find_lspci();
    let mut seen: Vec<Vec<f64>> = ROWS.iter().map(|_| Vec::new()).collect();
    for round in 1..=args.rounds {
        eprintln!("bench: round {round} of {}", args.rounds);
        // A result of an earlier round must not replace one that this round did not measure.
        if home.exists() {
            fs::remove_dir_all(&home)
                .with_context(|| format!("cannot clear {}", home.display()))?;
        }
        let mut bench = cmd!(
            shell,
            "{cargo} bench --quiet --locked -p iommu-group --bench speed -- --quiet"
        )
        .env("CRITERION_HOME", &home);
        if let Some((program, libraries)) = &lspci {
            bench = bench.env("LSPCI", program);
            if let Some(libraries) = libraries {
                bench = bench.env("LSPCI_LIBRARIES", libraries);
            }
        }
        bench.quiet().run().context("the benches failed")?;
        for (row, values) in ROWS.iter().zip(&mut seen) {
            values.extend(value(&home, row)?);
        }
    }
    let table = table(&mut seen)?;
    keep(&dir, "iommu-group.md", &table)
}

/// Prints a table and writes it to a file.
fn keep(dir: &Path, name: &str, table: &str) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let file = dir.join(name);
    fs::write(&file, table).with_context(|| format!("cannot write {}", file.display()))?;
    print!("{table}");
    eprintln!("bench: the table is in {}", file.display());
    Ok(())
}

/// The value of a row in this round; `None` if a benchmark was not run.
fn value(home: &Path, row: &Row) -> Result<Option<f64>> {
    let Some(measured) = fastest_ns(home, row.measured)? else {
        return Ok(None);
    };
    Ok(match row.by {
        None => Some(measured / 1e6),
        Some(by) => fastest_ns(home, by)?.map(|by| measured / by / row.work),
    })
}

/// Criterion's file of samples: iterations and nanoseconds of each.
#[derive(serde::Deserialize)]
struct Samples {
    iters: Vec<f64>,
    times: Vec<f64>,
}

/// The fastest sample, in nanoseconds; `None` if the benchmark was not run. The fastest sample has the least time of
/// other processes on a shared machine.
fn fastest_ns(home: &Path, bench: &str) -> Result<Option<f64>> {
    let file = home.join(bench).join("new/sample.json");
    if !file.exists() {
        return Ok(None);
    }
    let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let samples: Samples = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not a sample file of criterion", file.display()))?;
    let each = samples.times.iter().zip(&samples.iters);
    Ok(each
        .map(|(time, iters)| time / iters)
        .min_by(f64::total_cmp))
}

fn table(seen: &mut [Vec<f64>]) -> Result<String> {
    let mut text = String::from(
        "| what | seen | lowest and highest round | goal | |\n|---|---|---|---|---|\n",
    );
    for (row, values) in ROWS.iter().zip(seen) {
        let unit = if row.by.is_none() { " ms" } else { "" };
        values.sort_by(f64::total_cmp);
        let (Some(low), Some(high), Some(middle)) =
            (values.first(), values.last(), values.get(values.len() / 2))
        else {
            writeln!(text, "| {} | SKIPPED | | {}{unit} | |", row.what, row.goal)?;
            continue;
        };
        let verdict = if *middle <= row.goal { "met" } else { "MISSED" };
        writeln!(
            text,
            "| {} | {middle:.2}{unit} | {low:.2} – {high:.2} | {}{unit} | {verdict} |",
            row.what, row.goal
        )?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_counts_and_rows_without_values_are_skipped() {
        let mut seen = vec![Vec::new(); ROWS.len()];
        seen[1] = vec![1.7, 1.0, 1.2];
        seen[2] = vec![12.0];
        let text = table(&mut seen).unwrap();
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert!(lines[0].contains("SKIPPED"), "{text}");
        assert!(
            lines[1].contains("| 1.20 | 1.00 – 1.70 | 1.5 | met |"),
            "{text}"
        );
        assert!(
            lines[2].contains("| 12.00 ms |") && lines[2].contains("MISSED"),
            "{text}"
        );
    }
}
