//! How many extents more there is room for, and for what.
//!
//! The last extents are kept for what makes room. Clients' records leave one for moved records and those of a checkpoint; moved
//! records leave those of a checkpoint: without one nothing that was emptied is ever given back. Agents keep a reserve of their
//! own for the same purpose, which several volumes share; this holds however large a checkpoint is.
//!
//! An extent takes a slot on each of its members, and which these are the ring says. So what is kept is counted as if the ring
//! always chose the agents with the least room; what clients may still take, as if it chose those with the most: if it does not,
//! an agent refuses, which counts more than any estimate.

use super::Log;
use super::open::{OpenExtent, Phase};
use super::peers::Peer;
use crate::format::Stream;
use crate::ids::{AgentId, Blocks};
use crate::limits::reserve_slots;

/// Extents that could be registered now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Room {
    /// For clients' records.
    pub data: u32,
    /// For moved records.
    pub cold: u32,
    /// For a checkpoint.
    pub last: u32,
}

/// What an extent is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Use {
    Data,
    Cold,
    Checkpoint,
}

impl Use {
    pub(super) fn of(stream: Stream, cold: bool) -> Use {
        match (stream, cold) {
            (Stream::Checkpoint, _) => Use::Checkpoint,
            (Stream::Log, true) => Use::Cold,
            (Stream::Log, false) => Use::Data,
        }
    }
}

/// Extents of `copies` members that fit in so many slots of different agents at best: with all but the `i` fullest agents'
/// slots, each extent needs `copies - i` at least.
fn at_best(mut free: Vec<u32>, copies: usize) -> u32 {
    free.sort_unstable_by_key(|slots| std::cmp::Reverse(*slots));
    let rest = |i: usize| free.iter().skip(i).map(|slots| u64::from(*slots)).sum::<u64>();
    (0..copies).map(|i| rest(i) / (copies - i) as u64).min().unwrap_or(0) as u32
}

/// Extents of `copies` members, or `least` where there are no more, that fit in any case. Nothing fits any more when fewer than
/// `least` agents have a slot left: all others are used up, and an extent takes at most one slot of each of them, and `copies` of all
/// together. The fewest are needed for that where those that are left over had the most. No more than `most` are counted.
fn at_worst(free: &[u32], copies: usize, least: usize, most: u32) -> u32 {
    let mut free = free.to_vec();
    free.sort_unstable();
    let used_up = &free[..free.len().saturating_sub(least - 1)];
    let slots: u64 = used_up.iter().map(|slots| u64::from(*slots)).sum();
    let longest = used_up.last().copied().unwrap_or(0);
    (slots.div_ceil(copies as u64) as u32).max(longest).min(most)
}

impl Log {
    /// How many extents more there is room for. What is kept for others is counted no further than matters.
    #[must_use]
    pub fn room(&self) -> Room {
        let free = self.slots(|peer| if peer.full_at == Some(0) { 0 } else { peer.space.free });
        let last = at_worst(&free, self.config.replicas, self.members_min(), self.checkpoint + 2);
        let cold = last.saturating_sub(self.checkpoint);
        let data = if cold > 1 { at_best(self.slots(Peer::data_slots), self.members_min()) } else { 0 };
        Room { data, cold, last }
    }

    /// Members that a new extent has at the least. Agents that have failed, or cannot be reached, are done without; those that
    /// are merely full only where no room can be made on them.
    pub(super) fn members_min(&self) -> usize {
        let able = self.peers.iter().filter(|&(id, peer)| self.peers.usable(id) && peer.space.total > 0).count();
        let wanted = if self.degrade { 0 } else { self.config.replicas.min(able) };
        wanted.max(self.config.min_replicas).max(1)
    }

    /// Whether full agents are done without, as no room can be made on them.
    pub fn degrade(&mut self, degrade: bool) {
        self.degrade = degrade;
    }

    /// Slots of each agent that can be reached, less those that extents which were registered are about to take.
    fn slots(&self, free: impl Fn(&Peer) -> u32) -> Vec<u32> {
        let coming = |x: &&OpenExtent| matches!(x.phase, Phase::Registering | Phase::Creating);
        let coming: Vec<AgentId> = self
            .writer
            .open
            .values()
            .filter(coming)
            .flat_map(|x| x.members.iter().filter(|m| !m.created).map(|m| m.agent))
            .collect();
        let slots = |(id, peer): (AgentId, &Peer)| {
            free(peer).saturating_sub(coming.iter().filter(|agent| **agent == id).count() as u32)
        };
        self.peers.iter().filter(|&(id, _)| self.peers.usable(id)).map(slots).collect()
    }

