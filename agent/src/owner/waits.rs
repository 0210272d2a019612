//! Tells why I/O waits, once it has waited for long enough to be noticed, and that it goes on.

use std::time::{Duration, Instant};
use torus_core::log::Blocked;

/// What is over sooner is not worth a line.
const NOTICED: Duration = Duration::from_secs(2);

/// Why I/O waits, for people.
pub(super) fn sentence(reason: Blocked) -> &'static str {
    match reason {
        Blocked::NoSpace => "I/O waits for space: the pool is full. Add disks, or delete data",
        Blocked::TooFewAgents => "I/O waits for agents: fewer can be reached than the volume needs",
        Blocked::Metadata => "I/O waits for the metadata store: the extents that were registered are used up",
    }
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Waits {
    reason: Option<(Blocked, Instant)>,
    told: bool,
}

/// What is to be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Word {
    /// It waits.
    Waits(Blocked),
    /// It goes on, after so long.
    GoesOn(Duration),
}

impl Waits {
    /// Takes in why I/O waits `now`, if it does.
    pub fn see(&mut self, now: Instant, blocked: Option<Blocked>) -> Option<Word> {
        match (self.reason, blocked) {
            (None, None) => None,
            (Some((_, since)), None) => {
                let Waits { told, .. } = std::mem::take(self);
                told.then(|| Word::GoesOn(now.saturating_duration_since(since)))
            }
            (Some((before, since)), Some(reason)) if before == reason => {
                let is_news = !self.told && now.saturating_duration_since(since) >= NOTICED;
                self.told |= is_news;
                is_news.then_some(Word::Waits(reason))
            }
            (_, Some(reason)) => {
                *self = Waits { reason: Some((reason, now)), told: false };
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_once_when_it_is_long_and_its_end_if_it_was_told() {
        let (mut waits, t) = (Waits::default(), Instant::now());
        let full = Some(Blocked::NoSpace);
        assert_eq!(waits.see(t, full), None);
        assert_eq!(waits.see(t + NOTICED / 2, None), None, "short");
        assert_eq!(waits.see(t, full), None);
        assert_eq!(waits.see(t + NOTICED, full), Some(Word::Waits(Blocked::NoSpace)));
        assert_eq!(waits.see(t + NOTICED * 2, full), None, "once");
        assert_eq!(waits.see(t + NOTICED * 3, Some(Blocked::Metadata)), None, "another reason begins");
        assert_eq!(waits.see(t + NOTICED * 4, Some(Blocked::Metadata)), Some(Word::Waits(Blocked::Metadata)));
        assert_eq!(waits.see(t + NOTICED * 5, None), Some(Word::GoesOn(NOTICED * 2)));
        assert_eq!(waits.see(t + NOTICED * 6, None), None);
    }
}
