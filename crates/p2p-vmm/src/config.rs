//! What the operator asked for: the parameters of a VM, each parsed from its option list.

use std::path::PathBuf;
use std::str::FromStr;

use hotplug::{DeviceConfig, OptionError, Options};

/// Most vCPUs a VM can have.
const MAX_CPUS: u8 = 16;
/// Unit of guest memory: RAM regions are whole pages.
const PAGE_BYTES: u64 = 4096;

/// Everything that describes one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VmConfig {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: Option<PathBuf>,
    pub(crate) cmdline: String,
    pub(crate) memory: MemoryConfig,
    pub(crate) cpus: CpusConfig,
    pub(crate) serial: SerialConfig,
    pub(crate) devices: Vec<DeviceConfig>,
}

/// `--memory size=512M`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoryConfig {
    pub(crate) size_bytes: u64,
}

impl FromStr for MemoryConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str =
            "a size in bytes or with a suffix K, M or G, above zero and a multiple of 4096 bytes";
        let options = Options::parse(text, &["size"])?;
        let size = options.required("size")?;
        let size_bytes = parse_size(size)
            .filter(|bytes| *bytes > 0 && bytes % PAGE_BYTES == 0)
            .ok_or_else(|| OptionError::BadValue {
                key: "size".into(),
                value: size.into(),
                expected: EXPECTED.into(),
            })?;
        Ok(Self { size_bytes })
    }
}

/// `--cpus boot=2`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CpusConfig {
    /// vCPUs present when the guest boots, 1 to 16.
    pub(crate) boot: u8,
}

impl FromStr for CpusConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let options = Options::parse(text, &["boot"])?;
        let boot = options.required("boot")?;
        match boot.parse() {
            Ok(count @ 1..=MAX_CPUS) => Ok(Self { boot: count }),
            _ => Err(OptionError::BadValue {
                key: "boot".into(),
                value: boot.into(),
                expected: format!("a number of vCPUs from 1 to {MAX_CPUS}"),
            }),
        }
    }
}

/// `--serial tty|file=PATH|null|off`: where the guest's first serial port ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SerialConfig {
    /// Standard input and output.
    Tty,
    /// Output to a file, no input.
    File(PathBuf),
    /// Output is dropped, no input.
    Null,
    /// The guest has no serial port.
    Off,
}

/// Why `--serial` or `--console` was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConsoleError {
    #[error("\"{0}\" is not a serial mode (known: tty, file=PATH, null, off)")]
    SerialMode(String),
    #[error("file= needs a path")]
    NoPath,
    #[error(
        "there is no virtio console: \"{0}\" is not possible (known: off, null); the guest's console is --serial"
    )]
    ConsoleMode(String),
}

impl FromStr for SerialConfig {
    type Err = ConsoleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "tty" => Ok(Self::Tty),
            "null" => Ok(Self::Null),
            "off" => Ok(Self::Off),
            "file=" => Err(ConsoleError::NoPath),
            _ => match text.strip_prefix("file=") {
                Some(path) => Ok(Self::File(path.into())),
                None => Err(ConsoleError::SerialMode(text.into())),
            },
        }
    }
}

/// `--console off|null`: accepted as cloud-hypervisor spells it; there is no virtio console to attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConsoleConfig;

impl FromStr for ConsoleConfig {
    type Err = ConsoleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" | "null" => Ok(Self),
            _ => Err(ConsoleError::ConsoleMode(text.into())),
        }
    }
}

/// Bytes of `512M`, `1G`, `4096K` or a plain number; `None` if it is none of these or does not fit.
fn parse_size(text: &str) -> Option<u64> {
    let (number, shift) = match text.strip_suffix(['K', 'k']) {
        Some(number) => (number, 10),
        None => match text.strip_suffix(['M', 'm']) {
            Some(number) => (number, 20),
            None => match text.strip_suffix(['G', 'g']) {
                Some(number) => (number, 30),
                None => (text, 0),
            },
        },
    };
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_size_takes_suffixes() {
        for (text, size_bytes) in [
            ("size=8192", 8192),
            ("size=128K", 128 << 10),
            ("size=512M", 512 << 20),
            ("size=5G", 5 << 30),
        ] {
            assert_eq!(text.parse(), Ok(MemoryConfig { size_bytes }), "{text}");
        }
    }

    #[test]
    fn bad_memory_size_is_named() {
        for size in [
            "0",
            "1",
            "-1M",
            "+1M",
            "M",
            "12T",
            "99999999999999G",
            "1.5G",
        ] {
            let error = format!("size={size}").parse::<MemoryConfig>().unwrap_err();
            let expected = format!("option \"size\": \"{size}\" is not a size in bytes");
            assert!(error.to_string().starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn unknown_memory_key_is_refused() {
        let error = "size=1G,shared=on".parse::<MemoryConfig>().unwrap_err();
        assert_eq!(error.to_string(), "unknown option \"shared\" (known: size)");
    }

    #[test]
    fn cpus_are_one_to_sixteen() {
        assert_eq!("boot=1".parse(), Ok(CpusConfig { boot: 1 }));
        assert_eq!("boot=16".parse(), Ok(CpusConfig { boot: 16 }));
        for count in ["0", "17", "300", "two"] {
            let error = format!("boot={count}").parse::<CpusConfig>().unwrap_err();
            let expected =
                format!("option \"boot\": \"{count}\" is not a number of vCPUs from 1 to 16");
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn serial_modes() {
        assert_eq!("tty".parse(), Ok(SerialConfig::Tty));
        assert_eq!("null".parse(), Ok(SerialConfig::Null));
        assert_eq!("off".parse(), Ok(SerialConfig::Off));
        assert_eq!(
            "file=/tmp/log".parse(),
            Ok(SerialConfig::File("/tmp/log".into()))
        );
        assert_eq!("file=".parse::<SerialConfig>(), Err(ConsoleError::NoPath));
        assert_eq!(
            "pty".parse::<SerialConfig>(),
            Err(ConsoleError::SerialMode("pty".into()))
        );
    }

    #[test]
    fn console_can_only_be_off() {
        assert_eq!("off".parse(), Ok(ConsoleConfig));
        assert_eq!("null".parse(), Ok(ConsoleConfig));
        let error = "tty".parse::<ConsoleConfig>().unwrap_err();
        assert!(error.to_string().contains("\"tty\" is not possible"));
    }
}
