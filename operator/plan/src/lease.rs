//! Who leads: one of several operators, by a Lease object of Kubernetes. Pure: [`Election::step`] is told what was read, and says what
//! to write.
//!
//! Times in the object are for people. An operator counts on its own clock, from when it saw the object change: clocks
//! that disagree between machines then do no harm.
//!
//! Invariants:
//! 1. Who did not see its own renewal succeed for [`RENEW_DEADLINE`] leads no more: that is less than [`TERM`], after which
//!    another may lead.
//! 2. A write is conditional on the version that was read.
//!
//! A leader that is paused may still act for a moment when another leads already. That is safe: every action is conditional on what it was
//! planned from (uid, version, epoch), or says the same again.

use std::time::Duration;

/// How long after its last renewal a lease may be taken by another.
pub const TERM: Duration = Duration::from_secs(15);
/// How long after its last renewal a leader stops leading.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often to look, and to renew.
pub const PERIOD: Duration = Duration::from_secs(2);

/// The lease as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Who holds it; empty when it was given back.
    pub holder: String,
    /// The object's version.
    pub version: String,
    /// How often it went from one to another.
    pub transitions: i32,
}

/// What to write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Write {
    /// Nothing.
    Nothing,
    /// Make the object.
    Create,
    /// Write our name and the time, if the version still is this.
    Hold {
        /// The version that was read.
        version: String,
        /// How often it will have changed hands.
        transitions: i32,
        /// Whether it was another's before.
        is_new: bool,
    },
}

/// One operator's part in the election.
#[derive(Clone, Debug)]
pub struct Election {
    identity: String,
    /// The version seen last, and when it was seen first.
    seen: Option<(String, Duration)>,
    /// When our last successful write was begun.
    held_since_write: Option<Duration>,
}

impl Election {
    /// Takes part under a name that no other has.
    #[must_use]
    pub fn new(identity: String) -> Election {
        Election { identity, seen: None, held_since_write: None }
    }

    /// Whether this one leads.
    #[must_use]
    pub fn leads(&self, now: Duration) -> bool {
        self.held_since_write.is_some_and(|write| now.saturating_sub(write) < RENEW_DEADLINE)
    }

    /// What to write, having read `record` (`None`: there is no object).
    pub fn step(&mut self, now: Duration, record: Option<&Record>) -> Write {
        let Some(record) = record else { return Write::Create };
        if self.seen.as_ref().is_none_or(|(version, _)| *version != record.version) {
            self.seen = Some((record.version.clone(), now));
        }
        let changed = self.seen.as_ref().map_or(now, |(_, at)| *at);
        let is_ours = record.holder == self.identity;
        if !is_ours {
            self.held_since_write = None;
        }
        let is_free = record.holder.is_empty() || now.saturating_sub(changed) >= TERM;
        if is_ours || is_free {
            let transitions = if is_ours { record.transitions } else { record.transitions.saturating_add(1) };
            Write::Hold { version: record.version.clone(), transitions, is_new: !is_ours }
        } else {
            Write::Nothing
        }
    }

    /// A write that was begun at `begun` succeeded.
    pub fn written(&mut self, begun: Duration) {
        self.held_since_write = Some(begun);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn record(holder: &str, version: u64) -> Record {
        Record { holder: holder.into(), version: version.to_string(), transitions: 0 }
    }

    #[test]
    fn a_lease_is_made_held_and_taken_over_when_it_is_not_renewed() {
        let (mut a, mut b) = (Election::new("a".into()), Election::new("b".into()));
        assert_eq!(a.step(at(0), None), Write::Create);
        a.written(at(0));
        assert!(a.leads(at(9)) && !a.leads(at(10)));
        let held = Write::Hold { version: "1".into(), transitions: 0, is_new: false };
        assert_eq!(a.step(at(2), Some(&record("a", 1))), held);
        assert_eq!(b.step(at(1), Some(&record("a", 1))), Write::Nothing);
        assert_eq!(b.step(at(14), Some(&record("a", 2))), Write::Nothing);
        assert_eq!(b.step(at(28), Some(&record("a", 2))), Write::Nothing);
        let taken = Write::Hold { version: "2".into(), transitions: 1, is_new: true };
        assert_eq!(b.step(at(29), Some(&record("a", 2))), taken);
        b.written(at(29));
        assert!(b.leads(at(30)));
        assert_eq!(a.step(at(30), Some(&record("b", 3))), Write::Nothing);
        assert!(!a.leads(at(30)));
    }

    #[test]
    fn a_lease_that_was_given_back_is_taken_at_once() {
        let mut b = Election::new("b".into());
        assert!(matches!(b.step(at(1), Some(&record("", 7))), Write::Hold { is_new: true, .. }));
    }

    proptest! {
        /// Two operators whose clocks run alike but start anywhere, whose writes may fail: never both lead.
        #[test]
        fn never_two_lead(moves in proptest::collection::vec((any::<bool>(), any::<bool>(), 0..6_u64), 1..200), offset in 0..1000_u64) {
            let mut both = [Election::new("a".into()), Election::new("b".into())];
            let clocks = [0, offset];
            let mut object: Option<(String, u64)> = None;
            let mut now = 0;
            for (who, succeeds, passed) in moves {
                now += passed;
                let who = usize::from(who);
                let here = at(now + clocks[who]);
                let read = object.as_ref().map(|(holder, version)| record(holder, *version));
                let write = both[who].step(here, read.as_ref());
                if write != Write::Nothing && succeeds {
                    let version = object.as_ref().map_or(0, |(_, version)| *version) + 1;
                    object = Some((["a", "b"][who].into(), version));
                    both[who].written(here);
                }
                let leading = (0..2).filter(|who| both[*who].leads(at(now + clocks[*who]))).count();
                prop_assert!(leading <= 1);
            }
        }
    }
}
