//! One extent that is being written: its members and how far each has got.
//!
//! ```text
//! Registering ──txn──▶ Creating ──all members──▶ Ready ──full, or a member lost──▶ Closing ──all acked, txn──▶ (sealed)
//! ```

use crate::format::Stream;
use crate::ids::{AgentId, Blocks, ExtentSeq, Vseq};
use smallvec::SmallVec;
use std::collections::VecDeque;

/// A member of the ensemble, as its acknowledgements show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Which agent.
    pub agent: AgentId,
    /// It has its slot.
    pub created: bool,
    /// Everything below is on its stable storage.
    pub durable: Blocks,
    /// Everything below has reached its memory.
    pub received: Blocks,
}

/// Where the extent is on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The transaction that registers it is under way. Nothing may be sent to its members.
    Registering,
    /// Members are taking slots.
    Creating,
    /// Takes frames.
    Ready,
    /// Takes no more; ends at `length` as soon as all that lies below is acknowledged.
    Closing,
    /// The transaction that seals it is under way.
    Sealing,
}

/// A frame in an extent that is not yet popped from the window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placed {
    /// Its first record, which is its name in the window.
    pub base: Vseq,
    /// Its last record.
    pub last: Vseq,
    /// Where it ends.
    pub end: Blocks,
}

/// An extent that is being written.
#[derive(Clone, Debug)]
pub struct OpenExtent {
    /// Which.
    pub seq: ExtentSeq,
    /// Log or checkpoint.
    pub stream: Stream,
    /// For records that garbage collection moves.
    pub cold: bool,
    /// Its ensemble.
    pub members: SmallVec<[Member; 3]>,
    /// Recorded as degraded.
    pub degraded: bool,
    /// Where it is on its way.
    pub phase: Phase,
    /// Where the next frame goes.
    pub length: Blocks,
    /// The last record placed in it (I: strictly increasing along the extent).
    pub last: Vseq,
    /// The last record in it that has left the window, so is acknowledged and durable.
    pub popped: Vseq,
    /// Where the frames that have left the window end.
    pub popped_end: Blocks,
    /// Its frames that are still in the window, in order.
    pub frames: VecDeque<Placed>,
}

impl OpenExtent {
    /// A new one, about to be registered.
    #[must_use]
    pub fn new(seq: ExtentSeq, stream: Stream, cold: bool, members: &[AgentId], degraded: bool) -> OpenExtent {
        OpenExtent {
            seq,
            stream,
            cold,
            members: members.iter().map(|&agent| Member { agent, created: false, durable: 0, received: 0 }).collect(),
            degraded,
            phase: Phase::Registering,
            length: 0,
            last: Vseq(0),
            popped: Vseq(0),
            popped_end: 0,
            frames: VecDeque::new(),
        }
    }

    /// The bit of `agent` in a mask of members.
    #[must_use]
    pub fn bit(&self, agent: AgentId) -> Option<u8> {
        self.members.iter().position(|m| m.agent == agent).map(|i| 1 << i)
    }

    /// The mask of all members.
    #[must_use]
    pub fn all(&self) -> u8 {
        (1u16.wrapping_shl(self.members.len() as u32) - 1) as u8
    }

    /// Blocks up to which every member is durable.
    #[must_use]
    pub fn durable(&self) -> Blocks {
        self.members.iter().map(|m| m.durable).min().unwrap_or(0)
    }

    /// Takes no more frames. Those beyond what is durable on all members leave it if `cut`; their bases are returned.
    pub fn close(&mut self, cut: bool) -> Vec<Vseq> {
        if matches!(self.phase, Phase::Sealing) {
            return Vec::new();
        }
        self.phase = Phase::Closing;
        if !cut {
            return Vec::new();
        }
        let durable = self.durable();
        let keep = self.frames.iter().take_while(|f| f.end <= durable).count();
        let gone = self.frames.split_off(keep).into_iter().map(|f| f.base).collect();
        (self.length, self.last) = match self.frames.back() {
            Some(frame) => (frame.end, frame.last),
            None => (self.popped_end, self.popped),
        };
        gone
    }

    /// Ends it as if nothing had ever been written to it.
    pub fn void(&mut self) {
        if self.phase == Phase::Sealing {
            return;
        }
        self.phase = Phase::Closing;
        self.frames.clear();
        (self.length, self.last) = (0, Vseq(0));
    }

    /// Everything that is in it is acknowledged, and no more will come.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.phase == Phase::Closing && self.frames.is_empty()
    }
}
