//! Random requests, disks that finish when they like, and crashes that keep any sectors of what was in flight.
//!
//! The frames of each extent are drawn once (`script`), as an owner builds them once for all members: an append or a
//! fill takes the next, or one of them again, or a wrong one. After every crash and at the end the member must agree
//! with what its answers have claimed.

use super::world::*;
use crate::format::{Digest, Frame, FrameHeader, Stream};
use crate::ids::{BLOCK_SIZE, Blocks, Epoch, ExtentId, ExtentSeq, VolumeId};
use crate::member::ReqId;
use crate::peer::{Class, Copy, Rejection, Request, Response};
use crate::time::Duration;
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

const VOLUMES: u64 = 2;
const SLOTS: u32 = 6;

#[derive(Clone, Debug)]
enum Step {
    Create { which: u8, stale: bool },
    Append { which: u8, back: u8, stale: bool, early: bool },
    Wrong { which: u8 },
    Fill { which: u8, back: u8, count: u8 },
    Seal { which: u8, back: u8 },
    Delete { which: u8 },
    Fence { volume: u8, raise: bool },
    Read { which: u8, at: u8, blocks: u8 },
    Frames { which: u8, at: u8 },
    Commit { disk: u8 },
    DiskRead { disk: u8 },
    Settle,
    Fail { disk: u8, seed: u64 },
    Crash { seed: u64, permille: u16 },
}

fn step() -> impl Strategy<Value = Step> {
    let which = 0..6u8;
    let back = prop_oneof![4 => Just(0u8), 1 => 1..4u8];
    prop_oneof![
        4 => (which.clone(), prop::bool::weighted(0.1)).prop_map(|(which, stale)| Step::Create { which, stale }),
        14 => (which.clone(), back.clone(), prop::bool::weighted(0.1), any::<bool>())
            .prop_map(|(which, back, stale, early)| Step::Append { which, back, stale, early }),
        1 => which.clone().prop_map(|which| Step::Wrong { which }),
        4 => (which.clone(), back.clone(), 1..4u8).prop_map(|(which, back, count)| Step::Fill { which, back, count }),
        2 => (which.clone(), back).prop_map(|(which, back)| Step::Seal { which, back }),
        1 => which.clone().prop_map(|which| Step::Delete { which }),
        2 => (0..VOLUMES as u8, any::<bool>()).prop_map(|(volume, raise)| Step::Fence { volume, raise }),
        4 => (which.clone(), 0..12u8, 1..6u8).prop_map(|(which, at, blocks)| Step::Read { which, at, blocks }),
        1 => (which, 0..12u8).prop_map(|(which, at)| Step::Frames { which, at }),
        8 => (0..2u8).prop_map(|disk| Step::Commit { disk }),
        4 => (0..2u8).prop_map(|disk| Step::DiskRead { disk }),
        2 => Just(Step::Settle),
        1 => (0..2u8, any::<u64>()).prop_map(|(disk, seed)| Step::Fail { disk, seed }),
        2 => (any::<u64>(), prop_oneof![Just(0u16), Just(500), Just(900), Just(1000)])
            .prop_map(|(seed, permille)| Step::Crash { seed, permille }),
    ]
}

/// What the answers so far have claimed about an extent.
#[derive(Clone, Debug, Default)]
struct Claims {
    /// Answered as durable, since it was last made.
    acked: Blocks,
    sealed: Option<(Blocks, Digest)>,
    /// A delete was asked for: until it is answered, anything may be.
    leaving: bool,
    deleted: bool,
    /// A length asked for in a seal: an acknowledgement beyond it must not come any more.
    cut: Option<Blocks>,
}

struct Checked {
    world: World,
    claims: BTreeMap<ExtentId, Claims>,
    /// Highest epoch of a fence that was asked for, and of one that was answered.
    asked: BTreeMap<VolumeId, u64>,
    fenced: BTreeMap<VolumeId, u64>,
    open: BTreeMap<ReqId, Request>,
}

thread_local! {
    static SCRIPTS: RefCell<BTreeMap<ExtentId, Rc<Vec<Frame>>>> = const { RefCell::new(BTreeMap::new()) };
}

/// The frames of `extent`, 24 of them.
fn script(extent: ExtentId) -> Rc<Vec<Frame>> {
    let write = || {
        let mut at = 0;
        let frames = (0..24u64).map(|i| {
            let payload = (extent.seq.0 + i * i) % 5 % 3;
            let frame = frame(extent, at, payload as usize);
            at += frame.blocks();
            frame
        });
        Rc::new(frames.collect())
    };
    SCRIPTS.with_borrow_mut(|scripts| scripts.entry(extent).or_insert_with(write).clone())
}

fn offset(script: &[Frame], index: usize) -> Blocks {
    script[..index].iter().map(Frame::blocks).sum()
}

