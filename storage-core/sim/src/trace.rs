//! What happened, as one number and, when asked for, as lines for people.
//!
//! Two runs of a seed must do the same things in the same order: the chain covers every event that is delivered and
//! every effect that a core asks for. Lines are only made when somebody reads them.

use torus_core::time::Instant;

/// The chain, and whether to print.
#[derive(Debug)]
pub struct Trace {
    chain: u64,
    events: u64,
    print: bool,
}

impl Trace {
    /// An empty chain.
    #[must_use]
    pub fn new(print: bool) -> Self {
        Self { chain: 0, events: 0, print }
    }

    /// Adds one thing that happened at `at`: the numbers that tell it from others, and how a person would say it.
    pub fn note(&mut self, at: Instant, numbers: &[u64], line: impl FnOnce() -> String) {
        let mut bytes = [0u8; 64];
        let mut used = 0;
        for number in std::iter::once(&at.0).chain(numbers).take(8) {
            bytes[used..used + 8].copy_from_slice(&number.to_le_bytes());
            used += 8;
        }
        self.chain = xxhash_rust::xxh3::xxh3_64_with_seed(&bytes[..used], self.chain);
        self.events += 1;
        if self.print {
            println!("{:>14.6} {}", at.0 as f64 / 1e9, line());
        }
    }

    /// The hash of everything so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.chain
    }

    /// How many things happened.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.events
    }
}
