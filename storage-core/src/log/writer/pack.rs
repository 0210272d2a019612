//! From records to frames on their way: which lane's turn it is, what goes into a frame, which extent it goes to.

use super::flight::Flight;
use super::{Cx, Item, LogEvent, Writer};
use crate::format::{Frame, FrameHeader, Pieces, Stream};
use crate::ids::{BLOCK_SIZE, Blocks, ExtentId, ExtentSeq, Vseq};
use crate::limits::{APPEND_WAIT, COLD_FRAMES_MAX, FRAME_PAYLOAD_BLOCKS_MAX, FRAME_RECORDS_MAX};
use crate::log::Call;
use crate::log::open::{OpenExtent, Phase, Placed};
use crate::meta::docs::AckMode;
use crate::peer::Request;
use smallvec::SmallVec;
use std::collections::VecDeque;

impl Writer {
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
            let underway = self.window.len() - self.cold_underway;
            // Neither lane takes the other's turn.
            let room = match (cold, full) {
                (true, _) => self.cold_underway < COLD_FRAMES_MAX,
                (false, true) => underway < 4 * self.config.frames_max,
                (false, false) => underway < self.config.frames_max && self.has_company(),
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

    /// Whether a frame of what is queued would be large enough to be sent, though it is not full.
    ///
    /// A frame costs each member a write and a sync, however little is in it. It is sent when all that was sent is acknowledged, or
    /// when it has half as many records as wait for that, before which none of its own can be: it waits for nothing that it would not
    /// wait for on the disks, and of many writes one part is there while another gathers.
    fn has_company(&self) -> bool {
        let unacknowledged = self.window.iter().skip(self.applied).filter(|flight| !flight.cold);
        let records: usize = unacknowledged.map(|flight| flight.records.len()).sum();
        !self.config.gather || 2 * self.hot.len() >= records
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
