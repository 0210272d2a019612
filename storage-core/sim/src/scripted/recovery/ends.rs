//! Where extents end, when an owner is gone: what the copies tell, and what becomes of those that lack something.
//!
//! 1. (I7) An extent ends at the longest valid prefix of those that answered. It ends earlier only when a sound copy does and
//!    nobody who answers can read what is above: an agent that went away has said nothing.
//! 2. (I7) No end is committed below a record that a copy knows to have been acknowledged.
//! 3. Members are told of an end only when it is committed: until then the next owner may have to choose another.

use super::{Recovery, Step};
use crate::scripted::Base;
use std::collections::BTreeMap;
use torus_core::format::FrameHeader;
use torus_core::ids::{AgentId, Blocks, ExtentSeq, Vseq};
use torus_core::meta::docs::Seal;
use torus_core::peer::Copy;

impl Recovery {
    /// An extent ends at the longest valid prefix, if that can be told: a sound copy has all that was acknowledged, and so
    /// have all copies together. (A crash may tear the same frame on every copy; but not all can have rotted.)
    pub(super) fn plan_seal(&mut self, base: &mut Base, seq: ExtentSeq) -> Result<(), String> {
        let copies = self.copies.remove(&seq).unwrap_or_default();
        let members = base.extents.get(&seq).map_or(0, |extent| extent.members.len());
        let all_told = copies.len() == members && copies.values().all(|copy| *copy != Copy::Unknown);
        if !all_told && !copies.values().any(|copy| sound(copy).is_some()) {
            return Err(format!("no whole copy of extent {seq} can be reached"));
        }
        let length = copies.values().map(reach).max().unwrap_or(0);
        self.ending.insert(seq, copies);
        self.end_at(base, seq, length);
        Ok(())
    }

    /// Plans what makes `length` the end of an extent: its headers are read, and what copies lack is filled.
    fn end_at(&mut self, base: &mut Base, seq: ExtentSeq, length: Blocks) {
        if let Some(extent) = base.extents.get_mut(&seq) {
            extent.seal = Some(Seal { length, last: Vseq(0) });
        }
        let copies = &self.ending[&seq];
        for (to, copy) in copies.iter().rev().filter(|(_, copy)| is_open(copy) && reach(copy) < length) {
            // The frames to fill are known when their headers are: an empty fetch stands for them.
            self.steps.push_front(Step::Fill { seq, to: *to, offset: reach(copy), bytes: bytes::Bytes::new() });
        }
        if length > 0 {
            let from = holders(copies, length);
            self.steps.push_front(Step::Frames { seq, from, length });
        }
    }

    /// Nobody who answers can read an extent as far as `length`. If a sound copy ends before, what is above was never
    /// acknowledged, and the extent ends there.
    pub(super) fn shorten(&mut self, base: &mut Base, seq: ExtentSeq, length: Blocks) -> Result<(), String> {
        let shorter = self
            .ending
            .get(&seq)
            .and_then(|copies| copies.values().filter_map(sound).filter(|end| *end < length).max());
        let Some(shorter) = shorter else { return Err(format!("extent {seq} cannot be read")) };
        let of_extent = |step: &Step| matches!(step, Step::Frames { seq: s, .. } | Step::Fetch { seq: s, .. } | Step::Fill { seq: s, .. } if *s == seq);
        self.steps.retain(|step| !of_extent(step));
        self.headers.remove(&seq);
        self.end_at(base, seq, shorter);
        Ok(())
    }

    /// What was acknowledged is among what is kept, as far as copies tell.
    pub(super) fn keeps_what_was_acknowledged(&self) -> Result<(), String> {
        let last = self.headers.values().flatten().map(FrameHeader::last).max().unwrap_or_default();
        let told = self.ending.values().flat_map(BTreeMap::values).filter_map(|copy| match copy {
            Copy::Open { lac, .. } => Some(*lac),
            Copy::Sealed { .. } | Copy::Never | Copy::Unknown => None,
        });
        match told.max().filter(|acknowledged| *acknowledged > last) {
            // With nothing left of the log but dead extents that are forgotten, it is not known which record is the next.
            Some(acknowledged) if last > Vseq(0) => {
                Err(format!("record {acknowledged} was acknowledged, and only {last} can be read"))
            }
            _ => Ok(()),
        }
    }

    /// The seals are committed: copies are closed there. A member that does not take it keeps an open copy.
    pub(super) fn close_copies(&mut self, base: &Base) {
        for (seq, copies) in std::mem::take(&mut self.ending) {
            let length = base.extents[&seq].seal.map_or(0, |seal| seal.length);
            for (agent, _) in copies.iter().filter(|(_, copy)| is_open(copy)) {
                self.steps.push_front(Step::Seal { seq, agent: *agent, length });
            }
        }
    }
}

/// Blocks that a copy holds, proven or not.
fn reach(copy: &Copy) -> Blocks {
    match copy {
        Copy::Sealed { length, .. } | Copy::Open { length, .. } => *length,
        Copy::Never | Copy::Unknown => 0,
    }
}

/// The length of a copy that proves there was no more.
fn sound(copy: &Copy) -> Option<Blocks> {
    match copy {
        Copy::Unknown | Copy::Open { damaged: true, .. } => None,
        told => Some(reach(told)),
    }
}

fn is_open(copy: &Copy) -> bool {
    matches!(copy, Copy::Open { .. })
}

/// Members whose copies reach as far as `length`.
pub(super) fn holders(copies: &BTreeMap<AgentId, Copy>, length: Blocks) -> Vec<AgentId> {
    copies.iter().filter(|(_, copy)| reach(copy) >= length).map(|(agent, _)| *agent).collect()
}
