//! Parses the output of libFuzzer and renders the table of results.

use std::fmt::Write;
use std::path::PathBuf;

/// Result of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    target: String,
    is_clean: bool,
    /// Number of executed inputs.
    executions: u64,
    /// Covered edges of the control flow, and all edges of the program.
    edges: (u64, u64),
    /// Number of inputs in the corpus, each of which covers something that no other covers.
    corpus: u64,
    /// The input that failed.
    found: Option<PathBuf>,
    /// The log with libFuzzer's output.
    log: PathBuf,
}

impl Run {
    /// Parses the text of libFuzzer's log.
    pub(super) fn read(target: &str, is_clean: bool, text: &str, log: PathBuf) -> Self {
        let number = |text: &str| {
            let end = text.find(|c: char| !c.is_ascii_digit());
            text.get(..end.unwrap_or(text.len()))
                .and_then(|digits| digits.parse().ok())
        };
        // The last line with progress counts: `#8192 pulse cov: 715 ft: 1420 corp: 112/9Kb lim: 80 exec/s: 4096 rss: 48Mb`
        let last = |word: &str| {
            let (_, rest) = text.rsplit_once(word)?;
            number(rest.trim_start())
        };
        let rest = |word: &str| Some(text.rsplit_once(word)?.1.lines().next()?.trim());
        let counters = text
            .lines()
            .find_map(|line| line.strip_prefix("INFO: Loaded "));
        let counters = counters.and_then(|line| number(line.split_once('(')?.1));
        let done = |line: &str| number(line.strip_prefix('#')?);
        Self {
            target: target.to_owned(),
            is_clean,
            // A run that ends early may have no statistics.
            executions: last("stat::number_of_executed_units:")
                .or_else(|| text.lines().rev().find_map(done))
                .unwrap_or(0),
            edges: (last("cov: ").unwrap_or(0), counters.unwrap_or(0)),
            corpus: last("corp: ").unwrap_or(0),
            found: rest("Test unit written to ").map(PathBuf::from),
            log,
        }
    }

    /// Whether the run found no failure.
    pub(super) fn is_clean(&self) -> bool {
        self.is_clean
    }

    fn finding(&self) -> String {
        match (&self.found, self.is_clean) {
            (_, true) => "none".to_owned(),
            (Some(path), false) => path.file_name().map_or_else(
                || path.display().to_string(),
                |name| name.to_string_lossy().into_owned(),
            ),
            (None, false) => "it ended early".to_owned(),
        }
    }
}

/// Renders a line for each run, and the log and the input of each failure.
pub(super) fn table(runs: &[Run]) -> String {
    let mut rows = vec![["target", "executions", "edges", "corpus", "finding"].map(str::to_owned)];
    rows.extend(runs.iter().map(|run| {
        [
            run.target.clone(),
            run.executions.to_string(),
            format!("{} of {}", run.edges.0, run.edges.1),
            run.corpus.to_string(),
            run.finding(),
        ]
    }));
    let mut text = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let cells = rows.iter().filter_map(|row| row.get(column));
            let width = cells.map(String::len).max().unwrap_or(0);
            let is_number = (1..=3).contains(&column);
            let _ = match (column + 1 == row.len(), is_number) {
                (true, _) => writeln!(text, "{cell}"),
                (false, true) => write!(text, "{cell:>width$}  "),
                (false, false) => write!(text, "{cell:width$}  "),
            };
        }
    }
    for run in runs.iter().filter(|run| !run.is_clean) {
        let _ = write!(text, "\n{}: {}\n", run.target, run.log.display());
        if let Some(path) = &run.found {
            let path = path.display();
            let _ = writeln!(text, "    cargo xtask fuzz {} --input {path}", run.target);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "INFO: Running with entropic power schedule (0xFF, 100).
INFO: Loaded 1 modules   (70123 inline 8-bit counters): 70123 [0x55, 0x56), 
#27\tINITED cov: 700 ft: 1200 corp: 25/9341b exec/s: 0 rss: 45Mb
#8192\tpulse  cov: 715 ft: 1420 corp: 112/9Kb lim: 80 exec/s: 4096 rss: 48Mb
";

    #[test]
    fn a_run_without_a_finding_is_a_line() {
        let text = format!(
            "{LOG}#9000\tDONE   cov: 720 ft: 1430 corp: 113/9Kb lim: 80\nstat::number_of_executed_units: 9001\n"
        );
        let run = Run::read("config", true, &text, "x.log".into());
        assert!(run.is_clean());
        assert_eq!(
            table(&[run]),
            "target  executions         edges  corpus  finding\n\
             config        9001  720 of 70123     113  none\n"
        );
    }

    #[test]
    fn a_finding_is_named_with_how_to_run_it_again() {
        let text = format!(
            "{LOG}thread '<unnamed>' panicked at x.rs:1:1\nartifact_prefix='/t/found/config/'; Test unit written to /t/found/config/crash-ab\nBase64: AA==\n"
        );
        let run = Run::read("config", false, &text, "/t/config.log".into());
        assert_eq!(
            table(&[run]),
            "target  executions         edges  corpus  finding\n\
             config        8192  715 of 70123     112  crash-ab\n\
             \nconfig: /t/config.log\n    cargo xtask fuzz config --input /t/found/config/crash-ab\n"
        );
    }

    #[test]
    fn a_run_that_ends_without_a_word_is_no_clean_one() {
        let run = Run::read("config", false, "", "x.log".into());
        assert!(table(&[run]).contains("it ended early"));
    }
}
