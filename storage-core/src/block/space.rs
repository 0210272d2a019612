//! Room: when extents are emptied, when a checkpoint gives them back, whether writes that find none may hope.
//!
//! One look at the volume and its pool ([`Ledger`]) and one decision ([`Plan`]), so that the three answers cannot contradict
//! each other: a write that waits for room waits for something that is being done.
//!
//! **Slots, not blocks.** An extent takes a slot on each of its members however short it is, and so do the ones that are open,
//! spare, for moved records, and for checkpoints. So everything here counts extents. Emptying some gains what they were less
//! what their survivors take when they are packed together, which is worked out with the headers that packing costs.
//!
//! **Late.** Every overwrite makes garbage in older extents, so a block that is moved later is more likely not to need moving
//! at all. Collection therefore begins when the supply of extents (free, or on their way to it) goes below [`Plan::low`]: what
//! clients use up until the next checkpoint has given back a batch. Then one extent is emptied for each that is used up. Only what
//! is nearly empty is collected at any time, as that costs next to nothing.
//!
//! **In batches.** An emptied extent is free only after a checkpoint has declared it dead, and a checkpoint is written in full.
//! [`Plan::batch`] extents share one; while they wait they are no room for garbage, which makes collection dearer, so the
//! batch is a small part of that room.
//!
//! 1. Collection has a place to move records to, always: data takes no extent that would leave less than one for moved
//!    records and those of a checkpoint; moved records take none that would leave less than those of a checkpoint (see
//!    [`Log::room`](crate::log::Log::room)). Agents keep a reserve for the same two as well, for all volumes together.
//! 2. *Hope implies work*: [`Plan::hope`] holds only if copies are being deleted, or a checkpoint can be written that declares
//!    something dead, or [`Plan::collect`] holds.
//! 3. *Work implies progress*: an extent is emptied only if that saves a sixteenth of it at least, counted in packed blocks, and
//!    only while the candidates, all together, give back one extent or more. What is saved stays in the open cold extent, and
//!    emptying one takes at most one new extent; so after sixteen at most, one more is free than before. Extents that cannot be read
//!    are no candidates.
//!
//! Not here: how an extent is emptied ([`super::gc`]), how a checkpoint is written ([`super::checkpoint`]).

use super::map::ExtentIndex;
use crate::format::Stream;
use crate::ids::{Blocks, ExtentSeq};
use crate::log::{Log, Room};

/// A sealed extent that could be emptied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Which.
    pub index: ExtentIndex,
    /// Its number.
    pub seq: ExtentSeq,
    /// Blocks of it that the map refers to.
    pub live: Blocks,
    /// Records of the log since its last one.
    pub age: u64,
}

/// What there is, in extents.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ledger {
    /// Blocks of an extent.
    pub capacity: Blocks,
    /// Extents that clients' records may still be given.
    pub data: u32,
    /// Extents that moved records may still be given.
    pub cold: u32,
    /// Extents that a checkpoint may still be given.
    pub last: u32,
    /// Extents that a checkpoint takes.
    pub checkpoint: u32,
    /// One is being written, and has so many already.
    pub writing: Option<u32>,
    /// Payload that fits in the extent which is open for moved records, or is about to be.
    pub cold_left: Option<Blocks>,
    /// Extents that clients' records use up at once when those that are open are full.
    pub width: u32,
    /// An extent for clients' records was refused.
    pub refused: bool,
    /// Clients' records wait for an extent.
    pub starved: bool,
    /// Extents that are garbage, and not declared dead.
    pub undeclared: u32,
    /// Extents that are declared dead, with copies on agents that can be reached.
    pub leaving: u32,
    /// Sealed extents that hold something, and can be read.
    pub candidates: Vec<Candidate>,
}

/// What a volume's sealed extents hold, in blocks of one copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// All of them.
    pub sealed: u64,
    /// Those that the map refers to.
    pub live: u64,
}

impl Usage {
    /// Looks at a volume.
    #[must_use]
    pub fn of(log: &Log) -> Usage {
        let sealed = log.table.iter().filter(|(_, e)| e.stream == Stream::Log && !e.dead);
        sealed.filter_map(|(_, e)| Some((e.seal()?.length, e.live))).fold(Usage::default(), |sum, (length, live)| {
            Usage { sealed: sum.sealed + u64::from(length), live: sum.live + u64::from(live) }
        })
    }

