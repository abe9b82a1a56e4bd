//! Waits until interrupts of the guest's drivers have fired.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use lab::report::Finding;

/// How long drivers may take until their interrupts fire.
const FIRE: Duration = Duration::from_secs(240);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Makes network cards send and drives read until an interrupt whose name begins with each of `names` has fired.
/// Returns whether all have.
pub(crate) fn run(
    names: &[&str],
    print: &mut dyn FnMut(&Finding) -> io::Result<()>,
) -> io::Result<bool> {
    let started = Instant::now();
    loop {
        for entry in fs::read_dir("/sys/class/net")? {
            poke_network(&entry?.file_name().to_string_lossy());
        }
        poke_drives()?;
        let fired = fired(&fs::read_to_string("/proc/interrupts")?);
        let has_fired = |name: &&str| {
            fired
                .iter()
                .any(|f| f.name.starts_with(*name) && f.count > 0)
        };
        let all = names.iter().all(has_fired);
        if all || started.elapsed() > FIRE {
            for Fired { name, kind, count } in fired {
                print(&Finding::Interrupt { name, kind, count })?;
            }
            return Ok(all);
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// Sends a packet that nobody receives. If this fails, the next round tries again.
fn poke_network(name: &str) {
    if name == "lo" {
        return;
    }
    let number = name
        .bytes()
        .fold(1_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    let ip = |words: &[&str]| drop(Command::new("ip").args(words).status());
    ip(&["link", "set", name, "up"]);
    if !Path::new("/tmp").join(name).exists() {
        ip(&["addr", "add", &format!("10.9.{number}.1/24"), "dev", name]);
        drop(fs::write(Path::new("/tmp").join(name), ""));
    }
    if let Ok(socket) = UdpSocket::bind(format!("10.9.{number}.1:0")) {
        drop(socket.send_to(b"x", format!("10.9.{number}.2:9")));
    }
}

/// Reads a block of every drive, bypassing the page cache.
fn poke_drives() -> io::Result<()> {
    for entry in fs::read_dir("/sys/class/block")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        // Multipath names of a drive have no device file.
        let device = Path::new("/dev").join(&name);
        if name.starts_with("nvme") && device.exists() {
            let read = Command::new("dd")
                .arg(format!("if={}", device.display()))
                .args(["of=/dev/null", "bs=4096", "count=1", "iflag=direct"])
                .stderr(std::process::Stdio::null())
                .status()?;
            if !read.success() {
                return Err(io::Error::other(format!("{name} cannot be read")));
            }
        }
    }
    Ok(())
}

struct Fired {
    name: String,
    kind: String,
    count: u64,
}

/// The lines of `/proc/interrupts` with a number, on one processor: number, count, chip and kind, name.
fn fired(text: &str) -> Vec<Fired> {
    let line = |line: &str| {
        let (number, rest) = line.split_once(':')?;
        number.trim().parse::<u32>().ok()?;
        let mut words = rest.split_ascii_whitespace();
        let count = words.next()?.parse().ok()?;
        let words: Vec<&str> = words.collect();
        let (name, kind) = words.split_last()?;
        Some(Fired {
            name: (*name).to_owned(),
            kind: kind.join(" "),
            count,
        })
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        let text = "           CPU0\n  4:        9   IO-APIC   4-edge      ttyS0\n \
                    27:  12  PCI-MSIX-0000:03:00.0   0-edge      nvme0q0\nNMI:  0  Non-maskable interrupts\n";
        let found = fired(text);
        assert_eq!(found.len(), 2);
        let Fired { name, kind, count } = &found[1];
        assert_eq!((name.as_str(), *count), ("nvme0q0", 12));
        assert!(kind.starts_with("PCI-MSIX-"));
    }
}
