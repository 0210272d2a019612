//! Whether the plane's thread carries an operation out itself, and waits for it.
//!
//! An owner that asks for one thing at a time leaves the thread nothing to do until the disk has answered. Going to sleep in
//! `epoll` then, and being woken by the ring, whose sync is run by a worker of its own, takes four changes of thread more
//! than waiting in the system call: a third of what the agent spends on such a write.
//!
//! 1. Only an operation that is small and alone, on an agent with one disk: nothing on its way to the disk, nothing else to
//!    be done in this turn. What arrives meanwhile waits for it, so where something did, the ring is used for the next
//!    [`CROWDED_OPS`] operations: what waits gathers for one commit anyway, but reads would lose their depth.
//! 2. A disk that is slow is left to the ring for [`SLOW_PAUSE`]: fences and leases are not to wait for it.

use std::time::{Duration, Instant};
use torus_core::member::DiskOp;

/// Larger operations go to the ring.
const BYTES_MAX: usize = 64 << 10;
/// A request that is met this soon after the last answer left had waited.
const WAITED: Duration = Duration::from_micros(30);
/// Operations that go to the ring after that.
const CROWDED_OPS: u32 = 64;
/// A disk that takes longer, on a moving average over [`SHARE`] operations, is slow,
const SLOW: Duration = Duration::from_millis(2);
const SHARE: u32 = 8;
/// and is left to the ring for so long.
const SLOW_PAUSE: Duration = Duration::from_secs(5);

/// What is known of how it went so far.
#[derive(Debug, Default)]
pub(super) struct Alone {
    /// When the answer to the last operation that was carried out here left.
    answered: Option<Instant>,
    /// Operations that are still to go to the ring.
    crowded: u32,
    mean: Duration,
    slow_until: Option<Instant>,
}

impl Alone {
    /// Requests were met in a turn that began at `now`.
    pub fn met(&mut self, now: Instant) {
        if self.answered.take().is_some_and(|at| now.saturating_duration_since(at) < WAITED) {
            self.crowded = CROWDED_OPS;
        }
    }

    /// Whether `op`, which is alone, is to be carried out here.
    pub fn takes(&mut self, op: &DiskOp, now: Instant) -> bool {
        if self.crowded > 0 {
            self.crowded -= 1;
            return false;
        }
        if self.slow_until.is_some_and(|until| now < until) {
            return false;
        }
        self.slow_until = None;
        let bytes = match op {
            DiskOp::Read { len, .. } => *len,
            DiskOp::Commit { writes, .. } => writes.iter().map(|write| write.len()).sum(),
        };
        bytes <= BYTES_MAX
    }

    /// One that was carried out here took from `began` to `ended`.
    pub fn done(&mut self, began: Instant, ended: Instant) {
        let took = ended.saturating_duration_since(began);
        self.mean = (self.mean * (SHARE - 1) + took) / SHARE;
        if self.mean > SLOW {
            self.mean = Duration::ZERO;
            self.slow_until = Some(ended + SLOW_PAUSE);
        }
    }

    /// The answer to it has left.
    pub fn answered(&mut self, now: Instant) {
        self.answered = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: DiskOp = DiskOp::Read { id: 1, offset: 0, len: 4096 };

    #[test]
    fn one_at_a_time_is_carried_out_here_until_something_had_to_wait() {
        let (mut alone, t) = (Alone::default(), Instant::now());
        for _ in 0..100 {
            alone.met(t);
            assert!(alone.takes(&READ, t));
            alone.done(t, t + Duration::from_micros(100));
        }
        alone.answered(t);
        alone.met(t + 2 * WAITED);
        assert!(alone.takes(&READ, t), "it came in its own time");
        alone.answered(t);
        alone.met(t + WAITED / 2);
        let here = (0..=CROWDED_OPS).filter(|_| alone.takes(&READ, t)).count();
        assert_eq!(here, 1, "the next {CROWDED_OPS} go to the ring, and then it is tried again");
    }

    #[test]
    fn a_slow_disk_is_left_to_the_ring_for_a_while() {
        let (mut alone, t) = (Alone::default(), Instant::now());
        alone.done(t, t + Duration::from_millis(8));
        assert!(alone.takes(&READ, t), "once is no habit");
        for _ in 0..4 {
            alone.done(t, t + Duration::from_millis(8));
        }
        assert!(!alone.takes(&READ, t));
        assert!(alone.takes(&READ, t + SLOW_PAUSE + Duration::from_millis(8)));
        alone.done(t, t + Duration::from_secs(1));
        assert!(!alone.takes(&READ, t + SLOW_PAUSE), "a stall is enough at once");
    }

    #[test]
    fn what_is_large_goes_to_the_ring() {
        let (mut alone, t) = (Alone::default(), Instant::now());
        assert!(!alone.takes(&DiskOp::Read { id: 1, offset: 0, len: BYTES_MAX + 4096 }, t));
        assert!(alone.takes(&DiskOp::Read { id: 1, offset: 0, len: BYTES_MAX }, t));
    }
}
