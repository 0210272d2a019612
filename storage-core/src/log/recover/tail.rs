//! The log's tail: what frames there are, where the log ends, completing copies up to there.

use super::extent::{FillStep, sound};
use super::{FrameInfo, OpenError, Phase, Recovery, What};
use crate::format::frame::whole_frames;
use crate::format::{FrameHeader, Pieces, Stream};
use crate::ids::{AgentId, BLOCK_SIZE, Blocks, ExtentId, ExtentSeq, Vseq};
use crate::limits::{INDEX_READS_MAX, PEER_WAIT, READ_BLOCKS_MAX, RETRY_PAUSE};
use crate::log::Effects;
use crate::mutation::{self, Mutation};
use crate::peer::{Copy, Rejection, Request, Response, Unanswered};
use crate::time::Instant;
use smallvec::SmallVec;

impl Recovery {
    /// Reads the frame headers of every log extent up to its length; when all are there, finds the log's end.
    pub(super) fn index(&mut self, now: Instant, out: &mut Effects) -> Result<(), OpenError> {
        let volume = self.claim.volume;
        let mut room = INDEX_READS_MAX.saturating_sub(self.extents.values().filter(|x| x.asking).count());
        for x in self.extents.values_mut().filter(|x| !x.indexed && !x.asking && x.retry <= now) {
            if x.reached() >= x.length {
                x.indexed = true;
                continue;
            }
            if room == 0 {
                break;
            }
            let sources = x.sources(&self.peers);
            let Some(&agent) = sources.get(x.tried % sources.len().max(1)) else {
                x.retry = now + RETRY_PAUSE;
                continue;
            };
            x.asking = true;
            room -= 1;
            let extent = ExtentId { volume, seq: x.seq };
            let request = Request::Frames { extent, epoch: self.epoch, from: x.reached() };
            self.calls.send(now, agent, request, PEER_WAIT, What::Frames(x.seq, x.reached()), out);
        }
        if self.extents.values().all(|x| x.indexed) {
            self.phase = Phase::Fill;
            self.cut()?;
        }
        Ok(())
    }

    pub(super) fn on_frames(
        &mut self,
        now: Instant,
        seq: ExtentSeq,
        from: AgentId,
        at: Blocks,
        result: Result<Response, Unanswered>,
    ) {
        let volume = self.claim.volume;
        let Some(x) = self.extents.get_mut(&seq) else { return };
        x.asking = false;
        let silent = result.is_err();
        let before = x.reached();
        if at != before {
            // Asked before the end was sought anew.
            return;
        }
        if matches!(&result, Ok(Response::Frames { headers, end: true }) if headers.is_empty())
            && self.ends_at(seq, from, at)
        {
            return;
        }
        let Some(x) = self.extents.get_mut(&seq) else { return };
        if let Ok(Response::Frames { headers, .. }) = result {
            for block in headers {
                let at = x.reached();
                if at >= x.length {
                    break;
                }
                let Ok(header) = FrameHeader::decode(&block, ExtentId { volume, seq }, at) else { break };
                if at + header.blocks() > x.length {
                    break;
                }
                x.frames.push(FrameInfo { offset: at, base: header.base, records: header.records });
            }
        }
        if x.reached() == before {
            // This copy does not have it: ask another.
            if !silent {
                x.lacking.insert(from);
            }
            x.tried += 1;
            x.retry = now + RETRY_PAUSE / 4;
            let heard_out = x.heard_out(now, silent);
            // No copy has it: it was not acknowledged if a sound copy ends here, or before.
            let proof = x.answers.values().filter_map(sound).any(|length| length <= before);
            if x.tried > 8 * x.doc.members.len() && proof && heard_out {
                x.length = before;
            }
        } else {
            x.silent = None;
            x.lacking.clear();
        }
    }

