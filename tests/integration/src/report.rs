//! What programs of the lab find out: `guest-probe` in a guest, one JSON object per line of its output, and contracts in a host.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    /// A device that was found and made ready.
    Device {
        /// Its address in the guest.
        bdf: String,
        /// Guest-physical address of its registers.
        bar0: String,
    },
    /// A device moved a word from guest memory into its buffer and back to another place.
    Memory {
        /// The device.
        device: String,
        /// How it went.
        result: Outcome,
        /// The word sent.
        wrote: String,
        /// The word that came back.
        read: String,
    },
    /// A device moved a word between its buffer and another device's register.
    Peer {
        /// The device that did the DMA.
        initiator: String,
        /// The device whose register it aimed at.
        target: String,
        /// Direction of the data.
        access: Access,
        /// How it went.
        result: Outcome,
        /// The word sent.
        wrote: String,
        /// The word found at the other end.
        read: String,
        /// The word that should be there.
        expected: String,
    },
    /// A device stored a word at an address and fetched what is there then.
    Aimed {
        /// The device.
        initiator: String,
        /// The word that it fetched; what it had before if nothing came.
        read: String,
        /// What a register that inverts the word would have.
        expected: String,
    },
    /// What a device's inverting register holds.
    Liveness {
        /// The device.
        device: String,
        /// The word.
        value: String,
    },
    /// A drive transferred a block from or to another drive's memory.
    Transfer {
        /// The drive whose memory it was.
        memory: String,
        /// The drive that did the DMA.
        drive: String,
        /// Direction of the data as the drive's file sees it: `read` is from the drive into its peer's memory.
        access: Access,
        /// How it went.
        result: Outcome,
        /// What the kernel said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// A device wrote to memory that is mapped for it at an I/O virtual address, and read it.
    Mapped {
        /// The address.
        iova: String,
        /// Whether the memory has what was written.
        written: bool,
        /// Whether what was read is what the memory has.
        read: bool,
    },
    /// A function read from a BAR of another one at its bus address, and wrote there if that can be told.
    Reach {
        /// The function that did the DMA.
        initiator: String,
        /// The function whose BAR it aimed at.
        target: String,
        /// Whether the request arrived.
        arrived: bool,
    },
    /// What was found of a part of a device.
    Feature {
        /// The device.
        device: String,
        /// What is looked at.
        name: String,
        /// What was found.
        value: String,
    },
    /// Something happened.
    At {
        /// What.
        what: String,
        /// When: milliseconds since the machine was started.
        ms: u64,
    },
    /// Something was done to a device while its peer did DMA into it.
    Upset {
        /// What was done.
        what: String,
        /// How often.
        rounds: u32,
        /// Whether DMA between peers works after.
        result: Outcome,
        /// What went wrong.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// An interrupt of the guest.
    Interrupt {
        /// What its driver calls it.
        name: String,
        /// The chip and the kind of it, as the kernel says it.
        kind: String,
        /// How often it fired.
        count: u64,
    },
    /// The last line.
    Summary {
        /// Devices found.
        devices: usize,
        /// Checks made.
        checks: usize,
        /// Checks that went well.
        ok: usize,
        /// Something other than a check went wrong.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
}

/// Direction of the data between an initiator and its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// From the initiator into the peer.
    Write,
    /// From the peer into the initiator.
    Read,
}

/// How a transfer went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The data arrived.
    Ok,
    /// Nothing arrived: what was there before is still there, or a read was answered with nothing.
    Nothing,
    /// The transfer ended without an error, and the data did not arrive.
    Lost,
    /// Something arrived that nobody sent.
    Garbled,
    /// The device did not end the transfer in time.
    TimedOut,
}

impl Finding {
    /// Findings among the lines of a console; everything else there is not ours.
    #[must_use]
    pub fn in_console(text: &str) -> Vec<Self> {
        text.lines()
            .filter_map(|line| serde_json::from_str(line.trim()).ok())
            .collect()
    }

    /// How transfers between devices and registers of their peers went, as a console tells.
    #[must_use]
    pub fn of_peers(text: &str) -> Vec<(Access, Outcome)> {
        let findings = Self::in_console(text).into_iter();
        let of_peers = findings.filter_map(|finding| match finding {
            Self::Peer { access, result, .. } => Some((access, result)),
            _ => None,
        });
        of_peers.collect()
    }

    /// How devices fared with guest memory, as a console tells.
    #[must_use]
    pub fn of_memory(text: &str) -> Vec<Outcome> {
        let findings = Self::in_console(text).into_iter();
        let of_memory = findings.filter_map(|finding| match finding {
            Self::Memory { result, .. } => Some(result),
            _ => None,
        });
        of_memory.collect()
    }
}

/// Prints what came of the checks of a contract, one line for each; the exit code says whether all went well.
#[must_use]
pub fn tell(results: &[(&str, Result<(), String>)]) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for (name, result) in results {
        match result {
            Ok(()) => println!("ok {name}"),
            Err(why) => {
                println!("FAILED {name}: {why}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_picked_out_of_a_console() {
        let finding = Finding::Peer {
            initiator: "0000:01:00.0".into(),
            target: "0000:02:00.0".into(),
            access: Access::Write,
            result: Outcome::Nothing,
            wrote: "0x1".into(),
            read: "0x2".into(),
            expected: "0xfffffffe".into(),
        };
        let line = serde_json::to_string(&finding).unwrap();
        let text = format!("[    1.0] pci: hello\r\n{line}\r\n{{\"other\":1}}\nguest: exit 1\n");
        assert_eq!(Finding::in_console(&text), [finding]);
    }
}
