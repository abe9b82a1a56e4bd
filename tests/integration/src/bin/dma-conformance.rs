//! Checks that the kernel behaves as p2p-vfio expects for IOMMU contexts and shared BARs.
//!
//! ```text
//! dma-conformance type1|iommufd|vfio-ioctls BDF    checks conformance with an edu device that is bound to vfio-pci
//! dma-conformance share BDF BDF                     maps a BAR of the first device for the second one in another process
//! ```
//!
//! Prints one line per check; exit code 0 if all succeeded.

use std::fs;
use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};
use iommu_group::{GroupId, Sbdf, Sysfs};
use lab::report::tell;
use p2p_vfio::Interface;
use p2p_vfio::conformance::{Exporter, Importer, Results, run_on_kernel, run_on_vfio_ioctls};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

const USAGE: &str =
    "usage: dma-conformance type1 BDF | iommufd BDF | vfio-ioctls BDF | share BDF BDF";

fn main() -> Result<ExitCode> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let results = match words.as_slice() {
        ["type1", bdf] => conformance(Interface::Type1, bdf)?,
        ["iommufd", bdf] => conformance(Interface::Iommufd, bdf)?,
        ["vfio-ioctls", bdf] => {
            run_on_vfio_ioctls(device(bdf)?.0).map_err(|error| anyhow!(error))?
        }
        ["share", exporter, importer] => share(exporter, importer)?,
        ["import", bdf] => {
            import(bdf)?;
            return Ok(ExitCode::SUCCESS);
        }
        _ => bail!(USAGE),
    };
    Ok(tell(&results))
}

fn device(bdf: &str) -> Result<(Sbdf, GroupId)> {
    let sysfs = Sysfs::default();
    let sbdf = sysfs.resolve(&Path::new("/sys/bus/pci/devices").join(bdf))?;
    Ok((sbdf, sysfs.group_of(sbdf)?))
}

fn conformance(interface: Interface, bdf: &str) -> Result<Results> {
    let (sbdf, group) = device(bdf)?;
    run_on_kernel(interface, sbdf, group).map_err(|error| anyhow!(error))
}

/// The importing process, as seen by the exporting one.
struct Other {
    child: Child,
    line: BufReader<UnixStream>,
}

impl Other {
    fn start(bdf: &str, page: BorrowedFd<'_>) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new(std::env::current_exe()?)
            .args(["import", bdf])
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .context("cannot start the other process")?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        let fds = [page];
        ensure!(
            rights.push(SendAncillaryMessage::ScmRights(&fds)),
            "no room for a descriptor"
        );
        let byte = [IoSlice::new(b"!")];
        sendmsg(&ours, &byte, &mut rights, SendFlags::empty())?;
        let line = BufReader::new(ours);
        Ok(Self { child, line })
    }

    /// Result of a request: nothing, or the kernel's error.
    fn ask(&mut self, request: &str) -> Result<Result<(), String>> {
        writeln!(self.line.get_mut(), "{request}")?;
        let mut answer = String::new();
        self.line.read_line(&mut answer)?;
        match answer.trim_end() {
            "ok" => Ok(Ok(())),
            "" => bail!("the other process has ended"),
            error => Ok(Err(error.to_owned())),
        }
    }
}

/// Shares a BAR, revokes it by a reset through VFIO, resets the device outside VFIO without a revocation, and shares it
/// again.
fn share(exporter: &str, importer: &str) -> Result<Results> {
    let (sbdf, group) = device(exporter)?;
    let text = |error: String| anyhow!(error);
    let exporter = Exporter::open(sbdf, group).map_err(text)?;
    exporter.decode(true).map_err(text)?;
    let mut other = Other::start(importer, exporter.dma_buf().map_err(text)?)?;
    let mut results = Results::new();
    // DMA writes `word`; the register holds 0 before.
    let mut check = |name, word: u32, arrives: bool, other: &mut Other| -> Result<()> {
        exporter.write(0).map_err(text)?;
        let stored = other.ask(&format!("store {word}"))?;
        let found = exporter.written().map_err(text)?;
        let expected = if arrives { word } else { 0 };
        let same = (found == expected).then_some(());
        let same = same.ok_or_else(|| format!("the register has {found:#x}, not {expected:#x}"));
        results.push((name, stored.and(same)));
        Ok(())
    };
    check(
        "nothing_is_reached_before_it_is_mapped",
        0x51,
        false,
        &mut other,
    )?;
    other.ask("map")?.map_err(text)?;
    check(
        "another_process_maps_what_was_exported",
        0x52,
        true,
        &mut other,
    )?;
    // A reset outside VFIO: its drivers are notified only of resets that they start.
    let reset = Path::new("/sys/bus/pci/devices")
        .join(sbdf.to_string())
        .join("reset");
    fs::write(&reset, "1").with_context(|| format!("cannot write {}", reset.display()))?;
    check(
        "a_reset_through_sysfs_revokes_nothing",
        0x55,
        true,
        &mut other,
    )?;
    exporter.reset().map_err(text)?;
    check("a_reset_ends_the_mapping_for_good", 0x53, false, &mut other)?;
    other.ask("unmap")?.map_err(text)?;
    other.ask("map")?.map_err(text)?;
    check("mapped_again_it_is_reached_again", 0x54, true, &mut other)?;
    other.ask("unmap")?.map_err(text)?;
    exporter.decode(false).map_err(text)?;
    let asleep = match other.ask("map")? {
        Err(error) if error.contains("No such device") => Ok(()),
        Err(error) => Err(format!("refused with {error}")),
        Ok(()) => Err("it was mapped".to_owned()),
    };
    results.push(("what_does_not_decode_is_not_mapped", asleep));
    let Other { mut child, line } = other;
    drop(line);
    let status = child.wait()?;
    ensure!(status.success(), "the other process: {status}");
    Ok(results)
}

/// The importing process. Its standard input is a socket, from which it first receives the dma-buf.
fn import(bdf: &str) -> Result<()> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let page = receive(&socket)?;
    let importer = Importer::open(device(bdf)?.0).map_err(|error| anyhow!(error))?;
    for line in BufReader::new(socket.try_clone()?).lines() {
        let line = line?;
        let done = match line.split_once(' ').unwrap_or((&line, "")) {
            ("map", _) => importer.map(page.as_fd()),
            ("unmap", _) => importer.unmap(),
            ("store", word) => importer.store(word.parse()?),
            _ => bail!("asked for {line:?}"),
        };
        writeln!(&socket, "{}", done.err().unwrap_or("ok".to_owned()))?;
    }
    Ok(())
}

fn receive(socket: &UnixStream) -> Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut rights,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let received = rights.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    received.context("no descriptor came")
}
