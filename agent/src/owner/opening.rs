//! Tells how an opening gets on that takes long: what it does, how much of that is done, and about how long it will take.

use std::time::{Duration, Instant};
use torus_core::log::recover::Progress;

/// A line after so long, and again after as long.
const PAUSE: Duration = Duration::from_secs(5);

/// An opening, as people see it.
#[derive(Debug, Default)]
pub(super) struct Opening {
    told: Option<Instant>,
    /// What it does, since when, and what of it was done then.
    step: Option<(&'static str, Instant, u64)>,
}

impl Opening {
    /// Takes in how far it is `now`. `Some`: the line that is due.
    pub fn see(&mut self, now: Instant, progress: &Progress) -> Option<String> {
        let told = *self.told.get_or_insert(now);
        let Progress { what, done, of } = *progress;
        let (_, since, at) = match self.step {
            Some(step) if step.0 == what => step,
            _ => *self.step.insert((what, now, done)),
        };
        if now.saturating_duration_since(told) < PAUSE {
            return None;
        }
        self.told = Some(now);
        let left = of.saturating_sub(done) as f64 / done.saturating_sub(at) as f64;
        let left = now.saturating_duration_since(since).as_secs_f64() * left;
        Some(match left.is_finite() {
            true => format!("{progress}, about {left:.0} s left"),
            false => progress.to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_long_is_told_with_the_time_that_is_left() {
        let (mut opening, t) = (Opening::default(), Instant::now());
        let mut see =
            |secs: u64, what, done, of| opening.see(t + Duration::from_secs(secs), &Progress { what, done, of });
        assert_eq!(see(0, "claiming", 0, 0), None);
        assert_eq!(see(4, "claiming", 0, 0), None, "short");
        assert_eq!(see(5, "claiming", 0, 0).unwrap(), "claiming");
        assert_eq!(see(6, "reading", 0, 400), None);
        assert_eq!(see(9, "reading", 90, 400), None, "not so soon again");
        assert_eq!(see(10, "reading", 100, 400).unwrap(), "reading, 25 %, about 12 s left");
        assert_eq!(see(16, "reading", 400, 400).unwrap(), "reading, 100 %, about 0 s left");
        assert_eq!(see(17, "completing", 7, 9), None);
        assert_eq!(see(22, "completing", 7, 9).unwrap(), "completing, 77 %", "nothing of it was done yet");
    }
}
