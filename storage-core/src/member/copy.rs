//! A copy that may still grow: what its frames are, how far they are durable, and who waits for that.
//!
//! Two lengths are kept apart. `length()` counts what was accepted, so that the next frame's place is known at once;
//! [`OpenCopy::durable`] counts what a commit has covered, and it alone is told to anybody.

use super::commit::{Durable, Reach};
use super::port::ReqId;
use super::read::Ask;
use crate::format::slot::{SealName, SlotCopy, head_sum};
use crate::format::{Digest, FrameHeader};
use crate::ids::{Blocks, Epoch, Vseq};
use crate::mutation::{Mutation, active};
use crate::peer;

/// A frame of a copy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    /// Its header block.
    pub offset: Blocks,
    /// The digest of the copy up to its end.
    pub digest: Digest,
}

/// The frames of a copy, in order and without a gap.
#[derive(Clone, Debug, Default)]
pub(super) struct Frames {
    marks: Vec<Mark>,
    /// The sum of each block, as a footer has it.
    sums: Vec<u32>,
    last: Vseq,
    lac: Vseq,
}

impl Frames {
    /// Blocks of all of them.
    pub fn length(&self) -> Blocks {
        self.sums.len() as Blocks
    }

    /// Length and LAC.
    pub fn reach(&self) -> Reach {
        Reach { length: self.length(), lac: self.lac }
    }

    /// The last record's `vseq`; 0 when there is none.
    pub fn last(&self) -> Vseq {
        self.last
    }

    /// Adds the frame whose header block is `block`.
    ///
    /// # Panics
    /// When it does not begin where the copy ends.
    pub fn push(&mut self, header: &FrameHeader, block: &[u8]) {
        assert_eq!(header.offset, self.length(), "a frame of {} beside its place", header.extent);
        let digest = self.marks.last().map_or(Digest::default(), |mark| mark.digest).then(block);
        self.marks.push(Mark { offset: header.offset, digest });
        self.sums.push(head_sum(block));
        self.sums.extend_from_slice(&header.crcs);
        self.last = header.last();
        self.lac = self.lac.max(header.lac);
    }

    /// Whether the frame at `offset` is the one with this header block, of `blocks` in all.
    pub fn holds(&self, offset: Blocks, block: &[u8]) -> bool {
        self.is_head(offset) && self.sums[offset as usize] == head_sum(block)
    }

    /// Whether block `block` is a frame's header.
    pub fn is_head(&self, block: Blocks) -> bool {
        self.marks.binary_search_by_key(&block, |mark| mark.offset).is_ok()
    }

    /// The digest of the first `length` blocks; `None` when a frame does not end there.
    pub fn digest_at(&self, length: Blocks) -> Option<Digest> {
        let frames = match length == self.length() {
            true => self.marks.len(),
            false => self.marks.binary_search_by_key(&length, |mark| mark.offset).ok()?,
        };
        Some(frames.checked_sub(1).map_or(Digest::default(), |last| self.marks[last].digest))
    }

    /// The sums of all blocks.
    pub fn sums(&self) -> &[u32] {
        &self.sums
    }

    /// Where frames begin, from block `from` on.
    pub fn heads(&self, from: Blocks) -> impl Iterator<Item = Blocks> + '_ {
        let first = self.marks.partition_point(|mark| mark.offset < from);
        self.marks[first..].iter().map(|mark| mark.offset)
    }
}

/// A seal that is being written: first the footer, then, in a later commit, the header that points to it.
#[derive(Clone, Debug)]
pub(super) struct Sealing {
    pub name: SealName,
    pub waiters: Vec<ReqId>,
}

/// A copy that may still grow.
#[derive(Clone, Debug)]
pub(super) struct OpenCopy {
    /// As its slot's header says, or will say.
    pub name: SlotCopy,
    /// The epoch whose appends it takes. `None` for ever after a restart (rule 4) and after a fill.
    pub writer: Option<Epoch>,
    /// What was accepted.
    pub frames: Frames,
    /// What a commit has covered.
    pub durable: Durable<Reach>,
    /// Recovery saw something that is, or was, a frame of this extent up to here. While the copy is shorter it does
    /// not prove that there was no more.
    pub suspect_end: Blocks,
    /// Its header is on disk or on its way there.
    pub written: bool,
    /// Who waits for the copy to be durable up to a length, in the order they came.
    pub appends: Vec<(Blocks, ReqId)>,
    /// Reads of what is not durable yet.
    pub reads: Vec<(Blocks, Ask)>,
    /// The seal that is being written.
    pub sealing: Option<Sealing>,
}

impl OpenCopy {
    /// A copy without a frame.
    pub fn new(name: SlotCopy, writer: Option<Epoch>) -> OpenCopy {
        OpenCopy {
            name,
            writer,
            frames: Frames::default(),
            durable: Durable::NOTHING,
            suspect_end: 0,
            written: false,
            appends: Vec::new(),
            reads: Vec::new(),
            sealing: None,
        }
    }

    /// Where it ends for those who ask: at the seal that is being written, or after the last frame.
    pub fn length(&self) -> Blocks {
        self.sealing.as_ref().map_or(self.frames.length(), |sealing| sealing.name.length)
    }

    /// What a new owner is told of it.
    pub fn report(&self) -> peer::Copy {
        let Reach { length, lac } = *self.durable.get();
        let damaged = (self.name.partial || length < self.suspect_end) && !active(Mutation::DamageHidden);
        peer::Copy::Open { length, lac, damaged }
    }
}