    /// Whether an extent may be registered, or copied, without taking what is kept for others.
    pub(super) fn may_take(&self, what: Use) -> bool {
        let Room { cold, .. } = self.room();
        match what {
            Use::Data => cold > 1,
            Use::Cold => cold > 0,
            Use::Checkpoint => true,
        }
    }

    /// A checkpoint takes so many extents.
    pub fn keep_for_checkpoint(&mut self, extents: u32) {
        self.checkpoint = extents;
    }

    /// Extents that are declared dead, or ended empty, with copies on agents that can be reached.
    #[must_use]
    pub fn leaving(&self) -> u32 {
        let held = |seq| {
            let entry = self.table.get(seq).into_iter();
            entry.flat_map(|e| e.members.iter().filter(|m| e.dead || !m.synced))
        };
        let going = self.dead.keys().chain(self.empty.keys());
        going.filter(|&&seq| held(seq).any(|m| self.peers.usable(m.agent))).count() as u32
    }

    /// Blocks that are written of the extent for moved records that has most room, if there is one or one is coming.
    #[must_use]
    pub fn cold_length(&self) -> Option<Blocks> {
        let coming = |x: &&OpenExtent| matches!(x.phase, Phase::Registering | Phase::Creating | Phase::Ready);
        let cold = self.writer.open.values().filter(|x| x.cold && x.stream == Stream::Log).filter(coming);
        cold.map(|x| x.length).min()
    }

    /// Extents that clients' records use up at once when those that are open are full, the spare included.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.writer.width as u32 + 1
    }
}

impl Peer {
    /// Slots that it gives to clients' records: as many as its reserve leaves, and none where it has refused.
    pub(super) fn data_slots(&self) -> u32 {
        match self.full_at {
            Some(_) => 0,
            None => self.space.free.saturating_sub(reserve_slots(self.space.total).max(self.reserve)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{at_best, at_worst};
    use proptest::prelude::*;

    /// Extents that fit when each goes to the agents with most room.
    fn taken(mut free: Vec<u32>, copies: usize) -> u32 {
        let mut extents = 0;
        loop {
            free.sort_unstable_by_key(|slots| std::cmp::Reverse(*slots));
            if free.len() < copies || free[copies - 1] == 0 {
                return extents;
            }
            free[..copies].iter_mut().for_each(|slots| *slots -= 1);
            extents += 1;
        }
    }

    proptest! {
        #[test]
        fn what_fits_at_best_does(free in prop::collection::vec(0u32..20, 0..6), copies in 1usize..4) {
            prop_assert_eq!(at_best(free.clone(), copies), taken(free, copies));
        }

        /// Whatever agents the ring chooses.
        #[test]
        fn what_fits_at_worst_does(
            free in prop::collection::vec(0u32..8, 0..5),
            copies in 1usize..4,
            less in 0usize..3,
            choices in prop::collection::vec(prop::collection::vec(any::<u32>(), 5), 64),
        ) {
            let least = copies.saturating_sub(less).max(1);
            let sure = at_worst(&free, copies, least, 50);
            let mut left: Vec<(usize, u32)> = free.into_iter().enumerate().collect();
            for round in 0..sure as usize {
                left.retain(|(_, slots)| *slots > 0);
                prop_assert!(left.len() >= least, "round {round} of {sure}: {left:?}");
                left.sort_by_key(|(agent, _)| choices[round % 64][*agent]);
                left.iter_mut().take(copies).for_each(|(_, slots)| *slots -= 1);
            }
        }
    }

    #[test]
    fn no_more_is_counted_than_was_asked_for() {
        assert_eq!(at_worst(&[100, 100], 2, 2, 7), 7);
        assert_eq!(at_worst(&[1, 2, 0], 2, 1, 9), 2);
        assert_eq!(at_worst(&[2, 2, 2], 2, 2, 9), 2);
        // Three pairs of the smaller ones, and one with what is left of them.
        assert_eq!(at_worst(&[2, 5, 2, 3], 2, 2, 9), 4);
        assert_eq!(at_worst(&[4], 2, 2, 9), 0);
    }
}