    /// Blocks that nothing refers to, headers included.
    #[must_use]
    pub fn garbage(&self) -> u64 {
        self.sealed - self.live
    }
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Empty an extent.
    pub collect: Option<Effort>,
    /// Write a checkpoint, as soon as the one that is being written is done.
    pub declare: bool,
    /// Writes that find no room may wait for it.
    pub hope: bool,
    /// Extents below which collection begins.
    pub low: u32,
    /// Emptied extents that share a checkpoint.
    pub batch: u32,
    /// Extents for clients' records that may be in use side by side: each is half empty most of the time.
    pub width: u32,
}

/// Which extents are emptied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effort {
    /// Those that are nearly empty.
    Little,
    /// The one that pays most.
    Full,
}

/// Payload of moved records that fits in an extent, after the header of each frame is counted with the payload: less what a
/// record that does not fit leaves at the end, and the header of the frame that is split there.
fn room_of(capacity: Blocks) -> Blocks {
    capacity - capacity / 64 - 2
}

/// Blocks that `live` moved blocks take at most, with a header for each 64 of them and one for what is left over.
fn packed(live: Blocks) -> Blocks {
    live + live / 64 + 2
}

/// Longest record that is moved: what is left over at an extent's end is no more.
#[must_use]
pub fn moved_blocks_max(capacity: Blocks) -> Blocks {
    (capacity / 64).clamp(1, crate::limits::FRAME_PAYLOAD_BLOCKS_MAX)
}

/// Blocks of room that emptying an extent with so many live ones makes.
#[must_use]
pub fn room_made(capacity: Blocks, live: Blocks) -> Blocks {
    room_of(capacity).saturating_sub(packed(live))
}

/// Payload that surely fits in an extent for moved records of which `length` blocks are written.
#[must_use]
pub fn cold_left(capacity: Blocks, length: Blocks) -> Blocks {
    room_of(capacity).saturating_sub(length)
}

impl Ledger {
    /// Looks at a volume of which a checkpoint takes so many extents, and the one that is `writing` has so many. Only what is
    /// `readable` can be emptied.
    #[must_use]
    pub fn of(log: &Log, checkpoint: u32, writing: Option<u32>, readable: impl Fn(ExtentSeq) -> bool) -> Ledger {
        let Room { data, cold, last } = log.room();
        let capacity = log.config.capacity;
        let acked = log.writer.acked();
        let mut ledger = Ledger {
            capacity,
            data,
            cold,
            last,
            checkpoint,
            writing,
            cold_left: log.cold_length().map(|length| cold_left(capacity, length)),
            width: log.width(),
            refused: log.is_refused(),
            starved: log.writer.starved(false),
            undeclared: 0,
            leaving: log.leaving(),
            candidates: Vec::new(),
        };
        for (index, entry) in log.table.iter().filter(|(_, e)| !e.dead) {
            if entry.is_garbage() {
                ledger.undeclared += u32::from(!entry.is_empty());
                continue;
            }
            let Some(seal) = entry.seal().filter(|_| entry.stream == Stream::Log) else { continue };
            if readable(entry.seq) && entry.members.iter().any(|m| log.peers.usable(m.agent)) {
                let age = acked.0.saturating_sub(seal.last.0);
                ledger.candidates.push(Candidate { index, seq: entry.seq, live: entry.live, age });
            }
        }
        ledger
    }

    /// Emptying it saves enough.
    fn pays(&self, candidate: &Candidate) -> bool {
        room_made(self.capacity, candidate.live) >= self.capacity / 16
    }

    /// Next to nothing is left of it.
    fn is_cheap(&self, candidate: &Candidate) -> bool {
        candidate.live <= self.capacity / 8
    }

    /// How many extents more are free when the best of those with at most so many live blocks, sorted, are packed together.
    fn gain(&self, live: impl Iterator<Item = Blocks>) -> u32 {
        let (left, room) = (u64::from(self.cold_left.unwrap_or(0)), u64::from(room_of(self.capacity)));
        let mut sum = 0;
        let gains = (1u64..).zip(live).map(|(emptied, live)| {
            sum += u64::from(packed(live));
            emptied.saturating_sub(sum.saturating_sub(left).div_ceil(room))
        });
        gains.max().unwrap_or(0) as u32
    }

