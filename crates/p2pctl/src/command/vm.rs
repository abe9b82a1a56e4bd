//! `p2pctl vm`: shows and changes a running VM through the API of its VMM.

pub(super) mod events;
mod info;
mod p2p;
mod remove;

use anyhow::Result;
use serde_json::json;
use thiserror::Error;
use vmm_api::{Client, ClientError, DeviceConfig};

use crate::answer::Answer;
use crate::cli::{Socket, VmCommand};
use crate::show::{Line, Terminal, Text, Tone};

/// Runs a command for the VMM at the socket.
pub(crate) fn run(command: &VmCommand, json: bool, terminal: &Terminal) -> Result<Answer> {
    let client = |at: &Socket| Client::new(&at.api_socket);
    let answer = match command {
        VmCommand::Info { at } => info::run(&client(at), json, terminal.width),
        VmCommand::P2p { at } => p2p::run(&client(at), json, terminal.width),
        VmCommand::Events { at } => events::run(&client(at), json),
        VmCommand::Add { at, device } => add(&client(at), device, json),
        VmCommand::Remove(args) => remove::run(&client(&args.at), args, json),
    };
    match answer {
        Ok(answer) => Ok(answer),
        Err(CallError::Client(ClientError::Refused { reasons, .. })) => refused(&reasons, json),
        Err(error) => Err(error.into()),
    }
}

/// Error of a call to the VMM.
#[derive(Debug, Error)]
pub(super) enum CallError {
    /// The VMM refused the call or could not be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The answer could not be shown, or is not the expected one.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

fn add(client: &Client, device: &DeviceConfig, json: bool) -> Result<Answer, CallError> {
    let added = client.add_device(device)?;
    Ok(Answer::either(json, &added, || match &added {
        Some(added) => {
            let line = Line::new().strong(&added.id);
            line.plain(format_args!(" is {} in the guest", added.bdf))
                .into()
        }
        None => "the device is added when the VM boots".into(),
    })?)
}

/// A refusal: the reasons, each with a hint.
fn refused(reasons: &[String], json: bool) -> Result<Answer> {
    if json {
        return Ok(Answer::json(&json!({ "refused": reasons }))?.refused_if(true));
    }
    let mut answer = Answer::text(Text::new()).refused_if(true);
    for reason in reasons {
        let mut lines = reason.lines();
        let first = lines.next().unwrap_or_default();
        let line = Line::new().toned(Tone::Bad, "refused: ").plain(first);
        answer.notes.push(line);
        for line in lines {
            answer
                .notes
                .push(Line::new().plain("         ").plain(line));
        }
    }
    Ok(answer)
}
