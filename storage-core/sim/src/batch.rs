//! Many seeds: on several threads, one world per thread at a time.

use crate::{Failure, Kind, Mutation, Options, Report, run};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Which seeds to run, and how.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// The first seed.
    pub from: u64,
    /// How many.
    pub seeds: u64,
    /// Worlds at a time.
    pub threads: usize,
    /// Which owner.
    pub kind: Kind,
    /// A deliberate defect.
    pub mutation: Option<Mutation>,
    /// Stop at the first failure.
    pub stop: bool,
}

/// What came of a batch.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Seeds that went well.
    pub passed: u64,
    /// Seeds that did not, lowest first.
    pub failures: Vec<Failure>,
    /// Sums over those that went well.
    pub totals: Totals,
}

/// Sums over seeds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Events.
    pub events: u64,
    /// Operations acknowledged.
    pub acked: u64,
    /// Faults caused.
    pub faults: u64,
    /// Blocks that disks corrupted.
    pub corruptions: u64,
    /// Times an owner began to serve.
    pub opens: u64,
    /// Slots given back.
    pub deletes: u64,
    /// World time, milliseconds.
    pub world_ms: u64,
}

impl Totals {
    fn add(&mut self, report: &Report) {
        self.events += report.events;
        self.acked += report.counts.acked;
        self.faults += report.counts.faults;
        self.corruptions += report.counts.corruptions;
        self.opens += report.counts.opens;
        self.deletes += report.counts.deletes;
        self.world_ms += report.counts.world_ms;
    }
}

impl Batch {
    /// Runs the batch; `progress` is told of every seed that ended.
    ///
    /// # Panics
    /// When a thread cannot be started.
    pub fn run(&self, progress: impl Fn(u64, Option<&Failure>) + Sync) -> Outcome {
        let next = AtomicU64::new(self.from);
        let end = self.from + self.seeds;
        let stopped = AtomicBool::new(false);
        let outcome = Mutex::new(Outcome::default());
        std::thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| {
                    while !stopped.load(Ordering::Relaxed) {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= end {
                            break;
                        }
                        let result = run(seed, Options::draw(seed, self.kind), self.mutation, false);
                        let failure = result.as_ref().err().map(|failure| &**failure);
                        progress(seed, failure);
                        if failure.is_some() && self.stop {
                            stopped.store(true, Ordering::Relaxed);
                        }
                        let mut outcome = outcome.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        match result {
                            Ok(report) => {
                                outcome.passed += 1;
                                outcome.totals.add(&report);
                            }
                            Err(failure) => outcome.failures.push(*failure),
                        }
                    }
                });
            }
        });
        let mut outcome = outcome.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        outcome.failures.sort_by_key(|failure| failure.seed);
        outcome
    }
}
