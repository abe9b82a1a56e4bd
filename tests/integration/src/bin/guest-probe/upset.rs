//! Moves devices, switches them off, resets them and puts them to sleep while a peer does DMA into them.
//!
//! Transfers during a disturbance are not checked: they may arrive or be lost. After each disturbance DMA from the peer
//! must work again, which is checked.

mod steps;

use std::io;
use std::path::Path;

use lab::report::{Finding, Outcome};

use crate::edu::{self, Edu, LIVENESS};
use crate::pci::Function;
use crate::round::{Page, SOURCE};

/// Two `edu` devices below one switch, each below its own port.
struct Stage {
    /// The device that is disturbed.
    target: Function,
    /// Address of its registers at the start.
    home: u64,
    /// The device that does DMA into the target.
    peer: Function,
    /// The peer's engine, at its address at the start.
    engine: Edu,
    page: Page,
    word: u32,
}

type Step = fn(&mut Stage, u32) -> io::Result<()>;

type Print<'a> = dyn FnMut(&Finding) -> io::Result<()> + 'a;

/// Runs all steps and returns whether DMA worked after each. Where a switch of the host routes by bus addresses,
/// devices that swap addresses are reached at their host bus addresses, so `by_bus_address` omits these steps.
pub(crate) fn run(rounds: u32, by_bus_address: bool, print: &mut Print<'_>) -> io::Result<bool> {
    let moves: [(&str, u32, Step); 2] = [
        ("decode off and on", 50, steps::decode),
        ("moves", rounds, steps::moves),
    ];
    let trades: [(&str, u32, Step); 2] = [
        ("swap", 4, steps::swap),
        ("onto another device", 4, steps::collide),
    ];
    let resets: [(&str, u32, Step); 4] = [
        ("secondary bus reset", 2, steps::bus_reset),
        ("function level reset", 4, steps::function_reset),
        ("D3hot", 4, steps::sleep),
        ("memory device", 1, steps::memory_device),
    ];
    let trades = trades.into_iter().filter(|_| !by_bus_address);
    let steps: Vec<_> = moves.into_iter().chain(trades).chain(resets).collect();
    play(&steps, print)
}

/// Repeats the operations that revoke a BAR's dma-buf. Returns whether peers could use the BAR again after each.
pub(crate) fn revoke(rounds: u32, print: &mut Print<'_>) -> io::Result<bool> {
    let steps: [(&str, u32, Step); 3] = [
        ("decode off and on", rounds, steps::decode_and_look),
        ("function level reset", rounds, steps::function_reset),
        ("D3hot", rounds.div_ceil(10), steps::sleep),
    ];
    play(&steps, print)
}

fn play(steps: &[(&str, u32, Step)], print: &mut Print<'_>) -> io::Result<bool> {
    let mut stage = Stage::new()?;
    let mut all_good = true;
    for (what, rounds, step) in steps {
        let rounds = *rounds;
        let error = step(&mut stage, rounds).err();
        all_good &= error.is_none();
        print(&Finding::Upset {
            what: (*what).to_owned(),
            rounds,
            result: error.as_ref().map_or(Outcome::Ok, |_| Outcome::Nothing),
            error: error.map(|error| error.to_string()),
        })?;
    }
    Ok(all_good)
}

impl Stage {
    fn new() -> io::Result<Self> {
        let mut found = Function::find(Path::new("/sys"), edu::VENDOR, edu::DEVICE)?.into_iter();
        let (Some(target), Some(peer)) = (found.next(), found.next()) else {
            return Err(io::Error::other("there are no two edu devices"));
        };
        let home = Edu::open(&target)?.bar0;
        let engine = Edu::open(&peer)?;
        Ok(Self {
            target,
            home,
            peer,
            engine,
            page: Page::new()?,
            word: 0xbeef_0000,
        })
    }

    /// Returns a word that was not used before.
    fn next_word(&mut self) -> u32 {
        self.word = self.word.wrapping_add(1);
        self.word
    }

    /// `engine` writes a word to the liveness register of the device at `to`, which must invert it.
    fn check(&mut self, engine: &Edu, to: u64) -> io::Result<()> {
        let word = self.next_word();
        let target = Edu::at(to)?;
        target.set_liveness(0)?;
        self.store(engine, to + u64::from(LIVENESS), word)?;
        let found = target.liveness()?;
        if found == !word {
            return Ok(());
        }
        let expected = !word;
        let text = format!("at {to:#x}: {found:#x} instead of {expected:#x} after DMA");
        Err(io::Error::other(text))
    }

    /// `engine` writes `word` to a bus address.
    fn store(&mut self, engine: &Edu, to: u64, word: u32) -> io::Result<()> {
        engine.finish()?;
        self.page.prepare(word)?;
        let stuck = |_| io::Error::other("a transfer does not end");
        engine.fetch(self.page.address(SOURCE))?.map_err(stuck)?;
        engine.store(to)?.map_err(stuck)
    }

    /// Checks DMA from the peer to the target at their initial addresses.
    fn check_home(&mut self) -> io::Result<()> {
        let engine = Edu::open(&self.peer)?;
        self.check(&engine, self.home)
    }
}
