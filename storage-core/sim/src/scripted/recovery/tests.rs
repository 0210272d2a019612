use super::*;
use crate::options::{Kind, Options};
use crate::owner::Run;
use crate::rng::Rng;
use crate::scripted::{STREAM, Scripted, WRITE, record};
use bytes::Bytes;
use torus_core::ids::{BLOCK_SIZE, Blocks};
use torus_core::peer::Rejection;

const SEQ: ExtentSeq = ExtentSeq(1 << 24);
/// Frames of one record and one block of payload.
const FRAME_BLOCKS: Blocks = 2;

fn header(nth: u64) -> FrameHeader {
    let vseq = Vseq(nth + 1);
    FrameHeader {
        extent: Base::id(SEQ),
        offset: nth as Blocks * FRAME_BLOCKS,
        stream: STREAM,
        epoch: Epoch(1),
        base: vseq,
        lac: Vseq(nth),
        records: [record(WRITE, nth, 1)].into_iter().collect(),
        crcs: [7].into_iter().collect(),
    }
}

fn open(frames: u64, lac: u64, damaged: bool) -> Copy {
    Copy::Open { length: frames as Blocks * FRAME_BLOCKS, lac: Vseq(lac), damaged }
}

/// An opening of a volume with one open extent, whose members have all answered to the fence.
struct Opening {
    base: Base,
    recovery: Recovery,
    out: Output,
}

impl Opening {
    fn of(copies: &[(u64, Copy)]) -> Self {
        let base = Scripted::new(Run(1), &Options::draw(1, Kind::Scripted), Rng::new(1)).base;
        let mut new = Self { base, recovery: Recovery::default(), out: Output::default() };
        let members: Vec<AgentId> = copies.iter().map(|(agent, _)| AgentId(*agent)).collect();
        new.base.extents.insert(SEQ, Extent { members: members.clone(), seal: None, live: 0 });
        new.recovery.stage = Stage::Fencing { waiting: members.into_iter().collect(), until: Instant(1) };
        for (agent, copy) in copies {
            let fenced = Response::Fenced { lease: Duration::ZERO, extents: vec![(SEQ, *copy)] };
            assert!(matches!(new.hears(*agent, RpcId(0), Ok(fenced)), Turn::Stay), "not all have answered yet");
        }
        new
    }

    fn hears(&mut self, agent: u64, rpc: RpcId, result: Result<Response, Unanswered>) -> Turn {
        self.recovery.answer(&mut self.base, Instant(0), AgentId(agent), rpc, result, &mut self.out)
    }

    /// Whom it has asked last, for what.
    fn asked(&mut self) -> (u64, RpcId, Request) {
        let (agent, rpc, request) = self.out.sends.pop().expect("a member is asked");
        (agent.0, rpc, request)
    }

    /// The member that is asked for headers has these frames.
    fn finds_frames(&mut self, from: u64, frames: u64) -> Turn {
        let (agent, rpc, request) = self.asked();
        assert!(matches!(request, Request::Frames { .. }) && agent == from, "{request:?} to {agent}");
        let headers = (0..frames).map(|nth| header(nth).encode()).collect();
        self.hears(agent, rpc, Ok(Response::Frames { headers, end: true }))
    }

    fn finds_nothing(&mut self) -> Turn {
        let (agent, rpc, _) = self.asked();
        self.hears(agent, rpc, Ok(Response::Rejected(Rejection::Damaged { block: 3 })))
    }

    /// Where the extent is to be sealed, once the store has been asked.
    fn seal(&self) -> Option<Blocks> {
        let committing = self.recovery.awaited == Awaited::Store;
        self.base.extents[&SEQ].seal.filter(|_| committing).map(|seal| seal.length)
    }
}

#[test]
fn a_copy_that_lost_its_tail_without_a_trace_does_not_end_an_extent() {
    // The disk of 1 lies: what was acknowledged is on 2 alone.
    let mut opening = Opening::of(&[(1, open(1, 0, false)), (2, open(2, 1, false))]);
    opening.finds_frames(2, 2);
    let (agent, _, request) = opening.asked();
    assert!(matches!(request, Request::Read { offset: FRAME_BLOCKS, .. }) && agent == 2, "{request:?}");
}

#[test]
fn what_nobody_who_answers_can_read_was_not_acknowledged_if_a_sound_copy_lacks_it() {
    let mut opening = Opening::of(&[(1, open(1, 0, false)), (2, open(2, 0, false))]);
    opening.finds_nothing();
    opening.finds_frames(1, 1);
    assert_eq!(opening.seal(), Some(FRAME_BLOCKS));
}

#[test]
fn a_member_that_went_away_has_said_nothing_about_what_it_holds() {
    let mut opening = Opening::of(&[(1, open(1, 0, false)), (2, open(2, 0, false))]);
    let (agent, rpc, _) = opening.asked();
    assert!(matches!(opening.hears(agent, rpc, Err(Unanswered)), Turn::End(_)));
}

#[test]
fn what_a_copy_knows_to_be_acknowledged_is_never_cut_off() {
    let mut opening = Opening::of(&[(1, open(1, 0, false)), (2, open(3, 2, false))]);
    opening.finds_nothing();
    assert!(matches!(opening.finds_frames(1, 1), Turn::End(why) if why.contains("was acknowledged")));
}

#[test]
fn what_nobody_can_read_may_have_been_acknowledged_when_no_copy_is_sound() {
    let mut opening = Opening::of(&[(1, open(1, 0, true)), (2, open(2, 0, true))]);
    opening.finds_frames(2, 2);
    let (agent, rpc, _) = opening.asked();
    let frame: Bytes = [header(1).encode(), Bytes::from(vec![0; BLOCK_SIZE])].concat().into();
    // Its payload is not what the header says.
    let turn = opening.hears(agent, rpc, Ok(Response::Data { bytes: frame, crcs: smallvec::SmallVec::new() }));
    assert!(matches!(turn, Turn::End(why) if why.contains("cannot be read")));
}

#[test]
fn an_answer_to_a_fence_that_comes_late_is_not_taken_for_another_one() {
    let mut opening = Opening::of(&[(1, open(1, 0, false))]);
    assert!(matches!(opening.hears(2, RpcId(77), Err(Unanswered)), Turn::Stay));
    opening.finds_frames(1, 1);
    assert_eq!(opening.seal(), Some(FRAME_BLOCKS));
}
