//! What `lspci -vvv` and the kernel say of a topology, and what of it is odd.

/// One function.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) bdf: String,
    /// Vendor and device.
    pub(crate) id: String,
    pub(crate) lines: Vec<String>,
}

/// The functions in a text that may have other lines before and after.
pub(crate) fn parse(text: &str) -> Vec<Function> {
    let mut functions: Vec<Function> = Vec::new();
    let mut inside = false;
    for line in text.lines().map(str::trim_end) {
        if let Some(function) = head(line) {
            functions.push(function);
            inside = true;
        } else if let Some(rest) = line.strip_prefix('\t')
            && inside
            && let Some(last) = functions.last_mut()
        {
            last.lines.push(rest.trim().to_owned());
        } else {
            inside = false;
        }
    }
    functions
}

/// `00:01.0 Class 0604: Device 1b36:000c (rev 01)`, or `00:01.0 0604: 1b36:000c` with numbers only.
fn head(line: &str) -> Option<Function> {
    let (bdf, rest) = line.split_once(' ')?;
    let digits = |text: &str, len| text.len() == len && text.chars().all(|c| c.is_ascii_hexdigit());
    let (bus, device) = bdf.split_once(':')?;
    let (device, function) = device.split_once('.')?;
    if !(digits(bus, 2) && digits(device, 2) && digits(function, 1)) {
        return None;
    }
    let is_id = |word: &&str| {
        let parts = word.split_once(':');
        parts.is_some_and(|(vendor, device)| digits(vendor, 4) && digits(device, 4))
    };
    Some(Function {
        bdf: bdf.to_owned(),
        id: rest.split(' ').find(is_id)?.to_owned(),
        lines: Vec::new(),
    })
}

/// What lspci prints for what it cannot make sense of, or what only a broken device shows.
const ODD: [&str; 12] = [
    "nknown",
    "[virtual]",
    "chain broken",
    "access denied",
    "!!!",
    "<ignored>",
    "unassigned",
    "(downgraded)",
    "(overdriven)",
    "(strange)",
    "rev ff",
    "reserved",
];

impl Function {
    pub(crate) fn has(&self, text: &str) -> bool {
        self.lines.iter().any(|line| line.contains(text))
    }

    /// `Root Port`, `Upstream Port` or `Downstream Port`.
    pub(crate) fn port_kind(&self) -> Option<&str> {
        let line = self
            .lines
            .iter()
            .find(|line| line.contains("] Express ("))?;
        let kinds = ["Root Port", "Upstream Port", "Downstream Port"];
        kinds.into_iter().find(|kind| line.contains(kind))
    }

    /// The names of what is shown of a port's header and of its PCI Express capability.
    pub(crate) fn labels(&self) -> impl Iterator<Item = &str> {
        const NOT_OF_EVERY_PORT: [&str; 4] = ["Latency", "Interrupt", "IOMMU group", "Region 0"];
        let mut express = true;
        self.lines
            .iter()
            .filter(move |line| {
                if line.starts_with("Capabilities: [") {
                    express = line.contains("] Express (");
                }
                express && !line.starts_with("Capabilities: [")
            })
            .filter_map(|line| line.split_once(':').map(|(label, _)| label))
            .filter(|label| label.len() < 40 && !NOT_OF_EVERY_PORT.contains(label))
    }

    /// Lines with something odd in them. A slot without indicators shows them as unknown: 00b is what the
    /// registers read as then (PCIe r6.0 §7.5.3.10).
    pub(crate) fn oddities(&self) -> Vec<&str> {
        let without = self.has("AttnInd- PwrInd-");
        self.lines
            .iter()
            .filter(|line| {
                let line = match without {
                    true => line.replace("AttnInd Unknown, PwrInd Unknown", ""),
                    false => (*line).clone(),
                };
                ODD.iter().any(|odd| line.contains(odd))
            })
            .map(String::as_str)
            .collect()
    }
}

/// What Linux says of a topology that it does not like, at whatever level: drivers/pci/probe.c, setup-bus.c,
/// setup-res.c, quirks.c, drivers/acpi/pci_root.c.
const COMPLAINTS: [&str; 16] = [
    "Firmware Bug",
    "BIOS bug",
    "can't",
    "no space",
    "failed to assign",
    "not assigned",
    "conflict",
    "bogus",
    "invalid",
    "overlap",
    "busn_res",
    "reconfiguring",
    "unsupported",
    "broken",
    "ignoring",
    "error",
];

/// Whether a line of `dmesg -r` complains about PCI or ACPI: by its level, warning or worse, or by its words.
pub(crate) fn is_complaint(line: &str) -> bool {
    let Some((level, text)) = line.trim_start_matches('<').split_once('>') else {
        return false;
    };
    let text = text.split_once("] ").map_or(text, |(_, text)| text);
    let subject = text.split(' ').next().unwrap_or_default();
    let about = |word: &str| subject.to_ascii_lowercase().starts_with(word);
    let topology = ["pci", "acpi", "pnp", "ecam", "apic"]
        .into_iter()
        .any(about)
        || text.contains("drivers/pci/")
        || text.contains("drivers/acpi/");
    let severe = level.parse().is_ok_and(|level: u32| level & 7 <= 4);
    topology && (severe || COMPLAINTS.iter().any(|word| text.contains(word)))
}

#[test]
fn complaints_are_told_from_the_rest() {
    for line in [
        "<4>[    1.0] pci 0000:02:00.0: BAR 0 [mem size 0x1000]: something",
        "<6>[    1.0] pci 0000:02:00.0: bridge configuration invalid ([bus 00-00]), reconfiguring",
        "<6>[    1.0] pci 0000:02:00.0: BAR 0 [mem size 0x00100000]: can't assign; no space",
        "<3>[    1.0] ACPI BIOS Error (bug): x",
        "<4>[    1.0] WARNING: drivers/pci/setup-res.c:1 at pci_claim_resource+0x1/0x2, CPU#0: swapper/1",
    ] {
        assert!(is_complaint(line), "{line}");
    }
    for line in [
        "<6>[    1.0] pci 0000:02:00.0: PCI bridge to [bus 03]",
        "<4>[    1.0] nvme nvme0: Ignoring bogus Namespace Identifiers",
        "guest: exit 0",
    ] {
        assert!(!is_complaint(line), "{line}");
    }
}

#[test]
fn functions_are_found_between_other_lines() {
    let text = "noise\n02:00.0 Class 0604: Device 104c:8233 (rev 01)\n\tCapabilities: [90] Express (v2) Downstream Port (Slot+), MSI 00\n\
                \t\tLnkSta:\tSpeed 2.5GT/s (overdriven), Width x1\n\n<6>[ 0.0] x\n\tnoise\n";
    let found = parse(text);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].id, "104c:8233");
    assert_eq!(found[0].port_kind(), Some("Downstream Port"));
    assert_eq!(found[0].labels().collect::<Vec<_>>(), ["LnkSta"]);
    assert_eq!(found[0].oddities().len(), 1);
}
