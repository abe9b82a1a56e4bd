//! DMA of `edu` engines to a given address, whatever device is there.

use std::io;

use lab::report::Finding;

use crate::edu::{Edu, LIVENESS};
use crate::round::{Page, SOURCE, hex};

type Print<'a> = dyn FnMut(&Finding) -> io::Result<()> + 'a;

/// Each engine except the one at `bar0` writes its own word to the register there and reads the register.
pub(crate) fn run(bar0: u64, print: &mut Print<'_>) -> io::Result<bool> {
    let stuck = |_| io::Error::other("a transfer does not end");
    let register = bar0.saturating_add(LIVENESS.into());
    let page = Page::new()?;
    let engines = Edu::find_all()?.into_iter();
    for (number, engine) in (1..).zip(engines.filter(|engine| engine.bar0 != bar0)) {
        let word = 0xa13e_0000 | number;
        page.prepare(word)?;
        engine.fetch(page.address(SOURCE))?.map_err(stuck)?;
        engine.store(register)?.map_err(stuck)?;
        engine.fetch(register)?.map_err(stuck)?;
        engine.store(page.address(SOURCE))?.map_err(stuck)?;
        print(&Finding::Aimed {
            initiator: engine.bdf,
            read: hex(page.word(SOURCE)?),
            expected: hex(!word),
        })?;
    }
    Ok(true)
}

/// Reports the register of each engine, after the processor has written a word to it, if one is given.
pub(crate) fn liveness(word: Option<u32>, print: &mut Print<'_>) -> io::Result<bool> {
    for engine in Edu::find_all()? {
        if let Some(word) = word {
            engine.set_liveness(word)?;
        }
        print(&Finding::Liveness {
            value: hex(engine.liveness()?),
            device: engine.bdf,
        })?;
    }
    Ok(true)
}
