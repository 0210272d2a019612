//! Reading a checkpoint back: its extents in order, frame by frame, from whichever member has them.

use super::table::decode;
use crate::block::map::{ExtentIndex, Map};
use crate::block::record::BlockRecord;
use crate::format::{Frame, Stream};
use crate::ids::{AgentId, BLOCK_SIZE, Blocks, Epoch, ExtentId, ExtentSeq, VolumeId, Vseq};
use crate::limits::{PEER_WAIT, READ_BLOCKS_MAX, RETRY_PAUSE};
use crate::log::recover::{OpenError, Progress, RecoveredExtent, remedy};
use crate::log::table::{Entry, Holder, State, Table};
use crate::log::{Call, Calls, Effects, MetaCall, Peers};
use crate::meta::docs::{HeadDoc, Seal};
use crate::peer::{Request, Response, Unanswered};
use crate::time::Instant;
use std::collections::BTreeSet;

/// A checkpoint that is being read.
#[derive(Debug)]
pub struct Loading {
    volume: VolumeId,
    epoch: Epoch,
    head: HeadDoc,
    extent: usize,
    at: Blocks,
    tried: usize,
    asking: Option<AgentId>,
    /// Members that have answered that they do not have the next piece.
    lacking: BTreeSet<AgentId>,
    retry: Instant,
    /// Blocks read.
    done: u64,
    /// The map as far as it is read.
    pub map: Map,
    /// The extents, as the checkpoint lists them.
    pub table: Table,
    /// The owner's index of the `i`th extent that the checkpoint lists.
    order: Vec<ExtentIndex>,
}

/// A checkpoint that is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the checkpoint of vseq {vseq} cannot be read: {reason}")]
pub struct BadCheckpoint {
    /// Which.
    pub vseq: Vseq,
    /// What is wrong with it.
    pub reason: String,
}

impl Loading {
    /// A checkpoint about to be read into an empty map of `size` blocks.
    #[must_use]
    pub fn new(volume: VolumeId, epoch: Epoch, head: HeadDoc, size: u64) -> Loading {
        Loading {
            volume,
            epoch,
            head,
            extent: 0,
            at: 0,
            tried: 0,
            asking: None,
            lacking: BTreeSet::new(),
            retry: Instant::default(),
            done: 0,
            map: Map::new(size),
            table: Table::default(),
            order: Vec::new(),
        }
    }

