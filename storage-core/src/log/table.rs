//! Every extent of a volume: where its copies are, how it ended, how much of it is still needed.
//!
//! The address map refers to extents by a dense [`ExtentIndex`]; this table hands those out, so an index is reused only
//! after its extent is gone from the table, and an extent leaves the table only when every agent has confirmed that its
//! copy is deleted.
//!
//! 1. `live` counts the blocks that the map refers to, neither more nor fewer.
//! 2. An extent is deleted only when it is [`Entry::dead`]: a HEAD that was CASed at this epoch lists it so (I13, I14).

use crate::block::map::ExtentIndex;
use crate::format::{Digest, Stream};
use crate::ids::{AgentId, Blocks, ExtentSeq, Vseq};
use crate::meta::Revision;
use crate::meta::docs::{ExtentDoc, Seal};
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// One copy of an extent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holder {
    /// Where it is.
    pub agent: AgentId,
    /// It is known to be whole: closed at the extent's seal, with the extent's digest. Of an extent that ended empty: its
    /// slot is given back.
    pub synced: bool,
}

/// Where an extent is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Registered, not sealed: the log's writer has it.
    Open,
    /// Sealed in the metadata store.
    Sealed {
        /// How it ended.
        seal: Seal,
        /// Its content, once a member has said.
        digest: Option<Digest>,
    },
}

/// One extent.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which.
    pub seq: ExtentSeq,
    /// Log or checkpoint.
    pub stream: Stream,
    /// Its copies.
    pub members: SmallVec<[Holder; 3]>,
    /// Agents that may still hold a copy which is no longer part of the ensemble.
    pub former: SmallVec<[AgentId; 1]>,
    /// Fewer copies, or less spread, than the volume asks for.
    pub degraded: bool,
    /// Open or sealed.
    pub state: State,
    /// Blocks the map refers to.
    pub live: Blocks,
    /// Reads under way: the copies must stay until they are done.
    pub readers: u32,
    /// Part of the checkpoint in force, or of one that is being written.
    pub pinned: bool,
    /// When its own key in the metadata store was last written, if it has one.
    pub key: Option<Revision>,
    /// The HEAD in force says that it is needed no more.
    pub dead: bool,
}

impl Entry {
    /// A new extent, registered and empty.
    #[must_use]
    pub fn open(seq: ExtentSeq, stream: Stream, members: &[AgentId], degraded: bool) -> Entry {
        Entry {
            seq,
            stream,
            members: members.iter().map(|&agent| Holder { agent, synced: false }).collect(),
            former: SmallVec::new(),
            degraded,
            state: State::Open,
            live: 0,
            readers: 0,
            pinned: false,
            key: None,
            dead: false,
        }
    }

    /// Its document.
    #[must_use]
    pub fn doc(&self) -> ExtentDoc {
        ExtentDoc {
            stream: self.stream,
            members: self.members.iter().map(|m| m.agent).collect(),
            former: self.former.to_vec(),
            degraded: self.degraded,
            sealed: self.seal(),
        }
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn seal(&self) -> Option<Seal> {
        match self.state {
            State::Open => None,
            State::Sealed { seal, .. } => Some(seal),
        }
    }

    /// Its digest, if a member has told it.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        match self.state {
            State::Sealed { digest, .. } => digest,
            State::Open => None,
        }
    }

    /// Sealed without a record: there is nothing to copy, and its slots need not be kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seal().is_some_and(|seal| seal.length == 0)
    }

    /// Sealed, and nothing refers to it: a checkpoint that contains its last record may declare it dead.
    #[must_use]
    pub fn is_garbage(&self) -> bool {
        self.live == 0 && !self.pinned && matches!(self.state, State::Sealed { .. })
    }

    /// The copy that `agent` holds.
    pub fn holder_mut(&mut self, agent: AgentId) -> Option<&mut Holder> {
        self.members.iter_mut().find(|m| m.agent == agent)
    }
}

/// All extents of one volume.
#[derive(Default, Debug)]
pub struct Table {
    entries: Vec<Option<Entry>>,
    free: Vec<ExtentIndex>,
    by_seq: BTreeMap<ExtentSeq, ExtentIndex>,
}

impl Table {
    /// Adds an extent.
    ///
    /// # Panics
    /// If it is there already: extents are never reused.
    pub fn insert(&mut self, entry: Entry) -> ExtentIndex {
        let seq = entry.seq;
        let index = match self.free.pop() {
            Some(slot) => {
                self.entries[slot.get()] = Some(entry);
                slot
            }
            None => {
                self.entries.push(Some(entry));
                ExtentIndex::new(self.entries.len() as u32 - 1)
                    .expect("a volume has fewer than 16 million extents at a time")
            }
        };
        assert!(self.by_seq.insert(seq, index).is_none(), "extent {seq} is in the table twice");
        index
    }

    /// Takes an extent out, when no copy of it is left.
    ///
    /// # Panics
    /// If it is still referred to.
    pub fn remove(&mut self, index: ExtentIndex) {
        let entry = self.entries[index.get()].take().expect("an extent to remove is in the table");
        assert!(entry.live == 0 && entry.readers == 0, "extent {} leaves the table while it is needed", entry.seq);
        self.by_seq.remove(&entry.seq);
        self.free.push(index);
    }

    /// The index of an extent.
    #[must_use]
    pub fn find(&self, seq: ExtentSeq) -> Option<ExtentIndex> {
        self.by_seq.get(&seq).copied()
    }

    /// An extent that the caller knows to be there.
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn at(&self, index: ExtentIndex) -> &Entry {
        self.entries[index.get()].as_ref().expect("the extent index is in use")
    }

    /// As [`Table::at`].
    ///
    /// # Panics
    /// If it is not there.
    pub fn at_mut(&mut self, index: ExtentIndex) -> &mut Entry {
        self.entries[index.get()].as_mut().expect("the extent index is in use")
    }

    /// An extent by number.
    #[must_use]
    pub fn get(&self, seq: ExtentSeq) -> Option<&Entry> {
        self.find(seq).map(|i| self.at(i))
    }

    /// As [`Table::get`].
    pub fn get_mut(&mut self, seq: ExtentSeq) -> Option<&mut Entry> {
        self.find(seq).map(|i| self.at_mut(i))
    }

    /// All extents, in the order in which they were registered.
    pub fn iter(&self) -> impl Iterator<Item = (ExtentIndex, &Entry)> {
        self.by_seq.values().map(|&i| (i, self.at(i)))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_seq.len()
    }

    /// None.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_seq.is_empty()
    }

    /// The last record of an extent; zero while it is open.
    #[must_use]
    pub fn last(&self, index: ExtentIndex) -> Vseq {
        self.at(index).seal().map_or(Vseq(0), |s| s.last)
    }
}
