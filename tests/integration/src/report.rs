//! Results that the lab's programs report: `guest-probe` in a guest, one JSON object per line of its output, and
//! conformance checks in a host.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};

/// One line of a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    /// A device that was found and prepared.
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
        /// Result of the transfer.
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
        /// The device whose register was the target of the DMA.
        target: String,
        /// Direction of the data.
        access: Access,
        /// Result of the transfer.
        result: Outcome,
        /// The word sent.
        wrote: String,
        /// The word found at the other end.
        read: String,
        /// The word that should be there.
        expected: String,
    },
    /// A device wrote a word to an address and read it back.
    Aimed {
        /// The device.
        initiator: String,
        /// The word that it read; its previous value if no data came.
        read: String,
        /// The word that a register that inverts it would return.
        expected: String,
    },
    /// Value of a device's inverting register.
    Liveness {
        /// The device.
        device: String,
        /// The word.
        value: String,
    },
    /// A drive transferred a block from or to another drive's memory.
    Transfer {
        /// The drive whose memory was used.
        memory: String,
        /// The drive that did the DMA.
        drive: String,
        /// Direction of the data relative to the drive's file: `read` is from the drive into its peer's memory.
        access: Access,
        /// Result of the transfer.
        result: Outcome,
        /// The kernel's error.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// A device wrote to and read from memory that is mapped for it at an I/O virtual address.
    Mapped {
        /// The address.
        iova: String,
        /// Whether the memory contains the data written.
        written: bool,
        /// Whether the data read equals the contents of the memory.
        read: bool,
    },
    /// A function read from a BAR of another function at its bus address, and wrote there if the effect can be
    /// observed.
    Reach {
        /// The function that did the DMA.
        initiator: String,
        /// The function whose BAR was the target.
        target: String,
        /// Whether the request arrived.
        arrived: bool,
    },
    /// Value of a feature of a device.
    Feature {
        /// The device.
        device: String,
        /// The feature.
        name: String,
        /// Its value.
        value: String,
    },
    /// An event at a point in time.
    At {
        /// The event.
        what: String,
        /// Time since the machine was started, in milliseconds.
        ms: u64,
    },
    /// A disruptive operation on a device while its peer did DMA into it.
    Upset {
        /// The operation.
        what: String,
        /// Number of repetitions.
        rounds: u32,
        /// Whether DMA between peers works afterwards.
        result: Outcome,
        /// The error, if there was one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// An interrupt of the guest.
    Interrupt {
        /// Name that its driver gives it.
        name: String,
        /// Interrupt chip and kind, as the kernel reports them.
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
        /// Checks that succeeded.
        ok: usize,
        /// An error other than a failed check.
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

/// Result of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The data arrived.
    Ok,
    /// No data arrived: the target keeps its previous value, or the read returned no data.
    Nothing,
    /// The transfer ended without an error, but the data did not arrive.
    Lost,
    /// Data arrived that no device sent.
    Garbled,
    /// The device did not end the transfer in time.
    TimedOut,
}

impl Finding {
    /// Findings among the lines of a console; all other lines are skipped.
    #[must_use]
    pub fn in_console(text: &str) -> Vec<Self> {
        text.lines()
            .filter_map(|line| serde_json::from_str(line.trim()).ok())
            .collect()
    }

    /// Results of the transfers between devices and registers of their peers, from a console.
    #[must_use]
    pub fn of_peers(text: &str) -> Vec<(Access, Outcome)> {
        let findings = Self::in_console(text).into_iter();
        let of_peers = findings.filter_map(|finding| match finding {
            Self::Peer { access, result, .. } => Some((access, result)),
            _ => None,
        });
        of_peers.collect()
    }

    /// Results of the transfers between devices and guest memory, from a console.
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

/// Prints the results of conformance checks, one per line. The exit code says whether all succeeded.
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
