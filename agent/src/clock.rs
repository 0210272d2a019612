//! The monotonic clock that drivers read for the cores.

use std::time::Instant as StdInstant;
use torus_core::time::{Duration, Instant};

/// A monotonic clock whose readings mean something to its own clones alone.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: StdInstant,
}

impl Clock {
    /// A clock that begins a second above zero now: a core may subtract a little from any reading.
    #[must_use]
    pub fn start() -> Clock {
        Clock { origin: StdInstant::now() }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant(0) + Duration::from_secs(1) + self.origin.elapsed()
    }

    /// How long from now until `then`; zero when it is past.
    #[must_use]
    pub fn until(&self, then: Instant) -> Duration {
        then.since(self.now())
    }
}
