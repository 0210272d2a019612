//! Opening, as the scripted owner does it: raise the epoch, fence, fill, seal, replay, wait out leases, begin an extent.
//! One thing after the other; whatever cannot be done ends the run.

use super::{Base, Extent, STREAM, Serving, Turn};
use crate::owner::Output;
use crate::world::VOLUME;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use torus_core::format::{FrameHeader, crc};
use torus_core::ids::{AgentId, BLOCK_SIZE, Blocks, Epoch, ExtentSeq, RpcId, Vseq};
use torus_core::limits::READ_LEASE;
use torus_core::meta::docs::{self, EpochDoc, ExtentDoc, Holder, Seal};
use torus_core::meta::{Compare, Entry, MetaError, MetaOp, MetaReply, Txn, Write, keys};
use torus_core::peer::{Class, Copy, Request, Response, Unanswered};
use torus_core::time::{Duration, Instant};

/// How long to wait for the fences of members that do not answer.
const FENCE_WAIT: Duration = Duration::from_millis(1_500);

#[derive(Debug)]
enum Step {
    /// Headers of the frames of an extent from its copies, tried in turn.
    Frames {
        seq: ExtentSeq,
        from: Vec<AgentId>,
        length: Blocks,
    },
    /// A frame of one copy for another one.
    Fetch {
        seq: ExtentSeq,
        from: Vec<AgentId>,
        to: AgentId,
        header: FrameHeader,
    },
    Fill {
        seq: ExtentSeq,
        to: AgentId,
        offset: Blocks,
        bytes: bytes::Bytes,
    },
    Seal {
        seq: ExtentSeq,
        agent: AgentId,
        length: Blocks,
    },
    /// The transaction that seals everything.
    Commit,
    Replay,
    /// The dead front of the log goes.
    Forget,
    Delete {
        seq: ExtentSeq,
        agent: AgentId,
    },
    WaitLeases,
    Register,
    Create {
        agent: AgentId,
    },
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Start,
    ReadingEpoch,
    Raising,
    Listing,
    Fencing {
        waiting: BTreeSet<AgentId>,
        until: Instant,
    },
    Steps,
}

/// An opening under way.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    stage: Stage,
    nonce: u64,
    copies: BTreeMap<ExtentSeq, BTreeMap<AgentId, Copy>>,
    steps: VecDeque<Step>,
    /// Headers of each extent, in order.
    headers: BTreeMap<ExtentSeq, Vec<FrameHeader>>,
    /// Copies that are closed at the extent's seal.
    sealed: BTreeMap<ExtentSeq, Vec<AgentId>>,
    leases_until: Instant,
    last: Vseq,
    new: Option<(ExtentSeq, Vec<AgentId>)>,
    /// The step at the front has been asked for.
    asked: bool,
    due: Option<Instant>,
}

