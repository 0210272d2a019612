//! Reads under way: looked up in the map, fetched from members, checked, answered.
//!
//! 1. The map is looked up only under a valid read lease (see `log::lease`).
//! 2. A range that was never written, or was trimmed, reads as zeros without any network.
//! 3. Bytes that fail their checksum never reach a reader (I18): another member is asked. Only when every member has
//!    positively no sound copy does the range get an error; a member that cannot be reached is waited for. Nor is it an error
//!    without a lease: the read is looked up again once there is one, as a newer owner may have moved the blocks.
//! 4. A member that is slow is not waited for alone: after [`HEDGE_WAIT`] another one is asked as well.

use super::io::{IoDone, IoError, IoId};
use super::map::{ExtentIndex, Map};
use crate::format::zeros::push_zeros;
use crate::format::{Pieces, frame};
use crate::ids::{AgentId, BLOCK_SIZE, Blocks, ExtentId, ExtentSeq, Lba};
use crate::limits::{HEDGE_WAIT, PEER_WAIT, READ_BLOCKS_MAX, RETRY_PAUSE};
use crate::log::{Call, Effects, Log, Note};
use crate::mutation::{self, Mutation};
use crate::peer::{Rejection, Request, Response, Unanswered};
use crate::time::Instant;
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};

/// What a member has said to a part of a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Word {
    Asked,
    /// It has positively no sound copy.
    Bad,
    /// It could not be reached.
    Silent,
}

#[derive(Debug)]
struct Part {
    lba: Lba,
    blocks: Blocks,
    extent: ExtentIndex,
    seq: ExtentSeq,
    block: Blocks,
    words: SmallVec<[(AgentId, Word); 3]>,
    /// When something is to be done for it, if no answer comes before.
    due: Instant,
    data: Option<Bytes>,
}

#[derive(Debug)]
enum Slot {
    Zeros(u64),
    Bytes(Bytes),
    Part(usize),
}

/// What a client asked for.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    io: IoId,
    lba: Lba,
    blocks: u64,
}

#[derive(Debug)]
struct Read {
    wanted: Wanted,
    slots: SmallVec<[Slot; 1]>,
    parts: SmallVec<[Part; 1]>,
    left: usize,
}

/// All reads of a volume.
#[derive(Default, Debug)]
pub struct Reads {
    next: u64,
    reads: BTreeMap<u64, Read>,
    /// Reads that wait for a lease.
    waiting: VecDeque<Wanted>,
    turn: usize,
}

/// Which part of which read an answer is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReadPart {
    read: u64,
    part: usize,
}

impl Reads {
    /// Takes in a read.
    pub fn push(&mut self, io: IoId, lba: Lba, blocks: u64) {
        self.waiting.push_back(Wanted { io, lba, blocks });
    }

