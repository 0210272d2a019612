//! Deleting a volume: has every agent give back what it holds of it.
//!
//! ```text
//!          fenced           listed: some          all deleted
//! Fence ───────────▶ List ───────────────▶ Delete ─────────────▶ List …
//!                     └── listed: none, nothing hidden ──▶ Clean
//! ```
//!
//! The agents are asked what they hold, and not the metadata store or a checkpoint: those can be lost in part, and a copy that
//! they do not name would stay for ever. What gives leave to delete is that the volume was marked as being deleted, in a
//! transaction that raised its epoch: nobody opens it any more.
//!
//! 1. Nothing is deleted at an agent before its fence at that epoch is durable there: an older owner that wakes up adds nothing.
//! 2. An agent is clean when it lists nothing after its fence, and no disk or slot of it is lost. Anything else (no answer, a
//!    refusal, a lost disk) leaves it unclean, and the volume in the metadata store (P5).
//! 3. All of it can be repeated at any time, by anybody: fences, lists and deletions come out the same.
//!
//! Not here: marking the volume, and forgetting its keys (the metadata functions); who the agents are.

use super::{Calls, Effects};
use crate::ids::{AgentId, Epoch, ExtentId, ExtentSeq, RpcId, VolumeId};
use crate::limits::{PEER_WAIT, REMOVAL_DELETES_MAX, RETRY_PAUSE};
use crate::peer::{Rejection, Request, Response, Unanswered};
use crate::time::{Duration, Instant};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

/// How far it is at one agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Under way, or to be tried again.
    Working,
    /// It holds nothing of the volume any more.
    Clean,
    /// It did not answer for as long as was waited.
    Silent,
    /// What it could see is deleted; disks or slots of it are lost, and may hold more.
    Hidden,
    /// It refused.
    Refused(Rejection),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Fence,
    List,
    Delete(ExtentSeq),
}

#[derive(Debug)]
enum Step {
    Fence,
    List,
    Delete(BTreeSet<ExtentSeq>),
}

#[derive(Debug)]
struct Site {
    step: Step,
    standing: Standing,
    underway: usize,
    /// Not before.
    retry: Instant,
    /// The last sign of life.
    heard: Instant,
    deleted: u64,
}

impl Site {
    /// What can be asked beside what is under way.
    fn next(&mut self) -> Option<What> {
        match &mut self.step {
            Step::Fence => (self.underway == 0).then_some(What::Fence),
            Step::List => (self.underway == 0).then_some(What::List),
            Step::Delete(left) if self.underway < REMOVAL_DELETES_MAX => left.pop_first().map(What::Delete),
            Step::Delete(_) => None,
        }
    }
}

/// The removal of one volume. Drive it with [`Removal::answer`] and [`Removal::turn`] until [`Removal::is_over`].
#[derive(Debug)]
pub struct Removal {
    volume: VolumeId,
    epoch: Epoch,
    patience: Duration,
    sites: BTreeMap<AgentId, Site>,
    calls: Calls<What, Infallible>,
}

impl Removal {
    /// Removes `volume`, which was marked as being deleted in `epoch`, from `agents`. An agent that does not answer for
    /// `patience` is given up.
    #[must_use]
    pub fn new(
        now: Instant,
        volume: VolumeId,
        epoch: Epoch,
        agents: impl IntoIterator<Item = AgentId>,
        patience: Duration,
    ) -> Removal {
        let site = |agent| {
            let (step, standing) = (Step::Fence, Standing::Working);
            (agent, Site { step, standing, underway: 0, retry: now, heard: now, deleted: 0 })
        };
        let sites = agents.into_iter().map(site).collect();
        Removal { volume, epoch, patience, sites, calls: Calls::default() }
    }

