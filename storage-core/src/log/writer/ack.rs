//! From answers of members to acknowledgements; and what becomes of frames whose extent has lost a member.

use super::{LogEvent, Writer};
use crate::format::Stream;
use crate::ids::{AgentId, Blocks, ExtentSeq};
use crate::meta::docs::AckMode;
use crate::mutation::{self, Mutation};

impl Writer {
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
}