    /// Finds the first missing record and ends every open extent before it.
    pub(super) fn cut(&mut self) -> Result<(), OpenError> {
        let done = self.head.as_ref().map_or(Vseq(0), |(head, _)| head.vseq);
        let mut spans: Vec<(Vseq, Vseq)> = self
            .extents
            .values()
            .flat_map(|x| x.frames.iter().map(|f| (f.base, f.last())))
            .filter(|(_, last)| *last > done)
            .collect();
        spans.sort_unstable();
        let mut next = done.next();
        for (base, last) in spans {
            if base > next {
                break;
            }
            next = next.max(last.next());
        }
        self.next = next;
        if self.acknowledged() >= next {
            return self.wait_for_more();
        }
        for x in self.extents.values_mut() {
            if !x.is_log() || x.contained {
                continue;
            }
            let is_kept = |f: &&FrameInfo| f.base < next || mutation::active(Mutation::GapKept);
            let keep = x.frames.iter().take_while(is_kept).count();
            match x.doc.sealed {
                Some(seal) if keep < x.frames.len() || x.reached() != seal.length => {
                    let what = format!("extent {} does not end at block {}, where it is sealed", x.seq, seal.length);
                    return Err(OpenError::Inconsistent(what));
                }
                Some(_) => {}
                None => {
                    let left_out = usize::from(mutation::active(Mutation::LastFrameLeftOut));
                    x.frames.truncate(keep.saturating_sub(left_out));
                    x.length = x.reached();
                }
            }
            if !x.frames.is_sorted_by(|a, b| a.last() < b.base) {
                return Err(OpenError::Inconsistent(format!("records in extent {} are out of order", x.seq)));
            }
        }
        for x in self.extents.values_mut().filter(|x| x.doc.sealed.is_none() && x.is_log()) {
            x.plan_fills();
        }
        Ok(())
    }

    /// The last record that is known to have been acknowledged.
    fn acknowledged(&self) -> Vseq {
        let sealed = self.extents.values().filter(|x| x.is_log()).filter_map(|x| x.doc.sealed).map(|seal| seal.last);
        let copies = self.extents.values().flat_map(|x| x.answers.values());
        let told = copies.filter_map(|copy| match *copy {
            Copy::Open { lac, .. } => Some(lac),
            Copy::Never | Copy::Unknown | Copy::Sealed { .. } => None,
        });
        sealed.chain(told).max().unwrap_or_default()
    }

    /// Members that have answered so far lack what was acknowledged: back to the others.
    fn wait_for_more(&mut self) -> Result<(), OpenError> {
        let open = || self.extents.values().filter(|x| x.is_open());
        if open().all(|x| x.doc.members.iter().all(|agent| x.answers.contains_key(agent))) {
            return Err(OpenError::Inconsistent(format!(
                "record {} is on no member, although {} was acknowledged after it",
                self.next,
                self.acknowledged()
            )));
        }
        self.short_at = Some(self.answered());
        self.seek_end();
        Ok(())
    }

    /// Back to what the members of open extents have said.
    fn seek_end(&mut self) {
        for x in self.extents.values_mut().filter(|x| x.is_open()) {
            (x.indexed, x.tried, x.silent) = (false, 0, None);
            x.frames.clear();
            x.fills.clear();
            x.lacking.clear();
        }
        self.phase = Phase::Fence;
    }

    /// The copy of `from`, which had told of more, ends at block `at`: it has started again since, and found damage. Whether that
    /// leaves the extent's end open, which is then sought anew.
    fn ends_at(&mut self, seq: ExtentSeq, from: AgentId, at: Blocks) -> bool {
        let Some(x) = self.extents.get_mut(&seq).filter(|x| x.is_open()) else { return false };
        let Some(copy) = x.answers.get_mut(&from) else { return false };
        let lac = match *copy {
            Copy::Open { length, lac, .. } if at < length => lac,
            Copy::Sealed { length, .. } if at < length => Vseq(0),
            _ => return false,
        };
        *copy = Copy::Open { length: at, lac, damaged: true };
        if x.settled() && x.end() >= x.length {
            return false;
        }
        self.seek_end();
        true
    }

    /// Makes every open extent whole on every member that answered.
    pub(super) fn fill(&mut self, now: Instant, out: &mut Effects) {
        let volume = self.claim.volume;
        for x in self.extents.values_mut().filter(|x| x.retry <= now) {
            let extent = ExtentId { volume, seq: x.seq };
            let (length, seq) = (x.length, x.seq);
            let sources: Vec<AgentId> = x.sources(&self.peers);
            let tried = x.tried;
            for filling in x.fills.iter_mut().filter(|f| f.step == FillStep::Idle) {
                if filling.at >= length {
                    filling.step = FillStep::Over;
                    continue;
                }
                let others: SmallVec<[AgentId; 4]> = sources.iter().copied().filter(|s| *s != filling.target).collect();
                let Some(&source) = others.get(tried % others.len().max(1)) else {
                    filling.step = FillStep::Over;
                    continue;
                };
                filling.step = FillStep::Reading;
                let blocks = READ_BLOCKS_MAX.min(length - filling.at);
                let request = Request::Read { extent, epoch: self.epoch, offset: filling.at, blocks };
                self.calls.send(now, source, request, PEER_WAIT, What::FillRead(seq, filling.target), out);
            }
        }
        if self.extents.values().all(|x| x.fills.iter().all(|f| f.step == FillStep::Over)) {
            self.phase = Phase::Wait;
        }
    }

