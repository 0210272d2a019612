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

use super::calls::Calls;
use super::open::{OpenExtent, Phase, Placed};
use super::peers::Peers;
use super::{Call, Effects, MetaCall};
use crate::format::{Frame, FrameHeader, Pieces, Record, Stream};
use crate::ids::{AgentId, BLOCK_SIZE, Blocks, Epoch, ExtentId, ExtentSeq, VolumeId, Vseq};
use crate::limits::{APPEND_WAIT, COLD_FRAMES_MAX, FRAME_PAYLOAD_BLOCKS_MAX, FRAME_RECORDS_MAX};
use crate::meta::docs::AckMode;
use crate::mutation::{self, Mutation};
use crate::peer::Request;
use crate::time::Instant;
use bytes::Bytes;
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

/// A frame in the window.
#[derive(Clone, Debug)]
struct Flight {
    base: Vseq,
    records: SmallVec<[Record; 2]>,
    cookies: SmallVec<[u64; 2]>,
    payload: Pieces,
    crcs: SmallVec<[u32; 8]>,
    /// Where it is, or was until it lost its extent (then it is in `unplaced`).
    place: Option<(ExtentSeq, Blocks)>,
    /// Members that have not yet made it durable.
    waiting: u8,
    /// Members that have not yet received it.
    unreceived: u8,
    /// Packed from what garbage collection moves.
    cold: bool,
}

impl Flight {
    fn last(&self) -> Vseq {
        Vseq(self.base.0 + self.records.len() as u64 - 1)
    }
    fn blocks(&self) -> Blocks {
        1 + self.crcs.len() as Blocks
    }
    fn covers(&self, extent: ExtentSeq, block: Blocks) -> bool {
        self.place.is_some_and(|(seq, at)| seq == extent && (at + 1..at + self.blocks()).contains(&block))
    }
    /// Its payload at (`extent`, `block`), if that is where it lies.
    fn block(&self, extent: ExtentSeq, block: Blocks) -> Option<Bytes> {
        let (_, offset) = self.place.filter(|_| self.covers(extent, block))?;
        let mut skip = (block - offset - 1) as usize * BLOCK_SIZE;
        for piece in &self.payload {
            if skip < piece.len() {
                return Some(piece.slice(skip..skip + BLOCK_SIZE));
            }
            skip -= piece.len();
        }
        None
    }
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

    /// Packs and sends what can be sent.
    pub fn pump(&mut self, cx: &mut Cx<'_>) {
        while let Some(&base) = self.unplaced.first() {
            let at = self.position(base).expect("an unplaced frame is in the window");
            let blocks = self.window[at].blocks();
            let Some(seq) = self.choose(false, blocks, base).or_else(|| self.choose(true, blocks, base)) else {
                return;
            };
            self.unplaced.remove(&base);
            self.place(cx, at, seq);
        }
        self.pump_lane(cx, false);
        self.pump_lane(cx, true);
    }

    fn pump_lane(&mut self, cx: &mut Cx<'_>, cold: bool) {
        loop {
            let queue = if cold { &self.cold } else { &self.hot };
            let Some(first) = queue.front() else { return };
            let full = queue.len() >= FRAME_RECORDS_MAX || queue_blocks(queue) >= FRAME_PAYLOAD_BLOCKS_MAX;
            // Neither lane takes the other's turn.
            let room = match (cold, full) {
                (true, _) => self.cold_underway < COLD_FRAMES_MAX,
                (false, true) => self.window.len() - self.cold_underway < 4 * self.config.frames_max,
                (false, false) => self.window.len() - self.cold_underway < self.config.frames_max,
            };
            let paced = !cold && self.credit.is_some_and(|credit| credit <= 0);
            if paced || !room {
                return;
            }
            let least = 1 + Blocks::from(first.record.payload_blocks);
            let Some(seq) = self.choose(cold, least, self.next) else {
                if !cold {
                    self.divert_thin();
                }
                return;
            };
            let room = self.config.capacity - self.open[&seq].length;
            let flight = self.pack(cold, room.min(FRAME_PAYLOAD_BLOCKS_MAX + 1));
            self.next = flight.last().next();
            if let Some(credit) = self.credit.as_mut().filter(|_| !cold) {
                *credit -= i64::from(flight.blocks());
            }
            self.window.push_back(flight);
            self.place(cx, self.window.len() - 1, seq);
            if !cold && self.window.len() > 2 * self.width && self.width < self.width_max {
                self.width += 1;
            }
        }
    }

