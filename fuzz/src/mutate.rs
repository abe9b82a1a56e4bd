//! Deterministic mutations of seeds for the smoke test. libFuzzer has better mutations of its own.

use fastrand::Rng;

/// Maximum length of an input in bytes.
const MAX_BYTES: usize = 8192;
/// Maximum number of mutations of one input.
const MAX_STEPS: usize = 6;
/// Maximum number of bytes that one mutation inserts, removes or copies.
const MAX_RUN: usize = 16;
/// Values at which comparisons change their result.
const EDGES: [u8; 8] = [0x00, 0x01, 0x07, 0x10, 0x7f, 0x80, 0xfe, 0xff];

/// Creates inputs from seeds and the words of a dictionary.
#[derive(Debug)]
pub struct Mutator<'a> {
    /// Inputs to mutate.
    pub seeds: &'a [Vec<u8>],
    /// Words that are meaningful to the target.
    pub words: &'a [Vec<u8>],
}

impl Mutator<'_> {
    /// The input with this number. The same number always gives the same input.
    pub fn input(&self, number: u64) -> Vec<u8> {
        let mut rng = Rng::with_seed(number);
        let mut input = rng.choice(self.seeds).cloned().unwrap_or_default();
        for _ in 0..rng.usize(1..=MAX_STEPS) {
            self.step(&mut rng, &mut input);
        }
        input.truncate(MAX_BYTES);
        input
    }

    fn step(&self, rng: &mut Rng, input: &mut Vec<u8>) {
        let at = rng.usize(..=input.len());
        let end = (at + rng.usize(..=MAX_RUN)).min(input.len());
        match rng.u8(..8) {
            0 | 1 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << rng.u8(..8);
                }
            }
            2 => {
                if let (Some(byte), Some(edge)) = (input.get_mut(at), rng.choice(EDGES)) {
                    *byte = edge;
                }
            }
            3 => drop(input.drain(at..end)),
            4 => {
                let run: Vec<u8> = (0..rng.usize(..=MAX_RUN)).map(|_| rng.u8(..)).collect();
                input.splice(at..at, run);
            }
            5 => {
                let run: Vec<u8> = input.drain(at..end).collect();
                let to = rng.usize(..=input.len());
                input.splice(to..to, [&run[..], &run[..]].concat());
            }
            6 => {
                if let Some(word) = rng.choice(self.words) {
                    input.splice(at..end, word.iter().copied());
                }
            }
            _ => {
                if let Some(other) = rng.choice(self.seeds) {
                    let from = rng.usize(..=other.len());
                    input.truncate(at);
                    input.extend_from_slice(other.get(from..).unwrap_or_default());
                }
            }
        }
    }
}

/// Parses a dictionary of libFuzzer: one quoted word per line, with `\\`, `\"` and `\xAB` as escapes.
pub fn dictionary(text: &str) -> Vec<Vec<u8>> {
    let quoted = |line: &str| {
        let line = line.trim().strip_suffix('"')?;
        Some(unescape(line.split_once('"')?.1))
    };
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(quoted).collect()
}

fn unescape(text: &str) -> Vec<u8> {
    let mut word = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            word.push(byte);
            continue;
        }
        match rest.next() {
            Some(b'x') => {
                let digits: Vec<u8> = rest.by_ref().take(2).collect();
                let digits = std::str::from_utf8(&digits).unwrap_or_default();
                word.extend(u8::from_str_radix(digits, 16));
            }
            escaped => word.extend(escaped),
        }
    }
    word
}