    /// Whether moved records have where to go.
    fn can_move(&self, candidate: &Candidate) -> bool {
        self.cold > 0 || self.cold_left.is_some_and(|left| packed(candidate.live) <= left)
    }

    /// Whether the checkpoint that is wanted, or being written, finds room.
    fn can_declare(&self) -> bool {
        self.last + self.writing.unwrap_or(0) >= self.checkpoint
    }

    /// Decides.
    #[must_use]
    pub fn plan(&self) -> Plan {
        let mut paying: Vec<Candidate> = self.candidates.iter().copied().filter(|c| self.pays(c)).collect();
        paying.sort_unstable_by_key(|c| c.live);
        let gain = self.gain(paying.iter().map(|c| c.live));
        let supply = if self.refused { 0 } else { self.data } + self.undeclared + self.leaving;
        // What garbage may take: all that is not needed to hold what is live.
        let spare = supply + gain;
        let batch = (spare / 12).max(1);
        let width = (spare / 12).max(1);
        let low = (batch + self.width.min(width + 1)).min(spare / 3).max(1);
        let possible = self.can_declare() && paying.first().is_some_and(|c| self.can_move(c));
        let cheap = self.gain(paying.iter().filter(|c| self.is_cheap(c)).map(|c| c.live));
        let collect = match possible {
            true if gain > 0 && supply < low => Some(Effort::Full),
            true if cheap > 0 => Some(Effort::Little),
            _ => None,
        };
        // What is on its way needs no other checkpoint.
        let short = self.starved && self.leaving == 0;
        let declare = self.undeclared > 0 && self.can_declare() && (self.undeclared >= batch || short);
        let coming = (self.undeclared > 0 || self.writing.is_some()) && self.can_declare();
        Plan { collect, declare, hope: self.leaving > 0 || coming || collect.is_some(), low, batch, width }
    }

    /// The extent to empty next: of the nearly empty ones the emptiest, otherwise the one that gives most room, for the longest
    /// time, for the least work. (What has not been overwritten for long will not be soon, so the room that it gives lasts.)
    #[must_use]
    pub fn choose(&self, effort: Effort) -> Option<Candidate> {
        let paying = self.candidates.iter().filter(|c| self.pays(c) && self.can_move(c));
        match effort {
            Effort::Little => paying.min_by_key(|c| (c.live, c.seq)).copied(),
            Effort::Full => paying.max_by_key(|c| (self.worth(c), std::cmp::Reverse(c.seq))).copied(),
        }
    }