    /// Records without payload need not wait for room: they may go where garbage collection goes. Overtaking is fine, as
    /// nothing that is queued has been acknowledged.
    fn divert_thin(&mut self) {
        let (thin, hot) = std::mem::take(&mut self.hot).into_iter().partition(|item| item.record.payload_blocks == 0);
        let thin: VecDeque<Item> = thin;
        self.hot = hot;
        self.cold.extend(thin);
    }

    /// The next frame of a lane, of at most `room` blocks.
    fn pack(&mut self, cold: bool, room: Blocks) -> Flight {
        let queue = if cold { &mut self.cold } else { &mut self.hot };
        let mut flight = Flight {
            base: self.next,
            records: SmallVec::new(),
            cookies: SmallVec::new(),
            payload: Pieces::new(),
            crcs: SmallVec::new(),
            place: None,
            waiting: 0,
            unreceived: 0,
            cold,
        };
        self.cold_underway += usize::from(cold);
        while let Some(item) = queue.front()
            && flight.records.len() < FRAME_RECORDS_MAX
            && flight.blocks() + Blocks::from(item.record.payload_blocks) <= room
        {
            let item = queue.pop_front().expect("the queue has a front");
            for piece in &item.payload {
                flight.crcs.extend(piece.chunks_exact(BLOCK_SIZE).map(crate::format::crc));
            }
            flight.records.push(item.record);
            flight.cookies.push(item.cookie);
            flight.payload.extend(item.payload);
        }
        assert!(!flight.records.is_empty(), "a record that fits its extent was not packed");
        flight
    }

    /// A ready extent of the lane with room for `blocks` and nothing newer than `base`. Closes those that are full.
    fn choose(&mut self, cold: bool, blocks: Blocks, base: Vseq) -> Option<ExtentSeq> {
        let capacity = self.config.capacity;
        for x in self.open.values_mut().filter(|x| x.is_for(cold)) {
            if x.length + blocks > capacity && x.last < base {
                x.close(false);
            }
        }
        let width = if cold { 1 } else { self.width };
        // In use first (they have frames), then spares, in the order of registration; as many as the width allows.
        let mut ready: SmallVec<[&OpenExtent; 8]> =
            self.open.values().filter(|x| x.is_for(cold) && x.last < base).collect();
        ready.sort_by_key(|x| (x.length == 0, x.seq));
        ready.truncate(width);
        self.turn = self.turn.wrapping_add(1);
        let turn = self.turn;
        let count = ready.len();
        ready.iter().enumerate().min_by_key(|(i, x)| (x.frames.len(), (i + turn) % count.max(1))).map(|(_, x)| x.seq)
    }

    /// Gives the frame at `at` in the window its place in `seq` and sends it to all members.
    fn place(&mut self, cx: &mut Cx<'_>, at: usize, seq: ExtentSeq) {
        let x = self.open.get_mut(&seq).expect("a chosen extent is open");
        let flight = &mut self.window[at];
        assert!(x.phase == Phase::Ready && x.last < flight.base, "vseq must increase along extent {seq}");
        let offset = x.length;
        if at < self.applied
            && let Some(from) = flight.place
        {
            self.events.push(LogEvent::Moved { records: flight.records.clone(), from, to: (seq, offset) });
        }
        let id = ExtentId { volume: self.config.volume, seq };
        let header = FrameHeader {
            extent: id,
            offset,
            stream: Stream::Log,
            epoch: self.epoch,
            base: flight.base,
            lac: self.lac,
            records: flight.records.clone(),
            crcs: flight.crcs.clone(),
        };
        let frame = Frame { header: header.encode(), payload: flight.payload.clone() };
        flight.place = Some((seq, offset));
        self.written += u64::from(header.blocks());
        (flight.waiting, flight.unreceived) = (x.all(), x.all());
        x.length += header.blocks();
        x.last = header.last();
        x.frames.push_back(Placed { base: flight.base, last: x.last, end: x.length });
        let early = self.config.mode == AckMode::Received;
        for member in &x.members {
            let request = Request::Append { extent: id, epoch: self.epoch, offset, frame: frame.clone(), early };
            cx.calls.send(cx.now, member.agent, request, APPEND_WAIT, Call::Append { seq, end: x.length }, cx.out);
        }
    }

