//! A seeded world for the real cores.
//!
//! [`run`] builds one world from one number: agents with the real member core on disks that tear, lose and rot; owners
//! with the real volume core that crash, pause and compete; a network and a metadata store that fail as such things
//! fail; clocks that drift; clients that write and remember. Checkers watch it from outside ([`check`]). After a phase
//! of faults everything is healed, and what was acknowledged must be there and new work must get done.
//!
//! The same seed does the same things in the same order, always: [`Report::hash`] says so, and every failure is
//! replayed by its number.
//!
//! **Why not only test with real processes?** They are tested too. But a seed reaches in milliseconds an interleaving
//! that real disks reach in years, and reaches it again tomorrow.
//!
//! Not here: bytes on wires (the cores' messages are passed as they are), real disks, front ends.

pub mod agent;
pub mod batch;
pub mod check;
pub mod clock;
pub mod disk;
pub mod meta;
pub mod mutation;
pub mod net;
pub mod options;
pub mod owner;
pub mod payload;
pub mod rng;
pub mod scripted;
pub mod trace;
pub mod volume;
pub mod world;

pub use mutation::Mutation;
pub use options::{Kind, Options};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::{Counts, World};

/// How a seed went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Over everything that happened, in order.
    pub hash: u64,
    /// How many things happened.
    pub events: u64,
    /// What came of it.
    pub counts: Counts,
}

/// How a seed went wrong.
#[derive(Clone, Debug, thiserror::Error)]
#[error("seed {seed} breaks {invariant} after {world_ms} ms of world time and {events} events: {what}\n  world: {options}\n  replay: {}", self.replay())]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// The invariant, or `panic` for an assertion of a core.
    pub invariant: String,
    /// What was seen.
    pub what: String,
    /// The world.
    pub options: Box<Options>,
    /// When.
    pub world_ms: u64,
    /// Things that had happened.
    pub events: u64,
}

impl Failure {
    /// The command that shows it again.
    #[must_use]
    pub fn replay(&self) -> String {
        let owner = if self.options.kind == Kind::Scripted { " --owner scripted" } else { "" };
        format!("cargo xtask sim --from {} --seeds 1{owner} --trace", self.seed)
    }
}

/// Runs one seed.
///
/// # Errors
/// The first broken invariant.
pub fn run(seed: u64, options: Options, mutation: Option<Mutation>, print: bool) -> Result<Report, Box<Failure>> {
    Mutation::install(mutation);
    let mut world = World::new(seed, options.clone(), mutation.and_then(Mutation::world), print);
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run()));
    Mutation::install(None);
    let (invariant, what) = match outcome {
        Ok(Ok(())) => return Ok(Report { hash: world.hash(), events: world.events(), counts: world.counts() }),
        Ok(Err(violation)) => (violation.invariant.to_owned(), violation.what),
        Err(panic) => ("panic".to_owned(), panic_text(panic.as_ref())),
    };
    let (world_ms, events) = (world.counts().world_ms, world.events());
    Err(Box::new(Failure { seed, invariant, what, options: Box::new(options), world_ms, events }))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a core panicked").to_owned()
}

#[cfg(test)]
mod tests;