    pub(super) fn on_fill_read(
        &mut self,
        now: Instant,
        seq: ExtentSeq,
        target: AgentId,
        from: AgentId,
        result: Result<Response, Unanswered>,
        out: &mut Effects,
    ) {
        let extent = ExtentId { volume: self.claim.volume, seq };
        if let Ok(Response::Rejected(Rejection::PastEnd { length })) = result
            && self.ends_at(seq, from, length)
        {
            return;
        }
        let Some(x) = self.extents.get_mut(&seq) else { return };
        let Some(filling) = x.filling(target) else { return };
        let at = filling.at;
        let bytes = match result {
            Ok(Response::Data { bytes, .. }) => bytes,
            other => {
                // Another source, if there is one; the copy stays short otherwise, and repair completes it later.
                filling.step = FillStep::Idle;
                x.tried += 1;
                let heard_out = x.heard_out(now, other.is_err());
                if x.tried > 4 * x.doc.members.len() && heard_out {
                    self.shorten(seq, target);
                }
                return;
            }
        };
        let blocks = whole_frames(&bytes, extent, at);
        if blocks == 0 {
            return self.shorten(seq, target);
        }
        filling.step = FillStep::Writing;
        let bytes = Pieces::from_iter([bytes.slice(..blocks as usize * BLOCK_SIZE)]);
        let request = Request::Fill { extent, epoch: self.epoch, stream: Stream::Log, copy: 0, offset: at, bytes };
        self.calls.send(now, target, request, PEER_WAIT, What::Fill(seq, target, at + blocks), out);
    }

    pub(super) fn on_filled(
        &mut self,
        now: Instant,
        seq: ExtentSeq,
        target: AgentId,
        end: Blocks,
        result: &Result<Response, Unanswered>,
    ) {
        let Some(x) = self.extents.get_mut(&seq) else { return };
        let taken = matches!(result, Ok(Response::Appended { .. }));
        if taken {
            x.silent = None;
        } else if x.heard_out(now, result.is_err()) {
            return self.shorten(seq, target);
        }
        if let Some(filling) = x.filling(target) {
            filling.at = if taken { end } else { filling.at };
            filling.step = FillStep::Idle;
        }
    }

    /// Nobody can give `target` what it lacks, or it does not take it. If its copy is sound, none of that was ever acknowledged: the extent ends
    /// where the copy does, and the log's end is found anew. Otherwise repair completes the copy later.
    pub(super) fn shorten(&mut self, seq: ExtentSeq, target: AgentId) {
        let Some(x) = self.extents.get_mut(&seq) else { return };
        let proof = x.answers.get(&target).is_some_and(|copy| sound(copy).is_some());
        let Some(filling) = x.filling(target) else { return };
        let at = filling.at;
        filling.step = FillStep::Over;
        if !proof {
            return;
        }
        x.length = at;
        x.frames.retain(|f| f.end() <= at);
        for x in self.extents.values_mut() {
            x.fills.clear();
            x.lacking.clear();
            (x.tried, x.silent) = (0, None);
        }
        self.phase = Phase::Index;
    }
}

#[cfg(test)]
mod tests {
    use super::super::extent::Extent;
    use super::super::{Claim, OpenError, Phase};
    use super::*;
    use crate::ids::VolumeId;
    use crate::meta::Revision;
    use crate::meta::docs::{ExtentDoc, Holder, Seal};
    use crate::time::Duration;

