//! Tests which functions reach each other by bus address: each endpoint of the lab accesses a BAR of every other
//! function, on a host without mappings.

use std::fs;
use std::io;
use std::path::Path;

use lab::report::Finding;

use crate::endpoint::{Endpoint, Mode, Status};
use crate::mapping::{Mapping, PAGE};
use crate::pci::Function;

/// BAR numbers of a function, in the order in which memory BARs are searched.
const BARS: std::ops::Range<usize> = 0..6;

/// Flag in the `resource` file of sysfs (linux include/linux/ioport.h: `IORESOURCE_MEM`).
const MEMORY: u64 = 0x200;

/// Target of an access in a function.
enum Target<'a> {
    /// Another endpoint, which records incoming requests.
    Endpoint(&'a Endpoint),
    /// The first word of a BAR. It is only read, because a write could have any effect.
    Word {
        bdf: String,
        address: u64,
        registers: Mapping,
    },
}

impl Target<'_> {
    fn bdf(&self) -> &str {
        match self {
            Self::Endpoint(endpoint) => &endpoint.bdf,
            Self::Word { bdf, .. } => bdf,
        }
    }
}

/// Prints a line for each pair of functions.
pub(crate) fn run(print: &mut dyn FnMut(&Finding) -> io::Result<()>) -> io::Result<bool> {
    let endpoints = Endpoint::find_all()?;
    let mut targets: Vec<Target<'_>> = endpoints.iter().map(Target::Endpoint).collect();
    for function in Function::all(Path::new("/sys"))? {
        let known = endpoints.iter().any(|other| other.bdf == function.bdf);
        if !known && !function.is_bridge()? {
            targets.extend(word(&function)?);
        }
    }
    for initiator in &endpoints {
        for target in targets.iter().filter(|to| to.bdf() != initiator.bdf) {
            print(&Finding::Reach {
                initiator: initiator.bdf.clone(),
                target: target.bdf().to_owned(),
                arrived: arrives(initiator, target)?,
            })?;
        }
    }
    Ok(!endpoints.is_empty())
}

/// The first word of the first memory BAR of a function.
fn word(function: &Function) -> io::Result<Option<Target<'static>>> {
    for number in BARS {
        let Ok((address, size, file)) = function.bar(number) else {
            continue;
        };
        if function.bar_flags(number)? & MEMORY == 0 {
            continue;
        }
        function.enable_memory()?;
        let size = usize::try_from(size).map_err(io::Error::other)?;
        let registers = Mapping::of_file(&file, size.min(PAGE))?;
        // A read that no device answers returns zeros in the emulator, which decodes no BARs of igb's virtual functions
        // above 4 GiB, and ones elsewhere. Neither value identifies the target.
        let answers = !matches!(registers.read_u32(0)?, 0 | u32::MAX);
        return Ok(answers.then(|| Target::Word {
            bdf: function.bdf.clone(),
            address,
            registers,
        }));
    }
    Ok(None)
}

fn arrives(initiator: &Endpoint, target: &Target<'_>) -> io::Result<bool> {
    let endpoint = match target {
        Target::Word {
            address, registers, ..
        } => {
            let there = registers.read_u32(0)?;
            let fetched = initiator.fetch_bytes(*address, 4, Mode::Plain)?;
            return Ok(fetched == Ok(there.into()));
        }
        Target::Endpoint(endpoint) => endpoint,
    };
    // A word that no other access writes there.
    let word = 0x5ec2_0000_0000_0000 | (endpoint.mailbox() >> 12);
    endpoint.clear_arrivals()?;
    let stored = initiator.store(endpoint.mailbox(), word, Mode::Plain)?;
    let fetched = initiator.fetch(endpoint.mailbox(), Mode::Plain)?;
    let (count, from) = endpoint.arrivals()?;
    let arrived = (
        count,
        stored == Status::Done,
        fetched == Ok(word),
        endpoint.mail()? == word,
    );
    endpoint.clear_arrivals()?;
    match arrived {
        (2, true, true, true) if from == requester(&initiator.bdf)? => Ok(true),
        (0, _, false, _) => Ok(false),
        other => Err(io::Error::other(format!(
            "{} at {}: {other:?}, from {from:04x}",
            initiator.bdf, endpoint.bdf
        ))),
    }
}

/// Parses `0000:03:00.1` as a requester ID.
pub(crate) fn requester(bdf: &str) -> io::Result<u16> {
    let parse = || {
        let (_, rest) = bdf.split_once(':')?;
        let (bus, rest) = rest.split_once(':')?;
        let (device, function) = rest.split_once('.')?;
        let number = |text| u16::from_str_radix(text, 16).ok();
        Some(number(bus)? << 8 | number(device)? << 3 | number(function)?)
    };
    parse().ok_or_else(|| io::Error::other(format!("{bdf:?} is no address of a function")))
}

impl Function {
    /// Enables memory decode, which a read needs; the function's driver may have done so.
    fn enable_memory(&self) -> io::Result<()> {
        if self.driver().is_some() {
            return Ok(());
        }
        self.enable()
    }

    fn is_bridge(&self) -> io::Result<bool> {
        let class = fs::read_to_string(self.path().join("class"))?;
        Ok(class.trim().starts_with("0x0604"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_becomes_a_requester_id() {
        assert_eq!(requester("0000:03:1f.7").unwrap(), 0x03ff);
        assert!(requester("03").is_err());
    }
}