impl Recovery {
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Fencing { until, .. } => Some(*until),
            _ => self.due,
        }
    }

    pub(super) fn begin(&mut self, base: &mut Base, out: &mut Output) -> Turn {
        if matches!(self.stage, Stage::Start) {
            self.nonce = base.rng.bits();
            self.stage = Stage::ReadingEpoch;
            base.ask(MetaOp::Get(keys::volume_epoch(VOLUME)), out);
        }
        Turn::Stay
    }

    pub(super) fn meta(
        &mut self,
        base: &mut Base,
        now: Instant,
        _: u64,
        result: Result<MetaReply, MetaError>,
        out: &mut Output,
    ) -> Turn {
        match (&self.stage, result) {
            (Stage::ReadingEpoch, Ok(MetaReply::Got(entry))) => self.raise(base, entry, out),
            (Stage::Raising, Ok(MetaReply::Committed(_))) => {
                self.stage = Stage::Listing;
                base.ask(MetaOp::List(keys::extents(VOLUME)), out);
                Turn::Stay
            }
            (Stage::Listing, Ok(MetaReply::Listed(entries, _))) => self.fence(base, now, &entries, out),
            (Stage::Steps, Ok(MetaReply::Committed(_))) => {
                let done = self.steps.pop_front();
                self.asked = false;
                if let Some(Step::Register) = done
                    && let Some((seq, members)) = &self.new
                {
                    base.extents.insert(*seq, Extent { members: members.clone(), seal: None, live: 0 });
                    for agent in members {
                        self.steps.push_back(Step::Create { agent: *agent });
                    }
                }
                self.next(base, now, out)
            }
            (_, Ok(_)) => Turn::End("another owner was faster".into()),
            (_, Err(error)) => Turn::End(format!("cannot open: {error}")),
        }
    }

    fn raise(&mut self, base: &mut Base, entry: Option<Entry>, out: &mut Output) -> Turn {
        let key = keys::volume_epoch(VOLUME);
        let (when, epoch) = match &entry {
            None => (Compare::Absent(key.clone()), Epoch(1)),
            Some(entry) => match docs::decode::<EpochDoc>(&key, &entry.value) {
                Ok(doc) => (Compare::Unchanged(key.clone(), entry.modified), doc.epoch.next()),
                Err(error) => return Turn::End(error.to_string()),
            },
        };
        let doc = EpochDoc { epoch, holder: Holder::default(), nonce: self.nonce };
        base.epoch = epoch;
        base.epoch_doc = docs::encode(&doc);
        let then = vec![Write::Put { key, value: base.epoch_doc.clone(), lease: None }];
        self.stage = Stage::Raising;
        base.ask(MetaOp::Txn(Txn { when: vec![when], then }), out);
        Turn::Stay
    }

    fn fence(&mut self, base: &mut Base, now: Instant, entries: &[Entry], out: &mut Output) -> Turn {
        for entry in entries {
            let (Some(seq), Ok(doc)) =
                (keys::parse_extent(&entry.key), docs::decode::<ExtentDoc>(&entry.key, &entry.value))
            else {
                return Turn::End(format!("nonsense at {}", entry.key));
            };
            base.extents.insert(seq, Extent { members: doc.members, seal: doc.sealed, live: 0 });
        }
        let mut asked: BTreeMap<AgentId, Vec<ExtentSeq>> = BTreeMap::new();
        for (seq, extent) in base.extents.iter().filter(|(_, extent)| extent.seal.is_none()) {
            for agent in &extent.members {
                asked.entry(*agent).or_default().push(*seq);
            }
        }
        let waiting = asked.keys().copied().collect();
        self.leases_until = now;
        for (agent, extents) in asked {
            // Until it has said otherwise it may have promised anything.
            let request = Request::Fence { volume: VOLUME, epoch: base.epoch, extents };
            base.send(now, agent, request, out);
        }
        self.stage = Stage::Fencing { waiting, until: now + FENCE_WAIT };
        self.fences_done(base, now, false, out)
    }

    /// Goes on when all have answered, or when there is no more time to wait.
    fn fences_done(&mut self, base: &mut Base, now: Instant, late: bool, out: &mut Output) -> Turn {
        let Stage::Fencing { waiting, .. } = &self.stage else { return Turn::Stay };
        if !waiting.is_empty() && !late {
            return Turn::Stay;
        }
        if !waiting.is_empty() {
            self.leases_until = self.leases_until.max(now + READ_LEASE);
        }
        self.stage = Stage::Steps;
        let open: Vec<ExtentSeq> = base.extents.iter().filter(|(_, e)| e.seal.is_none()).map(|(seq, _)| *seq).collect();
        for seq in open {
            if let Err(why) = self.plan_seal(base, seq) {
                return Turn::End(why);
            }
        }
        for (seq, extent) in &base.extents {
            if let Some(seal) = extent.seal.filter(|seal| seal.length > 0) {
                let from = extent.members.clone();
                self.steps.push_back(Step::Frames { seq: *seq, from, length: seal.length });
            }
        }
        // Leases first: who finds everything sealed may rely on it that the leases of older owners have run out.
        self.steps.extend([Step::WaitLeases, Step::Commit, Step::Replay, Step::Forget, Step::Register]);
        self.next(base, now, out)
    }

    /// The end of an extent lies between the shortest sound copy and the longest valid prefix; a sealed copy has the last
    /// word.
    fn plan_seal(&mut self, base: &mut Base, seq: ExtentSeq) -> Result<(), String> {
        let copies = self.copies.remove(&seq).unwrap_or_default();
        let mut length = None;
        let mut proven = None;
        for copy in copies.values() {
            match copy {
                Copy::Sealed { length: at, .. } => {
                    (length, proven) = (Some(*at), Some(*at));
                    break;
                }
                Copy::Open { length: at, damaged, .. } => {
                    length = length.max(Some(*at));
                    if !damaged {
                        proven = Some(proven.map_or(*at, |least: Blocks| least.min(*at)));
                    }
                }
                Copy::Never => {
                    length = length.max(Some(0));
                    proven = Some(0);
                }
                Copy::Unknown => {}
            }
        }
        // A crash may tear the same frame on every copy. But what was acknowledged was whole on all of them, and not all
        // can have rotted: if everybody has answered, what nobody holds was never acknowledged.
        let members = base.extents.get(&seq).map_or(0, |extent| extent.members.len());
        if proven.is_none() && copies.len() == members && copies.values().all(|copy| *copy != Copy::Unknown) {
            proven = length;
        }
        let (Some(longest), Some(shortest)) = (length, proven) else {
            return Err(format!("no whole copy of extent {seq} can be reached"));
        };
        // What a sound copy lacks was never acknowledged. To take the longest all the same is kinder; to take the
        // shortest works even if nobody can read the rest.
        let length = if base.rng.one_in(3) { shortest } else { longest };
        let reach = |copy: &Copy| match copy {
            Copy::Sealed { length, .. } | Copy::Open { length, .. } => *length,
            Copy::Never | Copy::Unknown => 0,
        };
        let (long, short): (Vec<AgentId>, Vec<AgentId>) =
            copies.keys().partition(|agent| reach(&copies[agent]) >= length);
        if let Some(extent) = base.extents.get_mut(&seq) {
            extent.seal = Some(Seal { length, last: Vseq(0) });
        }
        if length > 0 {
            self.steps.push_back(Step::Frames { seq, from: long.clone(), length });
        }
        for to in short {
            if !matches!(copies[&to], Copy::Unknown | Copy::Never) {
                // The frames to fill are known when their headers are: an empty fetch stands for them.
                self.steps.push_back(Step::Fill { seq, to, offset: reach(&copies[&to]), bytes: bytes::Bytes::new() });
                self.steps.push_back(Step::Seal { seq, agent: to, length });
            }
        }
        for agent in long {
            if !matches!(copies[&agent], Copy::Never | Copy::Unknown) {
                self.steps.push_back(Step::Seal { seq, agent, length });
            }
        }
        self.sealed.entry(seq).or_default();
        Ok(())
    }

    /// Asks for the step at the front; carries out those that need nobody.
    fn next(&mut self, base: &mut Base, now: Instant, out: &mut Output) -> Turn {
        loop {
            if self.asked {
                return Turn::Stay;
            }
            let epoch = base.epoch;
            let (to, request) = match self.steps.front() {
                None => return self.serve(base, now),
                Some(Step::Frames { seq, from, .. }) => {
                    let Some(agent) = from.first() else { return Turn::End(format!("extent {seq} cannot be read")) };
                    let have = self.headers.get(seq).and_then(|headers| headers.last());
                    let from = have.map_or(0, |header| header.offset + header.blocks());
                    (*agent, Request::Frames { extent: Base::id(*seq), epoch, from })
                }
                Some(Step::Fetch { seq, from, header, .. }) => {
                    let Some(agent) = from.first() else { return Turn::End(format!("extent {seq} cannot be read")) };
                    let (offset, blocks) = (header.offset, header.blocks());
                    (*agent, Request::Read { extent: Base::id(*seq), epoch, offset, blocks })
                }
                Some(Step::Fill { seq, to, offset, bytes }) if bytes.is_empty() => {
                    let (seq, to, offset) = (*seq, *to, *offset);
                    self.plan_fill(base, seq, to, offset);
                    continue;
                }
                Some(Step::Fill { seq, to, offset, bytes }) => {
                    let bytes = smallvec::smallvec![bytes.clone()];
                    (
                        *to,
                        Request::Fill {
                            extent: Base::id(*seq),
                            epoch,
                            stream: STREAM,
                            copy: 0,
                            offset: *offset,
                            bytes,
                        },
                    )
                }
                Some(Step::Seal { seq, agent, length }) => {
                    (*agent, Request::Seal { extent: Base::id(*seq), epoch, length: *length })
                }
                Some(Step::Delete { seq, agent }) => {
                    (*agent, Request::Delete { extent: Base::id(*seq), epoch, copy: 0 })
                }
                Some(Step::Create { agent }) => {
                    let Some((seq, _)) = &self.new else { return Turn::End("no new extent".into()) };
                    let extent = Base::id(*seq);
                    (*agent, Request::Create { extent, epoch, stream: STREAM, class: Class::Data })
                }
                Some(Step::WaitLeases) => {
                    if now < self.leases_until {
                        self.due = Some(self.leases_until);
                        return Turn::Stay;
                    }
                    self.steps.pop_front();
                    continue;
                }
                Some(Step::Replay) => {
                    self.replay(base);
                    self.steps.pop_front();
                    continue;
                }
                Some(Step::Commit | Step::Forget | Step::Register) => match self.transaction(base) {
                    Ok(Some(txn)) => {
                        self.asked = true;
                        base.ask(MetaOp::Txn(txn), out);
                        return Turn::Stay;
                    }
                    Ok(None) => {
                        self.steps.pop_front();
                        continue;
                    }
                    Err(why) => return Turn::End(why),
                },
            };
            self.asked = true;
            base.send(now, to, request, out);
        }
    }

    fn plan_fill(&mut self, base: &Base, seq: ExtentSeq, to: AgentId, offset: Blocks) {
        self.steps.pop_front();
        let from: Vec<AgentId> = base.extents[&seq].members.iter().copied().filter(|agent| *agent != to).collect();
        let headers = self.headers.get(&seq).cloned().unwrap_or_default();
        for header in headers.into_iter().rev().filter(|header| header.offset >= offset) {
            self.steps.push_front(Step::Fetch { seq, from: from.clone(), to, header });
        }
    }

    fn replay(&mut self, base: &mut Base) {
        let headers = std::mem::take(&mut self.headers);
        for header in headers.values().flatten() {
            base.apply(header);
            self.last = self.last.max(header.last());
        }
    }

    fn transaction(&mut self, base: &mut Base) -> Result<Option<Txn>, String> {
        let guard = Compare::Holds(keys::volume_epoch(VOLUME), base.epoch_doc.clone());
        let then: Vec<Write> = match self.steps.front() {
            Some(Step::Commit) => {
                for (seq, holders) in &self.sealed {
                    let empty = base.extents[seq].seal.is_some_and(|seal| seal.length == 0);
                    if holders.is_empty() && !empty {
                        return Err(format!("no copy of extent {seq} could be sealed"));
                    }
                }
                let docs = self.sealed.keys().map(|seq| {
                    let extent = &base.extents[seq];
                    put_extent(*seq, &extent.members, extent.seal)
                });
                docs.collect()
            }
            Some(Step::Forget) => {
                let front = base.extents.iter().take_while(|(_, e)| e.live == 0 && e.seal.is_some());
                let dead: Vec<(ExtentSeq, Extent)> = front.take(20).map(|(seq, e)| (*seq, e.clone())).collect();
                for (seq, extent) in &dead {
                    base.extents.remove(seq);
                    for agent in extent.members.iter().filter(|agent| base.is_up(**agent)) {
                        self.steps.insert(1, Step::Delete { seq: *seq, agent: *agent });
                    }
                }
                dead.iter().map(|(seq, _)| Write::Delete(keys::extent(VOLUME, *seq))).collect()
            }
            _ => {
                let mut up: Vec<AgentId> = base.seen.iter().filter(|seen| seen.up).map(|seen| seen.id).collect();
                base.rng.shuffle(&mut up);
                up.truncate(base.replicas);
                if up.len() < base.min_replicas {
                    return Err(format!("only {} agents are up", up.len()));
                }
                let seq = ExtentSeq::new(base.epoch, 1).ok_or("no extent number is left")?;
                self.new = Some((seq, up.clone()));
                vec![put_extent(seq, &up, None)]
            }
        };
        Ok((!then.is_empty()).then(|| Txn { when: vec![guard], then }))
    }

    fn serve(&mut self, base: &mut Base, now: Instant) -> Turn {
        match self.new.take() {
            Some((seq, members)) => Turn::Serve(Serving::new(base, now, seq, members, self.last)),
            None => Turn::End("no extent to write to".into()),
        }
    }

    pub(super) fn tick(&mut self, base: &mut Base, now: Instant, out: &mut Output) -> Turn {
        match &self.stage {
            Stage::Fencing { until, .. } if *until <= now => self.fences_done(base, now, true, out),
            Stage::Steps if self.due.is_some_and(|due| due <= now) => {
                self.due = None;
                self.next(base, now, out)
            }
            _ => Turn::Stay,
        }
    }

    pub(super) fn answer(
        &mut self,
        base: &mut Base,
        now: Instant,
        agent: AgentId,
        _: RpcId,
        result: Result<Response, Unanswered>,
        out: &mut Output,
    ) -> Turn {
        if let Stage::Fencing { waiting, .. } = &mut self.stage {
            if let Ok(Response::Fenced { lease, extents }) = result {
                waiting.remove(&agent);
                self.leases_until = self.leases_until.max(now + lease);
                for (seq, copy) in extents {
                    self.copies.entry(seq).or_default().insert(agent, copy);
                }
            }
            return self.fences_done(base, now, false, out);
        }
        if !matches!(self.stage, Stage::Steps) {
            return Turn::Stay;
        }
        self.asked = false;
        let Some(step) = self.steps.pop_front() else { return Turn::Stay };
        if let Err(why) = self.take(step, result) {
            return Turn::End(why);
        }
        self.next(base, now, out)
    }

    /// Takes the answer to a step.
    fn take(&mut self, step: Step, result: Result<Response, Unanswered>) -> Result<(), String> {
        match (step, result) {
            (Step::Frames { seq, from, length }, Ok(Response::Frames { headers, .. })) => {
                self.take_headers(seq, from, length, &headers);
            }
            (Step::Fetch { seq, to, header, .. }, Ok(Response::Data { bytes, .. })) if is_frame(&header, &bytes) => {
                self.steps.push_front(Step::Fill { seq, to, offset: header.offset, bytes });
            }
            (Step::Frames { seq, mut from, length }, _) => {
                from.remove(0);
                self.headers.remove(&seq);
                self.steps.push_front(Step::Frames { seq, from, length });
            }
            (Step::Fetch { seq, mut from, to, header }, _) => {
                from.remove(0);
                self.steps.push_front(Step::Fetch { seq, from, to, header });
            }
            (Step::Fill { .. }, Ok(Response::Appended { .. }))
            | (Step::Create { .. }, Ok(Response::Created { .. }))
            | (Step::Delete { .. }, _) => {}
            (Step::Seal { seq, agent, length: asked }, Ok(Response::Sealed { length, .. })) => {
                if length != asked {
                    return Err(format!("{agent} sealed extent {seq} at {length} instead of {asked}"));
                }
                self.sealed.entry(seq).or_default().push(agent);
            }
            (Step::Fill { seq, to, .. }, _) | (Step::Seal { seq, agent: to, .. }, _) => {
                // This copy is left as it is: nobody relies on it.
                let of_copy = |step: &Step| matches!(step, Step::Fill { seq: s, to: t, .. } | Step::Fetch { seq: s, to: t, .. } | Step::Seal { seq: s, agent: t, .. } if *s == seq && *t == to);
                self.steps.retain(|step| !of_copy(step));
            }
            (step, result) => return Err(format!("{step:?} failed: {result:?}")),
        }
        Ok(())
    }

    fn take_headers(&mut self, seq: ExtentSeq, mut from: Vec<AgentId>, length: Blocks, blocks: &[bytes::Bytes]) {
        let known = self.headers.entry(seq).or_default();
        let mut at = known.last().map_or(0, |header| header.offset + header.blocks());
        let mut sound = !blocks.is_empty();
        for block in blocks {
            if at >= length {
                break;
            }
            match FrameHeader::decode(block, Base::id(seq), at) {
                Ok(header) => {
                    at += header.blocks();
                    known.push(header);
                }
                Err(_) => sound = false,
            }
        }
        if at == length {
            return;
        }
        if !sound {
            known.clear();
            from.remove(0);
        }
        self.steps.push_front(Step::Frames { seq, from, length });
    }
}

/// Whether `bytes` are the whole frame of `header`.
fn is_frame(header: &FrameHeader, bytes: &[u8]) -> bool {
    bytes.len() == header.blocks() as usize * BLOCK_SIZE
        && FrameHeader::decode(bytes, header.extent, header.offset).as_ref() == Ok(header)
        && bytes[BLOCK_SIZE..].chunks(BLOCK_SIZE).zip(&header.crcs).all(|(block, want)| crc(block) == *want)
}

fn put_extent(seq: ExtentSeq, members: &[AgentId], sealed: Option<Seal>) -> Write {
    let doc = ExtentDoc { stream: STREAM, members: members.to_vec(), former: Vec::new(), degraded: false, sealed };
    Write::Put { key: keys::extent(VOLUME, seq), value: docs::encode(&doc), lease: None }
}
