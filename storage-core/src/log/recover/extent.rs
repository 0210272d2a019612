//! What recovery learns of one extent: who holds how much of it, where it ends, which copies lack something.

use super::{FENCE_GRACE_THIN, FrameInfo};
use crate::format::Stream;
use crate::ids::{AgentId, Blocks, ExtentSeq, Vseq};
use crate::limits::RETRY_PAUSE;
use crate::log::peers::Peers;
use crate::meta::Revision;
use crate::meta::docs::{ExtentDoc, Seal};
use crate::mutation::{self, Mutation};
use crate::peer::Copy;
use crate::time::Instant;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub(super) struct Extent {
    pub(super) seq: ExtentSeq,
    pub(super) doc: ExtentDoc,
    pub(super) revision: Revision,
    pub(super) answers: BTreeMap<AgentId, Copy>,
    /// Where it ends, as far as is known by now.
    pub(super) length: Blocks,
    pub(super) frames: Vec<FrameInfo>,
    pub(super) indexed: bool,
    /// Its records are in the checkpoint.
    pub(super) contained: bool,
    pub(super) asking: bool,
    pub(super) tried: usize,
    pub(super) retry: Instant,
    /// Members that have answered that they have no frame where the known ones end.
    pub(super) lacking: BTreeSet<AgentId>,
    /// Since when a member that was asked has said nothing, while nothing else was learnt either.
    pub(super) silent: Option<Instant>,
    pub(super) fills: Vec<Filling>,
}

/// Bringing one member's copy up to the extent's end.
#[derive(Debug)]
pub(super) struct Filling {
    pub(super) target: AgentId,
    pub(super) at: Blocks,
    pub(super) step: FillStep,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FillStep {
    Idle,
    Reading,
    Writing,
    Over,
}

/// The length of a copy that proves there was no more; `None` for one that does not.
pub(super) fn sound(copy: &Copy) -> Option<Blocks> {
    match *copy {
        Copy::Never => Some(0),
        Copy::Open { length, damaged: false, .. } | Copy::Sealed { length, .. } => Some(length),
        Copy::Open { damaged: true, .. } | Copy::Unknown => None,
    }
}

impl Extent {
    pub(super) fn new(seq: ExtentSeq, doc: ExtentDoc, revision: Revision) -> Extent {
        let length = doc.sealed.map_or(0, |s| s.length);
        Extent {
            seq,
            doc,
            revision,
            answers: BTreeMap::new(),
            length,
            frames: Vec::new(),
            indexed: false,
            contained: false,
            asking: false,
            tried: 0,
            retry: Instant::default(),
            lacking: BTreeSet::new(),
            silent: None,
            fills: Vec::new(),
        }
    }

    pub(super) fn is_log(&self) -> bool {
        self.doc.stream == Stream::Log
    }

    /// Its members must be fenced and asked. Nothing was ever acknowledged, or read, on the word of a checkpoint's extent.
    pub(super) fn is_open(&self) -> bool {
        self.doc.sealed.is_none() && self.is_log()
    }

    /// Enough members have answered to know that nothing acknowledged is missing: one that is sound, or all of them with
    /// tails that a power cut may have torn. What was acknowledged is on all, so the longest of all has it.
    pub(super) fn settled(&self) -> bool {
        let told = |copy: &Copy| !matches!(copy, Copy::Unknown);
        !self.is_open()
            || self.answers.values().any(|copy| sound(copy).is_some())
            || self.doc.members.iter().all(|agent| self.answers.get(agent).is_some_and(told))
    }

    /// The longest valid prefix. An unfinished checkpoint is nothing.
    pub(super) fn end(&self) -> Blocks {
        if let Some(seal) = self.doc.sealed {
            return seal.length;
        }
        if self.doc.stream == Stream::Checkpoint {
            return 0;
        }
        let lengths = self.answers.values().filter_map(|copy| match *copy {
            Copy::Never => Some(0),
            Copy::Open { length, .. } | Copy::Sealed { length, .. } => Some(length),
            Copy::Unknown => None,
        });
        match mutation::active(Mutation::ShortestLengthSeals) {
            true => lengths.min().unwrap_or(0),
            false => lengths.max().unwrap_or(0),
        }
    }

    /// How far its frames are known.
    pub(super) fn reached(&self) -> Blocks {
        self.frames.last().map_or(0, FrameInfo::end)
    }

    /// Members to read from, the best first.
    pub(super) fn sources(&self, peers: &Peers) -> Vec<AgentId> {
        let held = |agent: &AgentId| match self.answers.get(agent) {
            Some(Copy::Open { length, .. } | Copy::Sealed { length, .. }) => *length,
            Some(Copy::Never | Copy::Unknown) => 0,
            None if self.doc.sealed.is_some() => self.length,
            None => 0,
        };
        let mut sources: Vec<AgentId> = self.doc.members.iter().copied().filter(|a| held(a) > 0).collect();
        sources.sort_by_key(|a| (!peers.usable(*a), std::cmp::Reverse(held(a))));
        sources
    }