    fn worth(&self, candidate: &Candidate) -> u128 {
        let (live, room) = (u64::from(packed(candidate.live)), u64::from(room_of(self.capacity)));
        let free = u128::from(room.saturating_sub(live));
        free * u128::from(candidate.age + 1) * 1024 / u128::from(room + live)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAPACITY: Blocks = 1024;

    fn candidates(live: &[Blocks]) -> Vec<Candidate> {
        let candidate = |(i, &live): (usize, &Blocks)| Candidate {
            index: ExtentIndex::new(i as u32).unwrap(),
            seq: ExtentSeq(i as u64 + 1),
            live,
            age: 10 * (i as u64 % 7),
        };
        live.iter().enumerate().map(candidate).collect()
    }

    /// A pool that has refused clients' records.
    fn full(last: u32, checkpoint: u32, live: &[Blocks]) -> Ledger {
        Ledger {
            capacity: CAPACITY,
            cold: last.saturating_sub(checkpoint),
            last,
            checkpoint,
            width: 2,
            refused: true,
            starved: true,
            candidates: candidates(live),
            ..Ledger::default()
        }
    }

    /// Empties what is chosen, and has a checkpoint declare it dead, until one extent more is free than before; how many it
    /// took.
    fn steps_until_one_is_free(mut ledger: Ledger) -> Option<u32> {
        let (before, mut steps) = (ledger.last, 0);
        while ledger.last <= before {
            let victim = ledger.choose(ledger.plan().collect?)?;
            let mut moved = packed(victim.live);
            let left = ledger.cold_left.unwrap_or(0);
            if moved > left {
                // It fills the extent for moved records, and goes on in another one.
                assert!(ledger.cold > 0, "nowhere to move to: {ledger:?}");
                (moved, ledger.last) = (moved - left, ledger.last - 1);
                ledger.cold_left = Some(room_of(CAPACITY));
            }
            ledger.cold_left = ledger.cold_left.map(|left| left - moved);
            assert!(ledger.last >= ledger.checkpoint, "no room for a checkpoint: {ledger:?}");
            ledger.candidates.retain(|c| c.seq != victim.seq);
            ledger.last += 1;
            ledger.cold = ledger.last - ledger.checkpoint;
            steps += 1;
        }
        Some(steps)
    }

    proptest! {
        #[test]
        fn hope_implies_that_something_is_being_done(
            (data, last, checkpoint) in (0u32..4, 0u32..6, 1u32..4),
            (undeclared, leaving, writing) in (0u32..3, 0u32..2, prop::option::of(0u32..3)),
            (refused, starved) in (any::<bool>(), any::<bool>()),
            cold_left in prop::option::of(0..CAPACITY),
            live in prop::collection::vec(1..CAPACITY, 0..12),
        ) {
            let ledger = Ledger {
                data, undeclared, leaving, writing, refused, starved, cold_left, ..full(last, checkpoint, &live)
            };
            let plan = ledger.plan();
            let declaring = writing.is_some() || plan.declare || undeclared > 0 && !starved
                || undeclared > 0 && leaving > 0;
            prop_assert!(!plan.hope || leaving > 0 || declaring || plan.collect.is_some(), "{plan:?} {ledger:?}");
            if let Some(effort) = plan.collect {
                let victim = ledger.choose(effort).expect("what is to be collected can be chosen");
                prop_assert!(ledger.can_move(&victim) && ledger.can_declare());
            }
        }

        #[test]
        fn collection_in_a_full_pool_frees_an_extent_in_the_end(
            checkpoint in 1u32..4,
            spare in 1u32..3,
            live in prop::collection::vec(1..CAPACITY, 0..40),
        ) {
            let ledger = full(checkpoint + spare, checkpoint, &live);
            if ledger.plan().hope {
                let steps = steps_until_one_is_free(ledger.clone());
                prop_assert!(steps.is_some_and(|steps| steps <= 17), "{steps:?} {ledger:?}");
            }
        }
    }

    #[test]
    fn nothing_is_collected_while_there_is_room_and_nearly_empty_ones_always() {
        let roomy = Ledger { data: 50, refused: false, starved: false, ..full(60, 1, &[500; 40]) };
        assert_eq!(roomy.plan().collect, None);
        let scraps = Ledger { candidates: candidates(&[500, 20, 30, 500]), ..roomy.clone() };
        assert_eq!(scraps.plan().collect, Some(Effort::Little));
        assert_eq!(scraps.choose(Effort::Little).unwrap().live, 20);
        // One alone would be moved for nothing.
        assert_eq!(Ledger { candidates: candidates(&[500, 20]), ..roomy }.plan().collect, None);
    }

    #[test]
    fn emptied_extents_share_a_checkpoint_unless_writes_wait_for_one() {
        let ledger = Ledger { data: 5, undeclared: 1, refused: false, starved: false, ..full(20, 1, &[400; 90]) };
        let plan = ledger.plan();
        assert!(plan.batch > 2 && !plan.declare, "{plan:?}");
        assert!(Ledger { undeclared: plan.batch + 1, ..ledger.clone() }.plan().declare);
        assert!(Ledger { starved: true, ..ledger.clone() }.plan().declare);
        let coming = Ledger { starved: true, leaving: 2, ..ledger };
        assert!(!coming.plan().declare, "what is on its way needs no other checkpoint");
    }

    #[test]
    fn a_pool_of_full_extents_is_full() {
        let ledger = full(2, 1, &[1000; 20]);
        assert_eq!((ledger.plan().collect, ledger.plan().hope), (None, false));
        // So is one in which a checkpoint finds no room.
        let ledger = Ledger { undeclared: 3, ..full(0, 1, &[10; 20]) };
        assert_eq!((ledger.plan().collect, ledger.plan().hope), (None, false));
    }
}
