//! The writer of a volume's log: cuts records into frames, sends each frame to every member of an open extent, and
//! acknowledges in `vseq` order when all members report it durable (or received, in that mode).
//!
//! The write path is one round trip and one device write: there is no primary copy that would cost a second.
//!
//! 1. A frame is sent only into an extent whose registration was committed at this epoch (I5).
//! 2. Records are acknowledged in `vseq` order, so there is never a gap below an acknowledged one (I9).
//! 3. `vseq` strictly increases along an extent, so that recovery may cut an extent at the first record it cannot keep.
//! 4. When a member is lost its extent ends at the prefix that is durable on all members; the frames above it move to
//!    another extent, same records, same `vseq`, same order.
//! 5. An extent is sealed only when every record in it is acknowledged: a sealed extent never holds a void record (I7).
//! 6. A frame's bytes are kept until it is durable on all members.
//!
//! Not here: what the records mean; how extents are registered and sealed (`extents`).

mod ack;
mod flight;
mod pack;

use super::calls::Calls;
use super::open::{OpenExtent, Phase};
use super::peers::Peers;
use super::{Call, Effects, MetaCall};
use crate::format::{Pieces, Record, Stream};
use crate::ids::{AgentId, BLOCK_SIZE, Blocks, Epoch, ExtentSeq, VolumeId, Vseq};
use crate::limits::FRAME_PAYLOAD_BLOCKS_MAX;
use crate::meta::docs::AckMode;
use crate::time::Instant;
use bytes::Bytes;
use flight::Flight;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A record on its way into a frame.
#[derive(Clone, Debug)]
pub struct Item {
    /// The record. Its `payload_blocks` is the number of blocks in `payload`.
    pub record: Record,
    /// Whole blocks.
    pub payload: Pieces,
    /// Comes back with the acknowledgement.
    pub cookie: u64,
}

/// What the layer above learns.
#[derive(Clone, Debug)]
pub enum LogEvent {
    /// Records are acknowledged, in `vseq` order.
    Acked {
        /// `vseq` of the first.
        base: Vseq,
        /// The records.
        records: SmallVec<[Record; 2]>,
        /// Their cookies.
        cookies: SmallVec<[u64; 2]>,
        /// The extent they are in.
        extent: ExtentSeq,
        /// Block of their frame's header.
        offset: Blocks,
    },
    /// Records that were acknowledged on receipt have moved before they were durable.
    Moved {
        /// The records.
        records: SmallVec<[Record; 2]>,
        /// Where their frame was.
        from: (ExtentSeq, Blocks),
        /// Where it is.
        to: (ExtentSeq, Blocks),
    },
}

/// Which extents a record goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lane {
    /// What clients write.
    Hot,
    /// What garbage collection moves: kept apart, as it has proved to live longer.
    Cold,
}

/// How the writer is set up.
#[derive(Clone, Debug)]
pub struct WriterConfig {
    /// The volume.
    pub volume: VolumeId,
    /// When records are acknowledged.
    pub mode: AckMode,
    /// Blocks of an extent's data area.
    pub capacity: Blocks,
    /// Most hot extents written at the same time.
    pub open_max: usize,
    /// Frames under way beyond which records wait to be packed together.
    pub frames_max: usize,
    /// Frames that are not full wait for company while more than twice their records are unacknowledged.
    pub gather: bool,
}

/// What the writer works with.
pub struct Cx<'a> {
    /// The clock.
    pub now: Instant,
    /// Agents.
    pub peers: &'a mut Peers,
    /// Requests under way.
    pub calls: &'a mut Calls<Call, MetaCall>,
    /// What to do.
    pub out: &'a mut Effects,
}

/// The writer.
#[derive(Debug)]
pub struct Writer {
    config: WriterConfig,
    epoch: Epoch,
    next: Vseq,
    lac: Vseq,
    acked: Vseq,
    hot: VecDeque<Item>,
    cold: VecDeque<Item>,
    window: VecDeque<Flight>,
    /// Cold frames in it.
    cold_underway: usize,
    /// Blocks of all frames that were sent to members, those that moved to another extent counted again.
    written: u64,
    applied: usize,
    unplaced: BTreeSet<Vseq>,
    /// Extents from registration to seal.
    pub open: BTreeMap<ExtentSeq, OpenExtent>,
    /// How many hot extents are in use side by side; grows under load.
    pub(super) width: usize,
    /// Most hot extents in use side by side for now.
    width_max: usize,
    /// Blocks of hot frames that may be sent, while garbage collection paces them.
    credit: Option<i64>,
    /// Acknowledge only what is durable, whatever the mode: while a checkpoint takes its picture.
    hold: bool,
    events: Vec<LogEvent>,
    turn: usize,
}

impl Writer {
    /// A writer at `epoch` whose first record is `next`.
    #[must_use]
    pub fn new(config: WriterConfig, epoch: Epoch, next: Vseq) -> Writer {
        let done = Vseq(next.0 - 1);
        Writer {
            width_max: config.open_max,
            credit: None,
            config,
            epoch,
            next,
            lac: done,
            acked: done,
            hot: VecDeque::new(),
            cold: VecDeque::new(),
            window: VecDeque::new(),
            cold_underway: 0,
            written: 0,
            applied: 0,
            unplaced: BTreeSet::new(),
            open: BTreeMap::new(),
            width: 1,
            hold: false,
            events: Vec::new(),
            turn: 0,
        }
    }