    /// Nothing is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.reads.is_empty() && self.waiting.is_empty()
    }

    /// When a read wants attention even if nothing happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.reads.values().flat_map(|r| r.parts.iter()).filter(|p| p.data.is_none()).map(|p| p.due).min()
    }

    /// Ends everything: the volume is no longer this owner's.
    pub fn fail_all(&mut self, error: &IoError, done: &mut Vec<(IoId, Result<IoDone, IoError>)>) {
        let waiting = self.waiting.drain(..).map(|wanted| wanted.io);
        let reading = std::mem::take(&mut self.reads).into_values().map(|r| r.wanted.io);
        done.extend(reading.chain(waiting).map(|io| (io, Err(error.clone()))));
    }

    /// Starts what may be read now, and looks after what takes long.
    pub fn turn(
        &mut self,
        now: Instant,
        map: &Map,
        log: &mut Log,
        asks: &mut Asks,
        out: &mut Effects,
        done: &mut Vec<(IoId, Result<IoDone, IoError>)>,
    ) {
        if !self.waiting.is_empty() {
            log.want_lease(now, out);
            while log.may_read(now)
                && let Some(wanted) = self.waiting.pop_front()
            {
                self.start(now, wanted, map, log, asks, out, done);
            }
        }
        let due: SmallVec<[(u64, usize); 8]> = self
            .reads
            .iter()
            .flat_map(|(&id, r)| r.parts.iter().enumerate().map(move |(i, p)| (id, i, p)))
            .filter(|(_, _, p)| p.data.is_none() && p.due <= now)
            .map(|(id, i, _)| (id, i))
            .collect();
        for (id, part) in due {
            let read = self.reads.get_mut(&id).expect("the read is under way");
            // Who could not be reached may be back.
            read.parts[part].words.retain(|(_, word)| *word != Word::Silent);
            self.ask(now, ReadPart { read: id, part }, log, asks, out);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the one place where a read meets everything it needs")]
    fn start(
        &mut self,
        now: Instant,
        wanted: Wanted,
        map: &Map,
        log: &mut Log,
        asks: &mut Asks,
        out: &mut Effects,
        done: &mut Vec<(IoId, Result<IoDone, IoError>)>,
    ) {
        let mut read = Read { wanted, slots: SmallVec::new(), parts: SmallVec::new(), left: 0 };
        let retains = log.writer.retains();
        for run in map.get(wanted.lba, wanted.blocks) {
            let Some(loc) = run.at else {
                read.slots.push(Slot::Zeros(run.blocks));
                continue;
            };
            let seq = log.table.at(loc.extent).seq;
            let mut taken: Blocks = 0;
            while u64::from(taken) < run.blocks {
                let (lba, block) = (Lba(run.lba.0 + u64::from(taken)), loc.block + taken);
                // Acknowledged on receipt and not durable yet: only this owner is sure to have it.
                if retains && let Some(bytes) = log.writer.retained(seq, block) {
                    read.slots.push(Slot::Bytes(bytes));
                    taken += 1;
                    continue;
                }
                let left = (run.blocks - u64::from(taken)).min(u64::from(READ_BLOCKS_MAX)) as Blocks;
                let blocks = match retains {
                    true => {
                        1 + (1..left).take_while(|i| log.writer.retained(seq, block + i).is_none()).count() as Blocks
                    }
                    false => left,
                };
                read.slots.push(Slot::Part(read.parts.len()));
                read.parts.push(Part {
                    lba,
                    blocks,
                    extent: loc.extent,
                    seq,
                    block,
                    words: SmallVec::new(),
                    due: now,
                    data: None,
                });
                taken += blocks;
            }
        }
        read.left = read.parts.len();
        if read.left == 0 {
            done.push((wanted.io, Ok(IoDone::Data(Self::gather(read)))));
            return;
        }
        for part in &read.parts {
            log.table.at_mut(part.extent).readers += 1;
        }
        self.next += 1;
        let (id, parts) = (self.next, read.parts.len());
        self.reads.insert(id, read);
        for part in 0..parts {
            self.ask(now, ReadPart { read: id, part }, log, asks, out);
        }
    }

    /// Asks the next member for a part.
    fn ask(&mut self, now: Instant, at: ReadPart, log: &mut Log, asks: &mut Asks, out: &mut Effects) {
        let part = &mut self.reads.get_mut(&at.read).expect("the read is under way").parts[at.part];
        let entry = log.table.at(part.extent);
        let said = |agent| part.words.iter().any(|(a, _)| *a == agent);
        self.turn = self.turn.wrapping_add(1);
        let (turn, count) = (self.turn, entry.members.len().max(1));
        let sealed = entry.seal().is_some();
        let next = entry
            .members
            .iter()
            .enumerate()
            .filter(|(_, m)| !said(m.agent))
            .min_by_key(|(i, m)| {
                let near = log.config.near == Some(m.agent);
                (!log.peers.usable(m.agent), sealed && !m.synced, !near, (i + turn) % count)
            })
            .map(|(_, m)| m.agent);
        let Some(agent) = next else {
            part.due = now + RETRY_PAUSE;
            return;
        };
        part.words.push((agent, Word::Asked));
        part.due = now + HEDGE_WAIT;
        let extent = ExtentId { volume: log.config.volume, seq: part.seq };
        let request = Request::Read { extent, epoch: log.writer.epoch(), offset: part.block, blocks: part.blocks };
        let upper = asks.insert(Ask::Read(at));
        log.calls.send(now, agent, request, PEER_WAIT, Call::Upper(upper), out);
    }

    /// A member has answered.
    #[expect(clippy::too_many_arguments, reason = "the one place where a read meets everything it needs")]
    pub fn on_answer(
        &mut self,
        now: Instant,
        at: ReadPart,
        agent: AgentId,
        result: Result<Response, Unanswered>,
        log: &mut Log,
        asks: &mut Asks,
        out: &mut Effects,
        done: &mut Vec<(IoId, Result<IoDone, IoError>)>,
    ) {
        let Some(read) = self.reads.get_mut(&at.read) else { return };
        let part = &mut read.parts[at.part];
        if part.data.is_some() {
            return;
        }
        let word = match result {
            Ok(Response::Data { crcs, bytes }) => {
                let whole = bytes.len() == part.blocks as usize * BLOCK_SIZE;
                let sound = frame::verify(&crcs, &bytes).is_ok() || mutation::active(Mutation::CrcIgnored);
                if whole && sound {
                    log.peers.heard(now, agent);
                    part.data = Some(if mutation::active(Mutation::BlocksTurned) { turned(&bytes) } else { bytes });
                    read.left -= 1;
                    log.table.at_mut(part.extent).readers -= 1;
                    if read.left == 0 {
                        let read = self.reads.remove(&at.read).expect("the read is under way");
                        let io = read.wanted.io;
                        done.push((io, Ok(IoDone::Data(Self::gather(read)))));
                    }
                    return;
                }
                // Damaged on its way here: its copy may be sound.
                Word::Silent
            }
            Ok(Response::Rejected(Rejection::Fenced { epoch })) => return log.fence(epoch, out),
            Ok(Response::Rejected(Rejection::Damaged { .. })) => {
                log.on_damage(now, part.seq, agent, out);
                Word::Bad
            }
            Ok(Response::Rejected(Rejection::NoSuchExtent | Rejection::PastEnd { .. } | Rejection::DiskFailed(_))) => {
                Word::Bad
            }
            Ok(_) => Word::Silent,
            Err(Unanswered) => {
                log.lose_agent(now, agent, out);
                Word::Silent
            }
        };
        if let Some(said) = part.words.iter_mut().find(|(a, _)| *a == agent) {
            said.1 = word;
        }
        let members = log.table.at(part.extent).members.len();
        if part.words.iter().filter(|(_, w)| *w == Word::Bad).count() >= members {
            // Without a lease that is no verdict: a newer owner may have emptied the extent and deleted it. To be looked up
            // again, when it is known that there is none.
            if !log.may_read(now) {
                let wanted = self.give_up(at.read, log).wanted;
                self.waiting.push_back(wanted);
                return;
            }
            out.notes.push(Note::Unreadable { extent: part.seq, block: part.block });
            let read = self.give_up(at.read, log);
            let lba = read.parts.iter().find(|p| p.data.is_none()).map_or(read.wanted.lba, |p| p.lba);
            done.push((read.wanted.io, Err(IoError::Unreadable { lba })));
            return;
        }
        if part.words.iter().all(|(_, w)| *w != Word::Asked) {
            self.ask(now, at, log, asks, out);
        }
    }

    /// Takes out a read of which some parts are missing.
    fn give_up(&mut self, id: u64, log: &mut Log) -> Read {
        let read = self.reads.remove(&id).expect("the read is under way");
        for part in read.parts.iter().filter(|p| p.data.is_none()) {
            log.table.at_mut(part.extent).readers -= 1;
        }
        read
    }

    fn gather(mut read: Read) -> Pieces {
        let mut pieces = Pieces::new();
        for slot in std::mem::take(&mut read.slots) {
            match slot {
                Slot::Bytes(bytes) => pieces.push(bytes),
                Slot::Part(i) => pieces.push(read.parts[i].data.take().expect("every part has arrived")),
                Slot::Zeros(blocks) => push_zeros(&mut pieces, blocks as usize * BLOCK_SIZE),
            }
        }
        pieces
    }
}

/// What the block layer has asked agents for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask {
    /// A part of a read.
    Read(ReadPart),
    /// Frame headers of an extent that is being emptied.
    GcFrames,
    /// Blocks of it that are still needed.
    GcBlocks(u64),
}

/// The block layer's requests by their numbers.
#[derive(Default, Debug)]
pub struct Asks {
    next: u64,
    asks: BTreeMap<u64, Ask>,
}

impl Asks {
    /// Numbers a request.
    pub fn insert(&mut self, ask: Ask) -> u64 {
        self.next += 1;
        self.asks.insert(self.next, ask);
        self.next
    }

    /// What the request of this number was for; it is over.
    pub fn take(&mut self, number: u64) -> Option<Ask> {
        self.asks.remove(&number)
    }
}

/// The mutation that returns the blocks of a read turned by one.
fn turned(bytes: &[u8]) -> Bytes {
    let mut blocks = bytes.to_vec();
    blocks.rotate_left(BLOCK_SIZE);
    blocks.into()
}
