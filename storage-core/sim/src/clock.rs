//! A node's clock: an origin of its own and a speed that is a little wrong.
//!
//! Leases are the only thing in Torus that rests on clocks, and only on how fast they run
//! ([`READ_LEASE_MARGIN`](torus_core::limits::READ_LEASE_MARGIN)): speeds are drawn from within that promise, origins
//! from anywhere.

use crate::rng::Rng;
use torus_core::time::Instant;

/// Parts per million by which a clock may run fast or slow: two such clocks differ by less than the margin of a lease.
const DRIFT_PPM_MAX: u64 = 40_000;

/// One node's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin_ns: u64,
    speed_ppm: u64,
}

impl Clock {
    /// A clock with a random origin and, if it `drifts`, speed; a `wild` one breaks every promise.
    pub fn draw(rng: &mut Rng, drifts: bool, wild: bool) -> Self {
        let origin_ns = rng.within(0..1 << 50);
        let speed_ppm = match (wild, drifts) {
            (true, _) => *rng.pick(&[400_000, 1_000_000, 2_500_000]),
            (false, true) => rng.within(1_000_000 - DRIFT_PPM_MAX..1_000_000 + DRIFT_PPM_MAX + 1),
            (false, false) => 1_000_000,
        };
        Self { origin_ns, speed_ppm }
    }

    /// What this clock shows at world time `at`.
    #[must_use]
    pub fn local(&self, at: Instant) -> Instant {
        let elapsed = u128::from(at.0) * u128::from(self.speed_ppm) / 1_000_000;
        Instant(self.origin_ns + elapsed as u64)
    }

    /// The first world time at which this clock shows `local` or more.
    #[must_use]
    pub fn world(&self, local: Instant) -> Instant {
        let elapsed = u128::from(local.0.saturating_sub(self.origin_ns));
        Instant((elapsed * 1_000_000).div_ceil(u128::from(self.speed_ppm)).min(u128::from(u64::MAX)) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_reached_exactly_when_the_world_says_so() {
        let mut rng = Rng::new(1);
        for _ in 0..200 {
            let clock = Clock::draw(&mut rng, true, false);
            let deadline = Instant(clock.local(Instant(0)).0 + rng.within(0..10_000_000_000));
            let at = clock.world(deadline);
            assert!(clock.local(at) >= deadline);
            assert!(at.0 == 0 || clock.local(Instant(at.0 - 1)) < deadline);
        }
    }
}
