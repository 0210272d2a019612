//! Lines that tell what is going on, with the time since the start.

use std::time::Instant;

/// Tells, since when it was made.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    started: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        Self { started: Instant::now() }
    }
}

impl Progress {
    /// Prints a line.
    pub fn say(&self, what: &str) {
        println!("{:>7.1} s  {what}", self.seconds());
    }

    /// Seconds since the start.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}