    /// A takeover that reads the frames of one extent, which was sealed with nine blocks on agents 1 and 2.
    fn reading() -> (Recovery, ExtentSeq) {
        let (volume, patience) = (VolumeId(1), Duration::from_secs(1));
        let holder = Holder::default();
        let mut recovery = Recovery::new(Claim { volume, holder, nonce: 1, lease: None, force: false, patience });
        let doc = ExtentDoc {
            stream: Stream::Log,
            members: vec![AgentId(1), AgentId(2)],
            former: Vec::new(),
            degraded: false,
            sealed: Some(Seal { length: 9, last: Vseq(8) }),
        };
        let seq = ExtentSeq(1 << 24);
        recovery.extents.insert(seq, Extent::new(seq, doc, Revision(1)));
        recovery.phase = Phase::Index;
        (recovery, seq)
    }

    #[test]
    fn whoever_has_answered_that_it_lacks_frames_is_not_to_be_started() {
        let (mut recovery, seq) = reading();
        let remedy = |recovery: &Recovery| match recovery.give_up() {
            OpenError::Missing { remedy, .. } => remedy.replace(&"0".repeat(15), ""),
            other => panic!("{other}"),
        };
        assert_eq!(remedy(&recovery), "start agent 1 or agent 2");
        recovery.on_frames(Instant::default(), seq, AgentId(1), 0, Err(Unanswered));
        assert_eq!(remedy(&recovery), "start agent 1 or agent 2");
        let nothing = || Ok(Response::Frames { headers: Vec::new(), end: true });
        recovery.on_frames(Instant::default(), seq, AgentId(2), 0, nothing());
        assert_eq!(remedy(&recovery), "start agent 1");
        recovery.on_frames(Instant::default(), seq, AgentId(1), 0, nothing());
        assert!(
            remedy(&recovery).starts_with("agent 1 and agent 2 have answered, and none has all"),
            "{}",
            remedy(&recovery)
        );
    }
    /// A hundred extents' frames asked for at once would be answered too late by a slow disk, all of them.
    #[test]
    fn few_extents_are_asked_for_their_frames_at_a_time() {
        let (mut recovery, first) = reading();
        let doc = recovery.extents[&first].doc.clone();
        for n in 1..100 {
            let seq = ExtentSeq((1 << 24) + n);
            recovery.extents.insert(seq, Extent::new(seq, doc.clone(), Revision(1)));
        }
        let (now, mut out) = (Instant::default(), Effects::default());
        recovery.index(now, &mut out).unwrap();
        recovery.index(now, &mut out).unwrap();
        assert_eq!(out.sends.len(), INDEX_READS_MAX);
        let nothing = Response::Frames { headers: Vec::new(), end: true };
        recovery.on_answer(now, out.sends[0].rpc, Ok(nothing), &mut out).unwrap();
        recovery.index(now, &mut out).unwrap();
        assert_eq!(out.sends.len(), INDEX_READS_MAX + 1, "who is answered makes room");
    }
    /// Two members found damage when they started again, after they had told of nine blocks: nobody has what they had, and an
    /// extent that were sealed there could never be read.
    #[test]
    fn what_members_have_no_more_is_not_kept() {
        let (mut recovery, seq) = reading();
        let x = recovery.extents.get_mut(&seq).unwrap();
        x.doc.sealed = None;
        x.doc.members.push(AgentId(3));
        let told = [(1, 9, false), (2, 9, false), (3, 4, true)];
        let copy = |(id, length, damaged)| (AgentId(id), Copy::Open { length, lac: Vseq(2), damaged });
        x.answers = told.map(copy).into();
        x.length = x.end();
        x.indexed = true;
        x.plan_fills();
        recovery.phase = Phase::Fill;
        let mut out = Effects::default();
        let mut past_end = |recovery: &mut Recovery, from, length| {
            let refused = Ok(Response::Rejected(Rejection::PastEnd { length }));
            recovery.on_fill_read(Instant::default(), seq, AgentId(3), AgentId(from), refused, &mut out);
        };
        past_end(&mut recovery, 1, 2);
        assert_eq!((recovery.phase, recovery.extents[&seq].end()), (Phase::Fill, 9), "the other one has it");
        past_end(&mut recovery, 2, 0);
        assert_eq!((recovery.phase, recovery.extents[&seq].end()), (Phase::Fence, 4));
        assert!(recovery.extents[&seq].settled(), "all have told");
        recovery.fence(Instant::default(), &mut Effects::default());
        assert_eq!((recovery.phase, recovery.extents[&seq].length), (Phase::Index, 4));
    }
}