    /// How far it is at each agent, and how many copies were deleted there.
    pub fn standings(&self) -> impl Iterator<Item = (AgentId, &Standing, u64)> {
        self.sites.iter().map(|(agent, site)| (*agent, &site.standing, site.deleted))
    }

    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.sites.values().all(|site| site.standing != Standing::Working)
    }

    /// Whether every agent is clean: the volume's keys may go.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.sites.values().all(|site| site.standing == Standing::Clean)
    }

    /// When [`Removal::turn`] wants to be called even if nothing happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let retries =
            self.sites.values().filter(|s| s.standing == Standing::Working && s.underway == 0).map(|s| s.retry);
        retries.chain(self.calls.deadline()).min()
    }

    /// An agent's answer.
    pub fn answer(&mut self, now: Instant, rpc: RpcId, result: Result<Response, Unanswered>) {
        if let Some(call) = self.calls.answered(rpc) {
            self.take(now, call.to, call.what, result);
        }
    }

    /// Asks for what is next.
    pub fn turn(&mut self, now: Instant, out: &mut Effects) {
        while let Some(call) = self.calls.expired(now) {
            self.take(now, call.to, call.what, Err(Unanswered));
        }
        let Removal { volume, epoch, sites, calls, .. } = self;
        for (&agent, site) in sites.iter_mut().filter(|(_, s)| s.standing == Standing::Working && s.retry <= now) {
            while let Some(what) = site.next() {
                site.underway += 1;
                let (volume, epoch) = (*volume, *epoch);
                let request = match what {
                    What::Fence => Request::Fence { volume, epoch, extents: Vec::new() },
                    What::List => Request::List { volume, epoch, from: ExtentSeq(0) },
                    What::Delete(seq) => Request::Delete { extent: ExtentId { volume, seq }, epoch, copy: u64::MAX },
                };
                calls.send(now, agent, request, PEER_WAIT, what, out);
            }
        }
    }

    fn take(&mut self, now: Instant, agent: AgentId, what: What, result: Result<Response, Unanswered>) {
        let Some(site) = self.sites.get_mut(&agent) else { return };
        site.underway -= 1;
        match (what, result) {
            (_, Err(Unanswered)) => {
                site.retry = now + RETRY_PAUSE;
                if now.since(site.heard) >= self.patience {
                    site.standing = Standing::Silent;
                }
                if let (What::Delete(seq), Step::Delete(left)) = (what, &mut site.step) {
                    left.insert(seq);
                }
                return;
            }
            (_, Ok(Response::Rejected(why))) => site.standing = Standing::Refused(why),
            (What::Fence, Ok(Response::Fenced { .. })) => site.step = Step::List,
            (What::List, Ok(Response::Listed { extents, hidden, .. })) => match (extents.is_empty(), hidden) {
                (true, false) => site.standing = Standing::Clean,
                (true, true) => site.standing = Standing::Hidden,
                (false, _) => site.step = Step::Delete(extents.into_iter().collect()),
            },
            (What::Delete(_), Ok(Response::Deleted { .. })) => {
                site.deleted += 1;
                // What was listed was not all there is, perhaps; and what was deleted is to be seen gone.
                if site.underway == 0 && matches!(&site.step, Step::Delete(left) if left.is_empty()) {
                    site.step = Step::List;
                }
            }
            // An answer to something else: as good as none.
            (_, Ok(_)) => site.retry = now + RETRY_PAUSE,
        }
        site.heard = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::FreeSpace;

    const A: AgentId = AgentId(1);
    const B: AgentId = AgentId(2);
    const PATIENCE: Duration = Duration::from_secs(5);

    fn at(ms: u64) -> Instant {
        Instant(0) + Duration::from_millis(ms)
    }

    fn removal(agents: &[AgentId]) -> Removal {
        Removal::new(at(0), VolumeId(7), Epoch(3), agents.iter().copied(), PATIENCE)
    }

    /// What is asked now: agent, number, request.
    fn asked(removal: &mut Removal, now: Instant) -> Vec<(AgentId, RpcId, Request)> {
        let mut out = Effects::default();
        removal.turn(now, &mut out);
        out.sends.into_iter().map(|send| (send.to, send.rpc, send.request)).collect()
    }

    fn listed(extents: &[u64], hidden: bool) -> Response {
        Response::Listed { extents: extents.iter().map(|&seq| ExtentSeq(seq)).collect(), end: true, hidden }
    }

    fn answer(removal: &mut Removal, request: &Request, held: &[u64], hidden: bool) -> Response {
        assert!(!removal.is_over());
        match request {
            Request::Fence { epoch, .. } => {
                assert_eq!(*epoch, Epoch(3));
                Response::Fenced { lease: Duration::ZERO, extents: Vec::new() }
            }
            Request::List { .. } => listed(held, hidden),
            Request::Delete { .. } => Response::Deleted { free: FreeSpace::default() },
            other => panic!("{other:?}"),
        }
    }

    /// Answers everything until it is over; what was deleted.
    fn run(removal: &mut Removal, mut held: Vec<u64>, hidden: bool) -> Vec<u64> {
        let mut deleted = Vec::new();
        for _ in 0..1000 {
            let calls = asked(removal, at(1));
            if calls.is_empty() {
                break;
            }
            assert!(calls.len() <= REMOVAL_DELETES_MAX);
            for (_, rpc, request) in calls {
                let response = answer(removal, &request, &held, hidden);
                if let Request::Delete { extent, .. } = request {
                    held.retain(|seq| *seq != extent.seq.0);
                    deleted.push(extent.seq.0);
                }
                removal.answer(at(1), rpc, Ok(response));
            }
        }
        deleted
    }

    #[test]
    fn what_an_agent_lists_after_its_fence_is_deleted_and_seen_gone() {
        let mut removal = removal(&[A]);
        let first = asked(&mut removal, at(0));
        assert!(matches!(&first[..], [(A, _, Request::Fence { .. })]), "nothing before the fence: {first:?}");
        removal.answer(at(0), first[0].1, Ok(Response::Fenced { lease: Duration::ZERO, extents: Vec::new() }));
        let held: Vec<u64> = (1..=200).collect();
        assert_eq!(run(&mut removal, held.clone(), false), held);
        assert!(removal.is_over() && removal.is_clean());
        assert_eq!(removal.standings().next(), Some((A, &Standing::Clean, 200)));
    }

    #[test]
    fn an_agent_that_may_hold_more_than_it_sees_is_not_clean() {
        let mut removal = removal(&[A]);
        assert_eq!(run(&mut removal, vec![4], true), [4]);
        assert!(removal.is_over() && !removal.is_clean());
        assert_eq!(removal.standings().next(), Some((A, &Standing::Hidden, 1)));
    }

    #[test]
    fn one_that_refuses_stops_and_the_others_go_on() {
        let mut removal = removal(&[A, B]);
        for (agent, rpc, request) in asked(&mut removal, at(0)) {
            let refused = Response::Rejected(Rejection::DiskFailed("EIO".into()));
            let response = if agent == A { refused } else { answer(&mut removal, &request, &[], false) };
            removal.answer(at(0), rpc, Ok(response));
        }
        run(&mut removal, vec![], false);
        let standings: Vec<_> = removal.standings().map(|(_, standing, _)| standing.clone()).collect();
        assert_eq!(standings, [Standing::Refused(Rejection::DiskFailed("EIO".into())), Standing::Clean]);
        assert!(removal.is_over() && !removal.is_clean());
    }

    #[test]
    fn no_answer_is_no_proof_and_is_asked_again_until_patience_ends() {
        let mut removal = removal(&[A]);
        let mut now = at(0);
        let mut asks = 0;
        while !removal.is_over() {
            let calls = asked(&mut removal, now);
            asks += calls.len();
            calls.iter().for_each(|(_, rpc, _)| removal.answer(now, *rpc, Err(Unanswered)));
            now = now + Duration::from_millis(100);
            assert!(now < at(10_000));
        }
        assert!(asks > 10 && !removal.is_clean());
        assert_eq!(removal.standings().next(), Some((A, &Standing::Silent, 0)));
        // One that is heard of again in time is worked on.
        let mut removal = self::removal(&[A]);
        let rpc = asked(&mut removal, at(0))[0].1;
        removal.answer(at(100), rpc, Err(Unanswered));
        assert!(asked(&mut removal, at(150)).is_empty(), "not without a pause");
        assert_eq!(removal.deadline(), Some(at(200)));
        let late = asked(&mut removal, at(200));
        assert_eq!(late.len(), 1);
        // Without any answer the request itself runs out.
        assert!(asked(&mut removal, at(4_000)).is_empty());
        assert_eq!(asked(&mut removal, at(4_100)).len(), 1);
        removal.answer(at(4_101), late[0].1, Ok(listed(&[], false)));
        assert!(!removal.is_over(), "an answer that was given up on changes nothing");
    }

    #[test]
    fn a_deletion_without_an_answer_is_repeated_and_then_listed_again() {
        let mut removal = removal(&[A]);
        for expected in 0..2 {
            let (_, rpc, request) = asked(&mut removal, at(0)).remove(0);
            let response = answer(&mut removal, &request, &[9], false);
            assert_eq!(matches!(request, Request::List { .. }), expected == 1);
            removal.answer(at(0), rpc, Ok(response));
        }
        let (_, rpc, _) = asked(&mut removal, at(0)).remove(0);
        removal.answer(at(0), rpc, Err(Unanswered));
        let again = asked(&mut removal, at(100));
        assert!(
            matches!(&again[..], [(A, _, Request::Delete { extent, .. })] if extent.seq == ExtentSeq(9)),
            "{again:?}"
        );
        removal.answer(at(100), again[0].1, Ok(Response::Deleted { free: FreeSpace::default() }));
        assert!(matches!(asked(&mut removal, at(100))[..], [(A, _, Request::List { .. })]));
    }
}