/// The frame that begins at `at`, or would.
fn index_at(script: &[Frame], at: Blocks) -> usize {
    (0..script.len()).find(|i| offset(script, *i) >= at).unwrap_or(script.len())
}

/// Chooses `permille` of the sectors.
fn sectors(seed: u64, permille: u16) -> impl FnMut() -> bool {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % 1000 < u64::from(permille)
    }
}

impl Checked {
    fn new() -> Checked {
        let (claims, asked) = (BTreeMap::new(), BTreeMap::new());
        Checked { world: World::new(2, SLOTS), claims, asked, fenced: BTreeMap::new(), open: BTreeMap::new() }
    }

    fn epoch(&self, volume: VolumeId) -> u64 {
        self.asked.get(&volume).copied().unwrap_or(1)
    }

    /// Extents are few, so that requests meet: two of each of three epochs of each volume come and go.
    fn extent(&self, which: u8) -> ExtentId {
        let volume = VolumeId(0xbee0 + u64::from(which) % VOLUMES);
        let seq = ExtentSeq::new(Epoch(self.epoch(volume).min(3)), u64::from(which) / VOLUMES).expect("small numbers");
        ExtentId { volume, seq }
    }

    /// Where the member says that the copy ends.
    fn length(&self, extent: ExtentId) -> Blocks {
        let disks = self.world.member.disks();
        let copy = disks.iter().find_map(|disk| match &disk.slots[*disk.extents.get(&extent)? as usize].content {
            crate::member::disk::Content::Open(copy) => Some(copy.length()),
            crate::member::disk::Content::Sealed(_, seal) => Some(seal.get().length),
            _ => None,
        });
        copy.unwrap_or(0)
    }

    /// Whether it is not answered at once.
    fn ask(&mut self, request: Request) -> bool {
        let req = self.world.ask(request.clone());
        self.open.insert(req, request);
        self.take_answers();
        self.open.contains_key(&req)
    }

    fn take_answers(&mut self) {
        for (req, answers) in std::mem::take(&mut self.world.answers) {
            let last = answers.last().expect("an entry has an answer").clone();
            let request = self.open.get(&req).expect("only what is open is answered").clone();
            if let Response::Received { .. } = last {
                assert!(matches!(request, Request::Append { early: true, .. }));
                self.world.answers.insert(req, answers);
                continue;
            }
            self.open.remove(&req);
            self.check(request, last);
        }
    }

    fn check(&mut self, request: Request, response: Response) {
        match (request, response) {
            (Request::Create { extent, .. }, Response::Created { .. }) => {
                self.claims.insert(extent, Claims::default());
            }
            (Request::Append { extent, offset, frame, .. }, Response::Appended { length }) => {
                assert_eq!(length, offset + frame.blocks());
                self.acked(extent, length);
            }
            (Request::Fill { extent, offset, bytes, .. }, Response::Appended { length }) => {
                let blocks = bytes.iter().map(bytes::Bytes::len).sum::<usize>() / BLOCK_SIZE;
                assert_eq!(length, offset + blocks as Blocks);
                self.acked(extent, length);
            }
            (Request::Seal { extent, length: asked, .. }, Response::Sealed { length, digest: found }) => {
                let script = script(extent);
                let frames = index_at(&script, length);
                assert_eq!((length, found), (asked, digest(&script[..frames])), "of {extent}");
                let claims = self.claims.entry(extent).or_default();
                assert!(claims.sealed.is_none_or(|seal| seal == (length, found)), "sealed twice: {extent}");
                claims.sealed = Some((length, found));
            }
            (Request::Delete { extent, .. }, Response::Deleted { .. }) => {
                let gone = !self.world.member.held().any(|held| held.extent == extent);
                self.claims.insert(extent, Claims { deleted: gone, ..Claims::default() });
            }
            (Request::Fence { volume, epoch, .. }, Response::Fenced { .. }) => {
                let fenced = self.fenced.entry(volume).or_default();
                *fenced = epoch.0.max(*fenced);
            }
            (Request::Read { extent, offset, blocks, .. }, Response::Data { bytes, .. }) => {
                let all = script(extent).iter().flat_map(raw).collect::<Vec<u8>>();
                assert!(bytes[..] == all[offset as usize * BLOCK_SIZE..][..blocks as usize * BLOCK_SIZE]);
            }
            (Request::Frames { extent, .. }, Response::Frames { headers, .. }) => {
                let script = script(extent);
                assert!(headers.iter().all(|header| script.iter().any(|frame| frame.header == *header)));
            }
            (request, Response::Rejected(why)) => {
                let failed = self.world.member.disks().iter().any(|disk| disk.failure().is_some());
                match why {
                    Rejection::Damaged { .. } => panic!("{request:?}: {why}"),
                    Rejection::DiskFailed(_) => assert!(failed, "{request:?}: {why}"),
                    _ => {}
                }
                // What was in a commit that failed may show after a restart.
                if let Request::Delete { extent, .. } = request
                    && !matches!(why, Rejection::DiskFailed(_))
                {
                    self.claims.entry(extent).or_default().leaving = false;
                }
            }
            (request, response) => panic!("{request:?} is answered {response:?}"),
        }
    }

