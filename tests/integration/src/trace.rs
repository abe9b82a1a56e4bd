//! Routes of DMA requests, which the lab's QEMU writes to a file while the host runs.

use std::fs;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, ensure};
use iommu_group::Sbdf;

use crate::host::Lab;

/// Name of the trace file in a lab's directory.
pub(crate) const FILE: &str = "fabric.log";

/// Route of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Directly to a peer, without the IOMMU.
    Straight,
    /// To the root complex, which passes it to the IOMMU unless its address is translated.
    Up,
    /// Blocked: an Unsupported Request or an ACS violation.
    Blocked,
}

/// A DMA request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TracedRequest {
    /// Route of the request.
    pub way: Way,
    /// The function that sent it.
    pub from: Sbdf,
    /// The port, or the function of a device, that decided the route: the egress port for a direct route.
    pub at: Sbdf,
    /// Address of the request: a bus address if it is translated, else an I/O virtual address. The emulator determines
    /// the route of a page or of a window once and keeps it for one access, so this is the first address of an access.
    pub address: u64,
    /// Whether it is a write.
    pub write: bool,
    /// Whether its address was translated by ATS.
    pub translated: bool,
}

impl FromStr for TracedRequest {
    type Err = anyhow::Error;

    /// Parses `straight 03:00.0 at 02:01.0 0xfe000000 write untranslated`, the format of the trace event `lab_fabric`.
    fn from_str(line: &str) -> Result<Self> {
        let mut words = line.split_ascii_whitespace();
        let mut word = || words.next().ok_or_else(|| anyhow!("cut short: {line:?}"));
        let way = match word()? {
            "straight" => Way::Straight,
            "up" => Way::Up,
            "blocked" => Way::Blocked,
            other => return Err(anyhow!("{other:?} is no way of a request: {line:?}")),
        };
        let from = word()?.parse()?;
        ensure!(word()? == "at", "not of the form: {line:?}");
        let at = word()?.parse()?;
        let address = word()?.trim_start_matches("0x");
        let address = u64::from_str_radix(address, 16).context("not an address")?;
        Ok(Self {
            way,
            from,
            at,
            address,
            write: word()? == "write",
            translated: word()? == "translated",
        })
    }
}

impl Lab {
    /// Requests since the start of the host, in order. The profile must have `trace` on.
    ///
    /// # Errors
    /// The profile has it off, or the file has an invalid line.
    pub fn trace(&self) -> Result<Vec<TracedRequest>> {
        let path = self.dir().join(FILE);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}: is trace = true?", path.display()))?;
        let whole = text.rfind('\n').map_or("", |end| text.split_at(end).0);
        let lines = whole.lines().filter_map(|line| {
            let (_, request) = line.split_once("lab_fabric ")?;
            Some(request.parse())
        });
        lines.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_trace_is_read() {
        let line = "straight 03:00.0 at 02:01.0 0xfe000000 write untranslated";
        let request: TracedRequest = line.parse().unwrap();
        assert_eq!(
            request,
            TracedRequest {
                way: Way::Straight,
                from: "0000:03:00.0".parse().unwrap(),
                at: "0000:02:01.0".parse().unwrap(),
                address: 0xfe00_0000,
                write: true,
                translated: false,
            }
        );
        assert!("sideways 03:00.0".parse::<TracedRequest>().is_err());
        assert!("up 03:00.0 at".parse::<TracedRequest>().is_err());
    }
}