    /// All of it is read.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.extent == self.head.extents.len()
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let of = self.head.extents.iter().map(|x| u64::from(x.length)).sum();
        Progress { what: "reading the checkpoint", done: self.done, of }
    }

    /// Why it does not get ahead: no member has what comes next.
    #[must_use]
    pub fn give_up(&self, name: impl Fn(AgentId) -> String) -> OpenError {
        let (extent, members) =
            self.head.extents.get(self.extent).map_or((ExtentSeq(0), &[][..]), |x| (x.seq, &x.members));
        OpenError::Missing { extent, remedy: remedy(members, &self.lacking, name) }
    }

    /// Asks for the next piece.
    pub fn turn(&mut self, now: Instant, peers: &Peers, calls: &mut Calls<Call, MetaCall>, out: &mut Effects) {
        let Some(x) = self.head.extents.get(self.extent) else { return };
        if self.asking.is_some() || now < self.retry {
            return;
        }
        let mut members = x.members.clone();
        members.sort_by_key(|a| !peers.usable(*a));
        let Some(&agent) = members.get(self.tried % members.len().max(1)) else { return };
        self.asking = Some(agent);
        let extent = ExtentId { volume: self.volume, seq: x.seq };
        let blocks = READ_BLOCKS_MAX.min(x.length - self.at);
        let request = Request::Read { extent, epoch: self.epoch, offset: self.at, blocks };
        calls.send(now, agent, request, PEER_WAIT, Call::Upper(0), out);
    }

    /// The answer.
    ///
    /// # Errors
    /// When sound frames hold what no checkpoint does.
    pub fn on_answer(&mut self, now: Instant, result: Result<Response, Unanswered>) -> Result<(), BadCheckpoint> {
        let asked = self.asking.take();
        let Some(x) = self.head.extents.get(self.extent) else { return Ok(()) };
        let (extent, length) = (ExtentId { volume: self.volume, seq: x.seq }, x.length);
        let before = self.at;
        let told = result.is_ok();
        if let Ok(Response::Data { bytes, .. }) = result {
            let mut rest = bytes;
            while let Ok((header, frame)) = Frame::parse(&rest, extent, self.at) {
                let Some(record) = header.records.first().and_then(BlockRecord::decode) else {
                    return Err(self.bad("a frame holds no checkpoint record"));
                };
                self.take(record, frame.payload.first().map_or(&[][..], |p| &p[..]))?;
                self.at += header.blocks();
                rest = rest.slice(header.blocks() as usize * BLOCK_SIZE..);
                if rest.is_empty() {
                    break;
                }
            }
        }
        self.done += u64::from(self.at - before);
        if self.at == before {
            self.tried += 1;
            self.retry = now + RETRY_PAUSE;
            self.lacking.extend(asked.filter(|_| told));
        } else {
            self.lacking.clear();
        }
        if self.at >= length {
            (self.extent, self.at) = (self.extent + 1, 0);
        }
        Ok(())
    }

    fn bad(&self, reason: impl Into<String>) -> BadCheckpoint {
        BadCheckpoint { vseq: self.head.vseq, reason: reason.into() }
    }

    fn take(&mut self, record: BlockRecord, payload: &[u8]) -> Result<(), BadCheckpoint> {
        match record {
            BlockRecord::Table { bytes } if bytes as usize <= payload.len() => {
                let (title, entries) = decode(&payload[..bytes as usize]).map_err(|e| self.bad(e.to_string()))?;
                if title.volume != self.volume || title.vseq != self.head.vseq || title.size > self.map.blocks() {
                    return Err(self.bad("its title does not match the volume"));
                }
                for entry in entries {
                    if self.table.find(entry.seq).is_some() {
                        return Err(self.bad(format!("extent {} is listed twice", entry.seq)));
                    }
                    self.order.push(self.table.insert(entry));
                }
            }
            BlockRecord::Map { bytes } if bytes as usize <= payload.len() => {
                let Loading { map, table, order, .. } = self;
                let mut number = |index: ExtentIndex, blocks: Blocks| {
                    let index = *order.get(index.get())?;
                    table.at_mut(index).live += blocks;
                    Some(index)
                };
                map.load(&payload[..bytes as usize], &mut number).map_err(|e| self.bad(e.to_string()))?;
            }
            _ => return Err(self.bad("a record that does not belong into a checkpoint")),
        }
        Ok(())
    }

    /// Adds the checkpoint's own extents to the table.
    pub fn adopt(&mut self) {
        for x in &self.head.extents {
            if self.table.find(x.seq).is_none() {
                let mut entry = Entry::open(x.seq, Stream::Checkpoint, &x.members, false);
                entry.state = State::Sealed { seal: Seal { length: x.length, last: Vseq(0) }, digest: Some(x.digest) };
                self.table.insert(entry);
            }
            self.table.get_mut(x.seq).expect("the extent is there").pinned = true;
        }
    }
}

/// An extent with a document of its own: that is newer than what the checkpoint says of it.
pub fn merge_extent(table: &mut Table, x: &RecoveredExtent) {
    let index = match table.find(x.seq) {
        Some(index) => index,
        None => table.insert(Entry::open(x.seq, x.doc.stream, &[], false)),
    };
    let entry = table.at_mut(index);
    let digest = entry.digest();
    let known = entry.members.clone();
    entry.members = x
        .doc
        .members
        .iter()
        .map(|&agent| Holder { agent, synced: known.iter().any(|m| m.agent == agent && m.synced) && digest.is_some() })
        .collect();
    entry.former = x.doc.former.iter().copied().collect();
    entry.degraded = x.doc.degraded;
    entry.key = Some(x.revision);
    if let Some(seal) = x.doc.sealed {
        entry.state = State::Sealed { seal, digest };
    }
}