    pub(super) fn plan_fills(&mut self) {
        for (&agent, copy) in &self.answers {
            let have = match *copy {
                Copy::Never => 0,
                Copy::Open { length, .. } => length,
                Copy::Sealed { .. } | Copy::Unknown => continue,
            };
            if have < self.length {
                // What a member holds beyond the cut of a shorter copy is void; its own frames below are the same bytes.
                self.fills.push(Filling { target: agent, at: have, step: FillStep::Idle });
            }
        }
    }

    /// A member that was asked, or a `silent` one, has brought nothing new. Whether those that said nothing have had their time: until
    /// then silence is no word against what they hold, as it is none when they are fenced.
    pub(super) fn heard_out(&mut self, now: Instant, silent: bool) -> bool {
        if silent {
            self.silent.get_or_insert(now);
        }
        let heard_out = self.silent.is_none_or(|at| now.since(at) >= FENCE_GRACE_THIN);
        if silent || !heard_out {
            // Whoever answers at once is not to be asked in a circle meanwhile.
            self.retry = now + RETRY_PAUSE / 4;
        }
        heard_out
    }

    /// Members that have told what they hold.
    pub(super) fn answered(&self) -> BTreeSet<AgentId> {
        self.answers.keys().copied().collect()
    }

    pub(super) fn filling(&mut self, target: AgentId) -> Option<&mut Filling> {
        self.fills.iter_mut().find(|f| f.target == target)
    }

    pub(super) fn sealed(&self) -> ExtentDoc {
        let seal = match self.doc.sealed {
            Some(seal) => seal,
            None => Seal { length: self.length, last: self.frames.last().map_or(Vseq(0), FrameInfo::last) },
        };
        ExtentDoc { sealed: Some(seal), ..self.doc.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::remedy;
    use super::*;

    fn extent(answers: &[(u64, Copy)]) -> Extent {
        let doc = ExtentDoc {
            stream: Stream::Log,
            members: vec![AgentId(1), AgentId(2)],
            former: Vec::new(),
            degraded: false,
            sealed: None,
        };
        let mut x = Extent::new(ExtentSeq(1 << 24), doc, Revision(1));
        x.answers = answers.iter().map(|&(agent, copy)| (AgentId(agent), copy)).collect();
        x
    }

    fn open(length: Blocks, damaged: bool) -> Copy {
        Copy::Open { length, lac: Vseq(0), damaged }
    }

    #[test]
    fn one_sound_copy_settles_an_extent_and_the_longest_ends_it() {
        let x = extent(&[(1, open(7, false))]);
        assert_eq!((x.settled(), x.end()), (true, 7));
        let x = extent(&[(1, open(7, false)), (2, open(9, true))]);
        assert_eq!((x.settled(), x.end()), (true, 9));
        assert!(extent(&[(1, Copy::Never)]).settled());
    }

    #[test]
    fn a_damaged_or_forgetful_copy_alone_settles_nothing() {
        assert!(!extent(&[]).settled());
        assert!(!extent(&[(1, open(7, true))]).settled());
        assert!(!extent(&[(1, Copy::Unknown)]).settled());
        assert!(!extent(&[(1, open(7, true)), (2, Copy::Unknown)]).settled());
    }

    #[test]
    fn who_says_nothing_is_waited_for_before_others_are_believed() {
        let (mut x, t) = (extent(&[(1, open(7, false)), (2, open(9, false))]), Instant::default());
        assert!(x.heard_out(t, false), "both have spoken");
        assert!(!x.heard_out(t, true));
        let later = t + FENCE_GRACE_THIN / 2;
        assert!(!x.heard_out(later, false), "another's word does not end the wait");
        assert!(x.retry > later, "who has spoken is not asked again at once");
        assert!(x.heard_out(t + FENCE_GRACE_THIN, true));
    }

    #[test]
    fn who_has_told_what_it_holds_need_not_be_started() {
        let remedy = |x: &Extent| remedy(&x.doc.members, &x.answered(), |agent| format!("<{}>", agent.0));
        assert_eq!(remedy(&extent(&[])), "start <1> or <2>");
        assert_eq!(remedy(&extent(&[(1, open(7, true))])), "start <2>");
        let told = remedy(&extent(&[(1, open(7, true)), (2, Copy::Unknown)]));
        assert_eq!(
            told,
            "<1> and <2> have answered, and none has all of it: give one of them back the disk that it had"
        );
    }

    #[test]
    fn tails_that_a_power_cut_tore_on_all_members_do_not_keep_a_volume_closed() {
        let x = extent(&[(1, open(7, true)), (2, open(5, true))]);
        assert_eq!((x.settled(), x.end()), (true, 7));
    }
}