    /// `agent` reports its copy of `seq` durable, or only received, up to `length`.
    pub fn on_appended(&mut self, agent: AgentId, seq: ExtentSeq, length: Blocks, durable: bool) {
        let Some(x) = self.open.get_mut(&seq) else { return };
        let Some(bit) = x.bit(agent) else { return };
        let member = &mut x.members[bit.trailing_zeros() as usize];
        member.received = member.received.max(length);
        if durable {
            member.durable = member.durable.max(length);
        }
        if x.stream == Stream::Checkpoint {
            return;
        }
        for placed in x.frames.iter().take_while(|f| f.end <= length) {
            let at = self.window.partition_point(|f| f.base < placed.base);
            let flight = &mut self.window[at];
            flight.unreceived &= !bit;
            if durable {
                flight.waiting &= !bit;
            }
        }
    }

    /// Acknowledges what has become acknowledgeable.
    pub fn commit(&mut self) {
        let early = self.config.mode == AckMode::Received && !self.hold;
        while let Some(flight) = self.window.get(self.applied) {
            let complete = flight.place.is_some() && if early { flight.unreceived == 0 } else { flight.waiting == 0 };
            let complete = complete
                || (mutation::active(Mutation::AckBeforeAllMembers)
                    && flight.place.is_some_and(|(x, _)| flight.waiting != self.open[&x].all()));
            if !complete {
                if mutation::active(Mutation::AckOutOfOrder) {
                    self.commit_out_of_order();
                }
                break;
            }
            let (extent, offset) = flight.place.expect("a complete frame has a place");
            self.acked = flight.last();
            self.events.push(LogEvent::Acked {
                base: flight.base,
                records: flight.records.clone(),
                cookies: flight.cookies.clone(),
                extent,
                offset,
            });
            self.applied += 1;
        }
        while self.applied > 0 && self.window.front().is_some_and(|f| f.waiting == 0 && f.place.is_some()) {
            let flight = self.window.pop_front().expect("the window has a front");
            self.applied -= 1;
            self.cold_underway -= usize::from(flight.cold);
            self.lac = flight.last();
            let (seq, _) = flight.place.expect("a durable frame has a place");
            let x = self.open.get_mut(&seq).expect("a frame in the window lies in an open extent");
            let placed = x.frames.pop_front().expect("the extent knows its frames");
            assert_eq!(placed.base, flight.base, "frames leave extent {seq} out of order");
            (x.popped, x.popped_end) = (placed.last, placed.end);
        }
    }

    /// The mutation that acknowledges whatever is durable, whatever lies before it.
    fn commit_out_of_order(&mut self) {
        for flight in self.window.iter_mut().skip(self.applied + 1) {
            if let Some((extent, offset)) = flight.place
                && flight.waiting == 0
                && !flight.cookies.is_empty()
            {
                self.events.push(LogEvent::Acked {
                    base: flight.base,
                    records: flight.records.clone(),
                    cookies: std::mem::take(&mut flight.cookies),
                    extent,
                    offset,
                });
            }
        }
    }

    /// Ends an extent that has lost a member, or that refuses: what is not durable everywhere moves elsewhere.
    pub fn lose_extent(&mut self, seq: ExtentSeq) {
        let Some(x) = self.open.get_mut(&seq).filter(|_| !mutation::active(Mutation::LostMemberKept)) else { return };
        if x.stream == Stream::Checkpoint {
            // Nothing refers to an unfinished checkpoint, and it is begun anew: its extents end empty, and their slots are
            // given back at once.
            return x.void();
        }
        for base in x.close(true) {
            let at = self.position(base).expect("an open extent's frame is in the window");
            self.window[at].waiting = u8::MAX;
            self.window[at].unreceived = u8::MAX;
            self.unplaced.insert(base);
        }
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

/// Payload blocks at the head of a queue, as far as one frame could take them.
fn queue_blocks(queue: &VecDeque<Item>) -> Blocks {
    queue.iter().take(FRAME_RECORDS_MAX).map(|item| Blocks::from(item.record.payload_blocks)).sum()
}

impl OpenExtent {
    fn is_for(&self, cold: bool) -> bool {
        self.phase == Phase::Ready && self.stream == Stream::Log && self.cold == cold
    }
}
