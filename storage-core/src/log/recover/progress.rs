//! How far an opening has come: for people, and to know whether it still gets ahead.

use super::{Phase, Recovery};
use crate::time::{Duration, Instant};
use std::fmt;

/// What an opening does at the moment, and how much of that is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// In words, after "is".
    pub what: &'static str,
    /// Blocks that are done,
    pub done: u64,
    /// and blocks that there are to do; 0 where that cannot be counted.
    pub of: u64,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)?;
        match self.of {
            0 => Ok(()),
            of => write!(f, ", {} %", self.done.min(of) * 100 / of),
        }
    }
}

/// The end of waiting: an opening may take as long as it needs, as what there is to read goes by the volume's size; but
/// not longer than its opener is patient without getting ahead.
#[derive(Debug)]
pub struct Patience<const N: usize> {
    since: Option<Instant>,
    most: [u64; N],
}

impl<const N: usize> Default for Patience<N> {
    fn default() -> Self {
        Self { since: None, most: [0; N] }
    }
}

impl<const N: usize> Patience<N> {
    /// Whether none of `counts` has been higher than ever before for longer than `patience`. What is done again, because
    /// something else has turned out to be wrong, is no progress.
    pub fn is_over(&mut self, now: Instant, counts: [u64; N], patience: Duration) -> bool {
        let since = self.since.get_or_insert(now);
        for (most, count) in self.most.iter_mut().zip(counts) {
            if count > *most {
                (*most, *since) = (count, now);
            }
        }
        now.since(*since) > patience
    }
}

impl Recovery {
    /// What it is doing, for people.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let what = match self.phase {
            Phase::List | Phase::Claim | Phase::Relist => "claiming the volume",
            Phase::Fence => "fencing the previous owner",
            Phase::Index => "reading the log's tail",
            Phase::Fill => "completing copies",
            Phase::Wait => "waiting out the previous owner's read lease",
            Phase::Seal | Phase::SealCheck | Phase::Sealed => "sealing the log",
        };
        let (done, of) = match self.phase {
            Phase::Index => self.indexed(),
            Phase::Fill => self.filled(),
            _ => (0, 0),
        };
        Progress { what, done, of }
    }

    /// What grows while it gets ahead.
    pub(super) fn counts(&self) -> [u64; 4] {
        [self.phase as u64, self.answered() as u64, self.indexed().0, self.filled().0]
    }

    /// Blocks of the log whose frames are known, and of the whole log behind the checkpoint.
    fn indexed(&self) -> (u64, u64) {
        let log = self.extents.values().filter(|x| x.is_log() && !x.contained);
        log.fold((0, 0), |(done, of), x| (done + u64::from(x.reached()), of + u64::from(x.length)))
    }

    /// Blocks up to which copies are complete, and up to which they are to be.
    fn filled(&self) -> (u64, u64) {
        let fills = self.extents.values().flat_map(|x| x.fills.iter().map(|filling| (filling.at, x.length)));
        fills.fold((0, 0), |(done, of), (at, length)| (done + u64::from(at), of + u64::from(length)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_over_when_nothing_gets_ahead() {
        let (mut patience, most) = (Patience::default(), Duration::from_secs(3));
        let mut over = |secs: u64, counts| {
            let now = Instant::default() + Duration::from_secs(100 + secs);
            patience.is_over(now, counts, most)
        };
        assert!(!over(0, [0, 0]));
        assert!(!over(3, [0, 1]), "it got ahead in the last moment");
        assert!(!over(6, [2, 0]), "in another way");
        assert!(!over(9, [1, 1]));
        assert!(over(10, [2, 1]), "that had been there before");
    }

    #[test]
    fn progress_is_told_in_per_cent_where_there_is_something_to_count() {
        let progress = |done, of| Progress { what: "reading", done, of }.to_string();
        assert_eq!([progress(0, 0), progress(0, 7), progress(5, 7)], ["reading", "reading, 0 %", "reading, 71 %"]);
    }
}