    fn acked(&mut self, extent: ExtentId, length: Blocks) {
        let claims = self.claims.entry(extent).or_default();
        assert!(claims.cut.is_none_or(|cut| length <= cut), "{extent} is acknowledged beyond its seal");
        claims.acked = claims.acked.max(length);
        claims.deleted = false;
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Create { which, stale } => {
                let extent = self.extent(which);
                let epoch = Epoch(self.epoch(extent.volume) - u64::from(stale));
                let _ = self.ask(Request::Create { extent, epoch, stream: Stream::Log, class: Class::Reserve });
            }
            Step::Append { which, back, stale, early } => {
                let extent = self.extent(which);
                let script = script(extent);
                let index = index_at(&script, self.length(extent)).saturating_sub(back.into());
                let epoch = Epoch(extent.seq.epoch().0 - u64::from(stale));
                let offset = offset(&script, index);
                if let Some(frame) = script.get(index).cloned() {
                    let refused = epoch.0 < self.epoch(extent.volume);
                    let taken = self.ask(Request::Append { extent, epoch, offset, frame, early });
                    assert!(!(refused && taken), "an append from below the fence");
                }
            }
            Step::Wrong { which } => {
                let extent = self.extent(which);
                let at = self.length(extent);
                let other = ExtentId { seq: ExtentSeq(extent.seq.0 ^ 1), ..extent };
                let mut frame = frame(other, at, 1);
                let mut header = FrameHeader::decode(&frame.header, other, at).expect("a sound frame");
                header.extent = extent;
                header.crcs[0] ^= 1;
                frame.header = header.encode();
                let _ =
                    self.ask(Request::Append { extent, epoch: extent.seq.epoch(), offset: at, frame, early: false });
            }
            Step::Fill { which, back, count } => {
                let extent = self.extent(which);
                let script = script(extent);
                let index = index_at(&script, self.length(extent)).saturating_sub(back.into());
                let end = (index + usize::from(count)).min(script.len());
                let bytes = script[index..end].iter().flat_map(raw).collect();
                if self.ask(fill(extent, self.epoch(extent.volume), offset(&script, index), bytes)) {
                    self.claims.entry(extent).or_default().deleted = false;
                }
            }
            Step::Seal { which, back } => {
                let extent = self.extent(which);
                let script = script(extent);
                let index = index_at(&script, self.length(extent)).saturating_sub(back.into());
                let length = offset(&script, index);
                // From here on nothing beyond is to be acknowledged, if the seal is taken at all.
                if self.ask(seal(extent, self.epoch(extent.volume), length)) {
                    let claims = self.claims.entry(extent).or_default();
                    claims.cut = Some(length);
                    claims.acked = claims.acked.min(length);
                }
            }
            Step::Delete { which } => {
                let extent = self.extent(which);
                self.claims.entry(extent).or_default().leaving = true;
                let _ = self.ask(delete(extent, self.epoch(extent.volume)));
            }
            Step::Fence { volume, raise } => {
                let volume = VolumeId(0xbee0 + u64::from(volume));
                let epoch = self.epoch(volume) + u64::from(raise);
                self.asked.insert(volume, epoch);
                let _ = self.ask(fence(volume, epoch));
            }
            Step::Read { which, at, blocks } => {
                let extent = self.extent(which);
                let _ = self.ask(read(extent, self.epoch(extent.volume), at.into(), blocks.into()));
            }
            Step::Frames { which, at } => {
                let extent = self.extent(which);
                let _ = self.ask(frames(extent, self.epoch(extent.volume), at.into()));
            }
            Step::Commit { disk } => drop(self.world.finish_commit(disk.into())),
            Step::DiskRead { disk } => drop(self.world.finish_read(disk.into())),
            Step::Settle => self.settle(),
            Step::Fail { disk, seed } => {
                if self.world.disks[usize::from(disk)].commit.is_some() {
                    self.world.fail_commit_after(disk.into(), &mut sectors(seed, 500));
                }
            }
            Step::Crash { seed, permille } => self.crash(seed, permille),
        }
        self.world.pass(Duration::from_millis(7));
        self.take_answers();
    }

    fn settle(&mut self) {
        self.world.settle();
        self.take_answers();
        assert!(self.open.is_empty(), "never answered: {:?}", self.open.values().next());
    }

    fn crash(&mut self, seed: u64, permille: u16) {
        let world = std::mem::replace(&mut self.world, World::new(0, 0));
        self.world = world.crash(&mut sectors(seed, permille));
        self.open.clear();
        self.verify();
    }

    /// What was claimed before the crash is so after it.
    fn verify(&mut self) {
        for (volume, epoch) in self.fenced.clone() {
            let stale = self.world.call_now(Request::Lease { volume, epoch: Epoch(epoch - 1) });
            assert!(matches!(stale, Response::Rejected(Rejection::Fenced { .. })), "the fence of {volume} is gone");
        }
        for (extent, claims) in self.claims.clone() {
            let epoch = self.epoch(extent.volume);
            let copy = self.world.copy(extent, epoch);
            self.fenced.insert(extent.volume, epoch);
            let script = script(extent);
            let length = match copy {
                Copy::Never => {
                    assert!(claims.leaving || (claims.acked == 0 && claims.sealed.is_none()), "{extent} is gone");
                    0
                }
                Copy::Unknown => panic!("{extent} is unknown, and nothing was damaged"),
                Copy::Open { length, .. } => {
                    assert!(!claims.deleted, "{extent} is back");
                    assert!(claims.leaving || claims.sealed.is_none(), "{extent} is open again");
                    length
                }
                Copy::Sealed { length, digest } => {
                    assert!(!claims.deleted, "{extent} is back");
                    assert!(claims.leaving || claims.sealed.is_none_or(|seal| seal == (length, digest)));
                    length
                }
            };
            assert!(claims.leaving || length >= claims.acked, "{extent}: {length} of {} blocks", claims.acked);
            let frames = index_at(&script, length);
            assert_eq!(offset(&script, frames), length, "{extent} ends inside a frame");
            for (i, frame) in script[..frames].iter().enumerate() {
                let at = offset(&script, i);
                match self.world.call(read(extent, epoch, at, frame.blocks())) {
                    Response::Data { bytes, .. } => assert!(bytes[..] == raw(frame)[..], "{extent} at {at}"),
                    other => panic!("{extent} at {at}: {other:?}"),
                }
            }
            // What recovery found counts from now on: it was told to an owner.
            let mut claims = Claims { leaving: false, cut: None, acked: length, ..claims };
            if let Copy::Never = copy {
                claims = Claims { deleted: true, ..Claims::default() };
            }
            if let Copy::Sealed { length, digest } = copy {
                claims.sealed = Some((length, digest));
            } else {
                claims.sealed = None;
            }
            self.claims.insert(extent, claims);
        }
        self.world.answers.clear();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn what_was_answered_holds_whatever_crashes(steps in prop::collection::vec(step(), 1..120)) {
        let mut checked = Checked::new();
        for step in steps {
            checked.run(step);
        }
        checked.settle();
        checked.crash(1, 500);
        checked.settle();
    }

    /// Any bit of any block may turn: what is read is right, or refused.
    #[test]
    fn a_flipped_bit_never_reaches_a_reader(
        payloads in prop::collection::vec(0..4usize, 1..20),
        sealed in any::<bool>(),
        restart in any::<bool>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..BLOCK_SIZE), 1..4),
    ) {
        let (mut world, x) = (World::new(1, 8), extent(1, 0));
        world.call(create(x, 1));
        let mut at = 0;
        let mut all = Vec::new();
        for payload in payloads {
            world.call(append(x, at, payload));
            all.extend(raw(&frame(x, at, payload)));
            at += 1 + payload as Blocks;
        }
        if sealed {
            world.call(seal(x, 1, at));
        }
        let written: Vec<u64> = world.disks[0].platter.blocks.keys().copied().filter(|b| *b >= world.place(x, 0)).collect();
        for (block, byte) in flips {
            world.disks[0].platter.flip(*block.get(&written), byte);
        }
        if restart {
            world = world.crash(&mut || false);
        }
        for from in 0..at {
            for blocks in 1..=(at - from).min(3) {
                match world.call(read(x, 1, from, blocks)) {
                    Response::Data { bytes, .. } => {
                        prop_assert!(bytes[..] == all[from as usize * BLOCK_SIZE..][..blocks as usize * BLOCK_SIZE]);
                    }
                    Response::Rejected(Rejection::Damaged { .. } | Rejection::PastEnd { .. }) => {}
                    other => prop_assert!(false, "{other:?}"),
                }
            }
        }
        // The slot's headers lie before the frames, so the copy is known; its length is not told as if nothing were wrong.
        match world.copy(x, 2) {
            Copy::Open { length, damaged, .. } => prop_assert!(length == at || damaged),
            Copy::Sealed { length, .. } => prop_assert_eq!(length, at),
            other => prop_assert!(false, "{other:?}"),
        }
    }
}
