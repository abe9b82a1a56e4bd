//! `p2pctl launch`: starts cloud-hypervisor with checked devices.

mod events;
mod program;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;

use crate::answer::Answer;
use crate::cli::{Global, LaunchArgs};
use crate::cloud_hypervisor::{
    CheckError, CheckRequest, CommandLine, IsolationMode, Refusal, Rewritten, inspect, requested,
    rewrite, vdpa,
};
use crate::host;
use crate::json::Document;
use crate::policy_file;
use crate::registry;
use crate::sandbox;
use crate::show::{Line, Terminal, Text, Tone};

/// Name and version of the document that `--json` prints.
const SCHEMA: &str = "p2pctl/launch/1";

/// Replaces this process by cloud-hypervisor, unless the request is refused. It returns only if cloud-hypervisor is not
/// started.
pub(crate) fn run(global: &Global, args: &LaunchArgs, terminal: &Terminal) -> Result<Answer> {
    if global.from.is_some() {
        bail!("launch reads the host that it runs on: omit --from");
    }
    let sysfs = host::root(global);
    let mut rewritten = match prepare(&sysfs, args) {
        Ok(rewritten) => rewritten,
        Err(CheckError::Refused(refusal)) if global.json => return refused_json(&refusal),
        Err(CheckError::Refused(refusal)) => return Ok(refused(&refusal)),
        Err(CheckError::Failed(error)) => return Err(error),
    };
    if let Some(file) = events::wanted(&rewritten.line) {
        if !args.dry_run {
            events::make_room(&file)?;
        }
        events::add(&file, &mut rewritten);
    }
    if args.dry_run {
        return shown(&rewritten, global.json, terminal);
    }
    for note in &rewritten.notes {
        eprintln!("note: {note}");
    }
    if let Some(socket) = events::api_socket(&rewritten.line) {
        registry::register(Path::new(registry::VMS), args.name.as_deref(), &socket)?;
    } else if let Some(name) = &args.name {
        bail!("--name {name} needs an API socket: give --api-socket PATH");
    }
    // `exec` returns only on failure.
    let line = &rewritten.line;
    let error = Command::new(line.program()).args(line.arguments()).exec();
    Err(error).with_context(|| format!("cannot start {}", line.program().display()))
}

/// Computes the command line. Changes nothing.
fn prepare(sysfs: &Path, args: &LaunchArgs) -> Result<Rewritten, CheckError> {
    let line = CommandLine::new(args.command.clone());
    let requested = requested(&line).map_err(anyhow::Error::from)?;
    let vdpa = vdpa(&line).context("--vdpa")?;
    if requested.is_empty() && vdpa.is_empty() {
        return Ok(Rewritten {
            line,
            changes: Vec::new(),
            notes: Vec::new(),
        });
    }
    let version = program::version(line.program())?;
    let request = CheckRequest {
        requested: &requested,
        vdpa: &vdpa,
        policy: policy_file::read(args.consent.policy_file.as_deref(), &args.consent.expose)?,
        version,
        departed: None,
    };
    // The checks read host files and run confined. The program that is started keeps all rights of the caller.
    let inspected = thread::scope(|scope| {
        let check = || {
            sandbox::inspection(sysfs)?;
            inspect(sysfs, request)
        };
        scope.spawn(check).join()
    });
    let host = inspected.map_err(|_| anyhow!("the thread that checks the host has panicked"))??;
    let isolation = if args.joinable {
        IsolationMode::UntilJoined
    } else {
        IsolationMode::Permanent
    };
    Ok(rewrite(&line, &requested, &host, isolation).map_err(Refusal::Limits)?)
}

fn refused(refusal: &Refusal) -> Answer {
    let mut answer = Answer::text(Text::new()).refused_if(true);
    for (n, text) in format!("{refusal:#}").lines().enumerate() {
        let line = match n {
            0 => Line::new().toned(Tone::Bad, "error").plain(": "),
            _ => Line::new(),
        };
        answer.notes.push(line.plain(text));
    }
    answer
}

fn refused_json(refusal: &Refusal) -> Result<Answer> {
    let document = Document::new(SCHEMA, json!({ "refused": refusal.reasons() }));
    Ok(Answer::json(&document)?.refused_if(true))
}

/// The result of `--dry-run`.
fn shown(rewritten: &Rewritten, json: bool, terminal: &Terminal) -> Result<Answer> {
    let words = rewritten.line.words().iter();
    let command: Vec<String> = words
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let changes = rewritten.changes.iter();
    if json {
        let changes = changes.map(|change| json!({ "what": change.what, "why": change.why }));
        let fields = json!({
            "command": command,
            "changes": changes.collect::<Vec<_>>(),
            "notes": rewritten.notes,
        });
        return Answer::json(&Document::new(SCHEMA, fields));
    }
    let mut text = Text::new();
    let quoted: Vec<String> = command.iter().map(|word| shell_word(word)).collect();
    text.push(quoted.join(" "));
    if !rewritten.changes.is_empty() {
        text.blank();
    }
    for change in changes {
        let line = Line::new()
            .strong(&change.what)
            .plain("   ")
            .plain(&change.why);
        text.push_wrapped(&line, terminal.width, 4);
    }
    let answer = Answer::text(text);
    let answer = rewritten.notes.iter().fold(answer, Answer::note);
    Ok(answer.note("nothing was started"))
}

/// Quotes a word for the shell.
fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:+@%[]".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_needs_it() {
        assert_eq!(shell_word("path=/sys/a:0.0,id=x"), "path=/sys/a:0.0,id=x");
        assert_eq!(shell_word("console=ttyS0 quiet"), "'console=ttyS0 quiet'");
        assert_eq!(shell_word("it's"), "'it'\\''s'");
        assert_eq!(shell_word(""), "''");
    }
}
