//! How many reads a disk is given at a time.
//!
//! Some disks, those of virtual machines above all, take whatever is queued, go on as long as more is queued, and tell of all of it
//! together when nothing is left. A client that keeps 32 reads under way gets 32 answers at once from such a disk, and asks for 32
//! more while the disk has nothing to do: client, agent and disk wait for each other in turn. Given one half at a time, the disk
//! reads that half while the other is on its way to the client and back (figures: `docs/benchmarks/two-copies.md`).
//!
//! A disk that tells of each read when it is done is given all there are.

/// A disk has as many reads at least.
const LEAST: usize = 8;
/// Reads over which is averaged.
const WINDOW: usize = 256;

/// What one disk was seen to do.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Of the last [`WINDOW`] reads, about how many were told of together with half of those that the disk had, or more.
    together: usize,
    /// Reads that are done since `most_now` began to be counted,
    done: usize,
    /// and the most that were asked for at a time since, and in the [`WINDOW`] before.
    most_now: usize,
    most_before: usize,
}

impl Pace {
    /// At one look, `done` of `given` reads were done.
    pub fn saw(&mut self, done: usize, given: usize) {
        self.done += done;
        if self.done >= WINDOW {
            (self.done, self.most_before) = (0, std::mem::take(&mut self.most_now));
        }
        if given < LEAST {
            return;
        }
        let weight = done.min(WINDOW);
        let share = if 2 * done >= given { weight } else { 0 };
        self.together = self.together * (WINDOW - weight) / WINDOW + share;
    }

    /// How many of `all` reads the disk is to have. All that a client keeps under way are never here at the same time: half of the
    /// most that there were of late is half of them.
    pub fn most(&mut self, all: usize) -> usize {
        self.most_now = self.most_now.max(all);
        let most = self.most_now.max(self.most_before);
        if 2 * self.together > WINDOW { LEAST.max(most.div_ceil(2)) } else { all }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_tells_of_all_together_is_given_half() {
        let mut pace = Pace::default();
        assert_eq!(pace.most(32), 32);
        (0..6).for_each(|_| pace.saw(32, 32));
        assert_eq!(pace.most(32), 16);
        // Half of what there is comes together as well.
        for _ in 0..1000 {
            assert_eq!((pace.most(32), pace.most(20)), (16, 16));
            pace.saw(16, 16);
        }
        assert_eq!(pace.most(33), 17);
        // Fewer are asked for.
        (0..32).for_each(|_| pace.saw(16, 16));
        assert_eq!((pace.most(3), pace.most(20)), (8, 10));
    }

    #[test]
    fn a_disk_that_goes_on_meanwhile_is_given_all() {
        let mut pace = Pace::default();
        (0..6).for_each(|_| pace.saw(32, 32));
        // One that was looked at late now and then is no other.
        (0..1000).for_each(|i| pace.saw(if i % 100 == 0 { 32 } else { 5 }, 32));
        assert_eq!(pace.most(32), 32);
        // A few at a time say nothing.
        (0..1000).for_each(|_| pace.saw(4, 4));
        assert_eq!(pace.most(32), 32);
    }
}