    /// The epoch it writes at.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The highest record known durable on its whole ensemble, with all before it.
    #[must_use]
    pub fn lac(&self) -> Vseq {
        self.lac
    }

    /// The last acknowledged record.
    #[must_use]
    pub fn acked(&self) -> Vseq {
        self.acked
    }

    /// Blocks of all frames that were sent to members: headers, moved records, and frames that had to be sent again included.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Nothing is queued or under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.hot.is_empty() && self.cold.is_empty() && self.window.is_empty()
    }

    /// Records that wait to be packed, hot and cold.
    #[must_use]
    pub fn queued(&self) -> (usize, usize) {
        (self.hot.len(), self.cold.len())
    }

    /// Something waits that finds no extent to go to.
    #[must_use]
    pub fn starved(&self, cold: bool) -> bool {
        let waiting = if cold { !self.cold.is_empty() } else { !self.hot.is_empty() || !self.unplaced.is_empty() };
        waiting && !self.open.values().any(|x| x.phase == Phase::Ready && x.stream == Stream::Log && x.cold == cold)
    }

    /// Frames wait to move, and no extent that is ready or coming can take them: each has newer records already.
    #[must_use]
    pub fn stuck(&self) -> bool {
        let Some(&base) = self.unplaced.first() else { return false };
        let coming = |x: &&OpenExtent| matches!(x.phase, Phase::Registering | Phase::Creating | Phase::Ready);
        !self.open.values().filter(coming).any(|x| x.stream == Stream::Log && !x.cold && x.last < base)
    }

    /// Uses no more hot extents side by side.
    pub fn limit_width(&mut self, most: usize) {
        self.width_max = most.clamp(1, self.config.open_max);
        self.width = self.width.min(self.width_max);
    }

    /// Whether hot frames are sent only as fast as [`Writer::allow`] says.
    pub fn pace(&mut self, paced: bool) {
        self.credit = paced.then(|| self.credit.unwrap_or(i64::from(FRAME_PAYLOAD_BLOCKS_MAX)));
    }

    /// While they are paced: so many blocks more, but no more than an extent in advance.
    pub fn allow(&mut self, blocks: Blocks) {
        if let Some(credit) = &mut self.credit {
            *credit = (*credit + i64::from(blocks)).min(i64::from(self.config.capacity));
        }
    }

    /// Acknowledge only what is durable, until told otherwise.
    pub fn hold(&mut self, hold: bool) {
        self.hold = hold;
    }

    /// What has happened since the last call.
    pub fn take_events(&mut self) -> Vec<LogEvent> {
        std::mem::take(&mut self.events)
    }

    /// Takes out the hot records that are not packed yet: they will never be written.
    pub fn take_queued(&mut self) -> VecDeque<Item> {
        std::mem::take(&mut self.hot)
    }

    /// Queues a record.
    pub fn append(&mut self, lane: Lane, item: Item) {
        debug_assert_eq!(
            usize::from(item.record.payload_blocks) * BLOCK_SIZE,
            item.payload.iter().map(Bytes::len).sum::<usize>()
        );
        match lane {
            Lane::Hot => self.hot.push_back(item),
            Lane::Cold => self.cold.push_back(item),
        }
    }

    /// A block of a frame that is still in the window, if (`extent`, `block`) is one.
    #[must_use]
    pub fn retained(&self, extent: ExtentSeq, block: Blocks) -> Option<Bytes> {
        if let Some(base) =
            self.unplaced.iter().find(|&&base| self.flight(base).is_some_and(|f| f.covers(extent, block)))
        {
            return self.flight(*base)?.block(extent, block);
        }
        let open = self.open.get(&extent)?;
        let at = open.frames.partition_point(|f| f.end <= block);
        self.flight(open.frames.get(at)?.base)?.block(extent, block)
    }

    /// Whether anything acknowledged is still in the window: only then can [`Writer::retained`] find what a map refers to.
    #[must_use]
    pub fn retains(&self) -> bool {
        self.applied > 0
    }

    fn position(&self, base: Vseq) -> Option<usize> {
        let at = self.window.partition_point(|f| f.base < base);
        (self.window.get(at)?.base == base).then_some(at)
    }

    fn flight(&self, base: Vseq) -> Option<&Flight> {
        self.position(base).map(|at| &self.window[at])
    }

    /// The log extents that have `agent` as a member and are not on their way to their seal.
    #[must_use]
    pub fn extents_of(&self, agent: AgentId) -> Vec<ExtentSeq> {
        self.open
            .values()
            .filter(|x| x.phase != Phase::Sealing && x.bit(agent).is_some())
            .filter(|x| x.phase != Phase::Closing || !x.frames.is_empty())
            .map(|x| x.seq)
            .collect()
    }
}
