//! Opening, as the scripted owner does it: raise the epoch, fence, fill, seal, replay, wait out leases, begin an extent.
//! One thing after the other; whatever cannot be done ends the run. Where extents end is in `ends`, and the requests that it takes
//! in `steps`.

mod ends;
mod steps;
#[cfg(test)]
mod tests;

use super::{Base, Extent, Serving, Turn};
use crate::owner::Output;
use crate::world::VOLUME;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use steps::Step;
use torus_core::format::FrameHeader;
use torus_core::ids::{AgentId, Epoch, ExtentSeq, RpcId, Vseq};
use torus_core::limits::READ_LEASE;
use torus_core::meta::docs::{self, EpochDoc, ExtentDoc, Holder};
use torus_core::meta::{Compare, Entry, MetaError, MetaOp, MetaReply, Txn, Write, keys};
use torus_core::peer::{Copy, Request, Response, Unanswered};
use torus_core::time::{Duration, Instant};

/// How long to wait for the fences of members that do not answer.
const FENCE_WAIT: Duration = Duration::from_millis(1_500);

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

/// Who has been asked for a step.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Awaited {
    #[default]
    Nobody,
    Store,
    Member(RpcId),
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
    /// What members said of the extents that are about to be sealed.
    ending: BTreeMap<ExtentSeq, BTreeMap<AgentId, Copy>>,
    leases_until: Instant,
    last: Vseq,
    new: Option<(ExtentSeq, Vec<AgentId>)>,
    /// Whose answer the step at the front waits for.
    awaited: Awaited,
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
                self.awaited = Awaited::Nobody;
                match (done, &self.new) {
                    (Some(Step::Commit), _) => self.close_copies(base),
                    (Some(Step::Register), Some((seq, members))) => {
                        base.extents.insert(*seq, Extent { members: members.clone(), seal: None, live: 0 });
                        self.steps.extend(members.iter().map(|agent| Step::Create { agent: *agent }));
                    }
                    _ => {}
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
        let (sealed, open): (Vec<ExtentSeq>, Vec<ExtentSeq>) =
            base.extents.keys().partition(|seq| base.extents[seq].seal.is_some());
        for seq in sealed {
            let Extent { members, seal, .. } = &base.extents[&seq];
            if let Some(seal) = seal.filter(|seal| seal.length > 0) {
                self.steps.push_back(Step::Frames { seq, from: members.clone(), length: seal.length });
            }
        }
        for seq in open {
            if let Err(why) = self.plan_seal(base, seq) {
                return Turn::End(why);
            }
        }
        // Leases first: who finds everything sealed may rely on it that the leases of older owners have run out.
        self.steps.extend([Step::WaitLeases, Step::Commit, Step::Replay, Step::Forget, Step::Register]);
        self.next(base, now, out)
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
        rpc: RpcId,
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
        // A fence that was not waited for any longer may still be answered.
        if self.awaited != Awaited::Member(rpc) {
            return Turn::Stay;
        }
        self.awaited = Awaited::Nobody;
        let Some(step) = self.steps.pop_front() else { return Turn::Stay };
        if let Err(why) = self.take(base, step, result) {
            return Turn::End(why);
        }
        self.next(base, now, out)
    }
}
