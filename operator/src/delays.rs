//! When to try again what failed: twice as long after each failure, up to a bound.

use std::collections::BTreeMap;
use std::time::Duration;

/// How long a failed action rests at most.
const DELAY_MAX: Duration = Duration::from_secs(120);
/// What was not tried for so long is forgotten: its object is gone.
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// Actions that failed. Times are on any clock that only goes forward.
#[derive(Debug, Default)]
pub struct Delays {
    failed: BTreeMap<String, Failed>,
}

#[derive(Debug)]
struct Failed {
    times: u32,
    again: Duration,
    why: String,
}

impl Delays {
    /// Why an action rests; `None`: it may be tried.
    pub fn resting(&self, what: &str, now: Duration) -> Option<&str> {
        self.failed.get(what).filter(|failed| now < failed.again).map(|failed| failed.why.as_str())
    }

    /// It failed.
    pub fn failed(&mut self, what: &str, now: Duration, why: &str) {
        self.failed.retain(|_, failed| now < failed.again + FORGOTTEN);
        let times = self.failed.get(what).map_or(0, |failed| failed.times).saturating_add(1);
        let delay = Duration::from_secs(1 << times.min(10)).min(DELAY_MAX);
        self.failed.insert(what.into(), Failed { times, again: now + delay, why: why.into() });
    }

    /// It succeeded.
    pub fn succeeded(&mut self, what: &str) {
        self.failed.remove(what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_end_with_success() {
        let mut delays = Delays::default();
        let mut now = Duration::ZERO;
        let is_due = |delays: &Delays, what: &str, seconds: u64, now: Duration| {
            delays.resting(what, now + Duration::from_secs(seconds)).is_none()
        };
        assert!(is_due(&delays, "a", 0, now));
        for seconds in [2, 4, 8, 16, 32, 64, 120, 120] {
            delays.failed("a", now, "no");
            assert_eq!(delays.resting("a", now), Some("no"));
            assert!(!is_due(&delays, "a", seconds - 1, now), "{seconds}");
            assert!(is_due(&delays, "a", seconds, now) && is_due(&delays, "b", 0, now), "{seconds}");
            now += Duration::from_secs(seconds);
        }
        delays.succeeded("a");
        delays.failed("a", now, "no");
        assert!(is_due(&delays, "a", 2, now));
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let mut delays = Delays::default();
        delays.failed("a", Duration::ZERO, "no");
        delays.failed("b", Duration::from_secs(4000), "no");
        assert_eq!(delays.failed.keys().collect::<Vec<_>>(), ["b"]);
    }
}
