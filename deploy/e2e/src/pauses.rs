//! Pauses by a small generator, so that a failure can be repeated.

use std::time::Duration;

/// Pauses of changing length.
#[derive(Clone, Debug)]
pub struct Pauses {
    seed: u64,
    least_ms: u64,
    most_ms: u64,
}

impl Pauses {
    /// Pauses of `least_ms` to `most_ms` milliseconds, in an order that `seed` decides.
    #[must_use]
    pub fn new(seed: u64, least_ms: u64, most_ms: u64) -> Self {
        assert!(least_ms < most_ms, "from {least_ms} ms to {most_ms} ms there is nothing");
        Self { seed, least_ms, most_ms }
    }

    /// The next one.
    pub fn draw(&mut self) -> Duration {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Duration::from_millis(self.least_ms + (self.seed >> 33) % (self.most_ms - self.least_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_pauses_within_bounds() {
        let (mut a, mut b) = (Pauses::new(7, 100, 300), Pauses::new(7, 100, 300));
        let drawn: Vec<_> = (0..100).map(|_| a.draw()).collect();
        assert!(drawn.iter().all(|pause| *pause == b.draw() && (100..300).contains(&pause.as_millis())));
        assert!(drawn.iter().any(|pause| *pause != drawn[0]));
    }
}
