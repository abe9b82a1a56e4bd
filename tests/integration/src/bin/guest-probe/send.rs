//! DMA of the lab's endpoints to each other and to addresses that a test chooses.

use std::io;

use lab::report::{Access, Finding, Outcome};

use crate::endpoint::{Endpoint, Mode, Status};

type Print<'a> = dyn FnMut(&Finding) -> io::Result<()> + 'a;

/// Each endpoint writes to the mailbox of each other endpoint and reads it. Returns true if all data arrived.
pub(crate) fn peers(mode: Mode, print: &mut Print<'_>) -> io::Result<bool> {
    let endpoints = Endpoint::find_all()?;
    let mut all = endpoints.len() > 1;
    for (number, initiator) in (1_u64..).zip(&endpoints) {
        for target in endpoints.iter().filter(|other| other.bdf != initiator.bdf) {
            let word = 0x9ee2_0000_0000_0000 | target.mailbox() << 8 | number;
            target.clear_arrivals()?;
            let stored = initiator.store(target.mailbox(), word, mode)?;
            let mail = target.mail()?;
            all &= report(
                initiator,
                target,
                Access::Write,
                (stored, mail, word),
                print,
            )?;
            target.clear_arrivals()?;
            let (fetched, read) = match initiator.fetch(target.mailbox(), mode)? {
                Ok(read) => (Status::Done, read),
                Err(status) => (status, 0),
            };
            all &= report(
                initiator,
                target,
                Access::Read,
                (fetched, read, mail),
                print,
            )?;
        }
    }
    Ok(all)
}

/// Prints the result of one transfer from its status, the data, and the target's record.
fn report(
    initiator: &Endpoint,
    target: &Endpoint,
    access: Access,
    (status, found, expected): (Status, u64, u64),
    print: &mut Print<'_>,
) -> io::Result<bool> {
    let (arrivals, _) = target.arrivals()?;
    let result = match (status, arrivals) {
        (Status::Done, 1) if found == expected => Outcome::Ok,
        (_, 0) => Outcome::Nothing,
        _ => Outcome::Garbled,
    };
    print(&Finding::Peer {
        initiator: initiator.bdf.clone(),
        target: target.bdf.clone(),
        access,
        result,
        wrote: format!("{expected:#x}"),
        read: format!("{found:#x}"),
        expected: format!("{expected:#x}"),
    })?;
    Ok(result == Outcome::Ok)
}

/// The first endpoint, or the first named one, copies 1 MiB of its memory into that of the second.
pub(crate) fn bulk(mode: Mode, names: &[&str], print: &mut Print<'_>) -> io::Result<bool> {
    let wanted = |bdf: &str| names.is_empty() || names.contains(&bdf);
    let endpoints = Endpoint::find(wanted)?;
    let [initiator, target, ..] = endpoints.as_slice() else {
        return Err(io::Error::other("two endpoints are needed"));
    };
    let (status, arrived, right) = initiator.copy_memory(target, mode)?;
    let words = (1 << 20) / 8;
    let result = match (status, arrived, right) {
        (Status::Done, _, right) if right == words => Outcome::Ok,
        (Status::WriteFailed | Status::NotTranslated, 0, _) => Outcome::Nothing,
        _ => Outcome::Garbled,
    };
    print(&Finding::Peer {
        initiator: initiator.bdf.clone(),
        target: target.bdf.clone(),
        access: Access::Write,
        result,
        wrote: format!("{words} words"),
        read: format!("{right} of {arrived} words"),
        expected: format!("{words} words, {status:?}"),
    })?;
    Ok(result == Outcome::Ok)
}

/// Each endpoint writes a word to a bus address and reads it back. Results are reported without a verdict.
pub(crate) fn send(address: u64, mode: Mode, print: &mut Print<'_>) -> io::Result<bool> {
    for initiator in Endpoint::find_all()? {
        let word = 0x5e4d_0000_0000_0000 | address >> 12;
        let stored = initiator.store(address, word, mode)?;
        let read = initiator.fetch(address, mode)?;
        print(&Finding::Aimed {
            initiator: initiator.bdf.clone(),
            read: read.map_or_else(|status| format!("{status:?}"), |word| format!("{word:#x}")),
            expected: format!("{word:#x} {stored:?}"),
        })?;
    }
    Ok(true)
}

/// Number of requests that have reached each endpoint, or the named ones, since the last call.
pub(crate) fn arrivals(names: &[&str], print: &mut Print<'_>) -> io::Result<bool> {
    for endpoint in Endpoint::find(|bdf| names.is_empty() || names.contains(&bdf))? {
        let (count, _) = endpoint.arrivals()?;
        endpoint.clear_arrivals()?;
        print(&Finding::Liveness {
            device: endpoint.bdf.clone(),
            value: count.to_string(),
        })?;
    }
    Ok(true)
}

/// Parses `plain`, `translated`, `forged` or `spoofed=BDF`.
pub(crate) fn mode(text: &str) -> Option<Mode> {
    match text {
        "plain" => Some(Mode::Plain),
        "translated" => Some(Mode::Translated),
        "forged" => Some(Mode::Forged),
        _ => {
            let bdf = text.strip_prefix("spoofed=")?;
            crate::reach::requester(bdf).ok().map(Mode::Spoofed)
        }
    }
}
