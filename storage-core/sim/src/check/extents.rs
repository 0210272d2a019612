//! Extents: when they may be written, where they end, when they may go.
//!
//! Watches the transactions that the metadata store carries out.
//!
//! 1. (I6) An extent is sealed once: a later document of it has the same seal, and all members that are sealed at that
//!    length report one digest.
//! 2. (I7) No acknowledged write lies only beyond a seal. (I17) So it is, by another name, when a member had the write durably and
//!    said less when it was fenced.
//! 3. (I13, I14) A member of a registered extent's ensemble never gives its copy up; unless the extent is sealed at block 0:
//!    then there is no copy to speak of, but a slot to give back.
//!    Nor does a member of a checkpoint that HEAD names.
//! 4. (I15) Others give theirs up only when the whole ensemble has closed its copies, alike.
//! 5. (I16) No two members of an ensemble share a failure domain, unless it is recorded as degraded.

use super::Violation;
use super::frames::{Frames, Place};
use super::history::History;
use crate::options::Options;
use crate::payload::WriteNo;
use std::collections::{BTreeMap, BTreeSet};
use torus_core::format::{Digest, Stream};
use torus_core::ids::{AgentId, Blocks, ExtentId, ExtentSeq, Lba, VolumeId};
use torus_core::meta::docs::{self, ExtentDoc, HeadDoc, Seal};
use torus_core::meta::{Txn, Write, keys};
use torus_core::peer::Copy;

/// What is known of one extent.
#[derive(Debug, Clone)]
struct Known {
    /// Every ensemble it was registered with.
    ensembles: Vec<Vec<AgentId>>,
    seal: Option<Seal>,
    digest: Option<(Blocks, Digest)>,
    /// What each member said when its copy was closed.
    closed: BTreeMap<AgentId, (Blocks, Digest)>,
    /// Its key is in the store.
    registered: bool,
    stream: Stream,
    /// What members said of their copies when they were last fenced.
    told: BTreeMap<AgentId, Told>,
}

/// What a member said of its copy, and how far it had held it durably by then.
#[derive(Debug, Clone, Copy)]
struct Told {
    copy: Copy,
    held: Blocks,
}

/// All extents that were ever registered.
#[derive(Debug)]
pub struct Extents {
    volume: VolumeId,
    known: BTreeMap<ExtentId, Known>,
    /// Extents of the checkpoint in force.
    head: Vec<ExtentSeq>,
    racks: u64,
}

impl Extents {
    /// Of one volume, whose agents share this many failure domains.
    #[must_use]
    pub fn new(volume: VolumeId, racks: u64) -> Self {
        Self { volume, known: BTreeMap::new(), head: Vec::new(), racks }
    }

    /// The store has carried out `txn`.
    ///
    /// # Errors
    /// I6, I7.
    pub fn committed(&mut self, txn: &Txn, frames: &Frames, history: &History) -> Result<(), Violation> {
        let prefix = keys::extents(self.volume);
        for write in &txn.then {
            let (Write::Put { key, .. } | Write::Delete(key)) = write;
            if let Write::Put { value, .. } = write
                && *key == keys::volume_head(self.volume)
            {
                match docs::decode::<HeadDoc>(key, value) {
                    Ok(head) => self.head = head.extents.iter().map(|extent| extent.seq).collect(),
                    Err(error) => return Violation::new("I13", format!("an owner wrote nonsense: {error}")),
                }
            }
            let Some(seq) = key.starts_with(&prefix).then(|| keys::parse_extent(key)).flatten() else { continue };
            let extent = ExtentId { volume: self.volume, seq };
            match write {
                Write::Put { value, .. } => match docs::decode::<ExtentDoc>(key, value) {
                    Ok(doc) => self.put(extent, doc, frames, history)?,
                    Err(error) => return Violation::new("I6", format!("an owner wrote nonsense: {error}")),
                },
                Write::Delete(_) => {
                    if let Some(known) = self.known.get_mut(&extent) {
                        known.registered = false;
                    }
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, extent: ExtentId, doc: ExtentDoc, frames: &Frames, history: &History) -> Result<(), Violation> {
        self.apart(extent, &doc)?;
        let fresh = Known {
            ensembles: Vec::new(),
            seal: None,
            digest: None,
            closed: BTreeMap::new(),
            registered: false,
            stream: doc.stream,
            told: BTreeMap::new(),
        };
        let known = self.known.entry(extent).or_insert(fresh);
        let again = !known.registered && !known.ensembles.is_empty();
        if again && (known.seal.is_none() || known.seal != doc.sealed) {
            return Violation::new("I13", format!("extent {extent} is registered a second time, as {doc:?}"));
        }
        known.registered = true;
        known.ensembles.retain(|members| *members != doc.members);
        known.ensembles.push(doc.members);
        match (known.seal, doc.sealed) {
            (Some(old), new) if new != Some(old) => {
                Violation::new("I6", format!("extent {extent} was sealed as {old:?} and is now {new:?}"))
            }
            (None, Some(seal)) => {
                known.seal = Some(seal);
                self.sealed(extent, seal, frames, history)
            }
            _ => Ok(()),
        }
    }

    /// I16.
    fn apart(&self, extent: ExtentId, doc: &ExtentDoc) -> Result<(), Violation> {
        let domains: BTreeSet<String> = doc.members.iter().map(|agent| Options::domain(self.racks, *agent)).collect();
        match doc.degraded || domains.len() == doc.members.len() {
            true => Ok(()),
            false => Violation::new("I16", format!("extent {extent} lies on {:?}, in {domains:?}", doc.members)),
        }
    }

    /// A member was fenced, and said this of its copies.
    pub fn told(&mut self, agent: AgentId, copies: &[(ExtentSeq, Copy)], frames: &Frames) {
        for &(seq, copy) in copies {
            let extent = ExtentId { volume: self.volume, seq };
            if let Some(known) = self.known.get_mut(&extent) {
                let durable = frames.of(extent).filter(|(_, seen)| seen.durable_on.contains(&agent));
                let held = durable.map(|((_, offset), seen)| offset + seen.blocks).max().unwrap_or(0);
                known.told.insert(agent, Told { copy, held });
            }
        }
    }

    /// An open extent of which no copy proves where it ends: some are gone for good with their agents or disks, and none of the
    /// others is sound. An owner that opened the volume all the same would be guessing.
    #[must_use]
    pub fn undecidable(&self, is_left: impl Fn(AgentId) -> bool) -> Option<ExtentId> {
        let doubtful = |copy: &Copy| matches!(copy, Copy::Unknown | Copy::Open { damaged: true, .. });
        let open = self.known.iter().filter(|(_, x)| x.registered && x.seal.is_none() && x.stream == Stream::Log);
        let mut found = open.filter(|(_, x)| {
            x.ensembles.last().is_some_and(|members| {
                let (left, gone): (Vec<AgentId>, Vec<AgentId>) = members.iter().partition(|agent| is_left(**agent));
                !gone.is_empty() && left.iter().all(|agent| x.told.get(agent).is_some_and(|told| doubtful(&told.copy)))
            })
        });
        found.next().map(|(extent, _)| *extent)
    }

    /// A sealed extent that nobody has whole any more, though nothing of it is lost that could have been acknowledged: recovery has kept
    /// frames that only some members had, and these are gone for good before the others had them. The volume cannot be opened, as
    /// nobody can tell what was in the frames.
    ///
    /// Not one of which a member that is left was ever fenced: recovery had heard of that copy, and was to complete it.
    #[must_use]
    pub fn incomplete(&self, is_left: impl Fn(AgentId) -> bool, frames: &Frames) -> Option<ExtentId> {
        let mut sealed = self.known.iter().filter(|(_, x)| x.registered && x.stream == Stream::Log);
        let found = sealed.find(|(extent, x)| {
            let (Some(members), Some(seal)) = (x.ensembles.last(), x.seal) else { return false };
            let mut left = members.iter().filter(|agent| is_left(**agent)).peekable();
            left.peek().is_some()
                && left.all(|agent| {
                    let kept = frames.of(**extent).filter(|(place, _)| place.1 < seal.length);
                    let mut lacks = kept.filter(|(_, seen)| !seen.durable_on.contains(agent)).peekable();
                    let some = lacks.peek().is_some();
                    some && !x.told.contains_key(agent) && lacks.all(|(place, _)| !self.is_whole(place, frames))
                })
        });
        found.map(|(extent, _)| *extent)
    }

    /// A seal leaves nothing acknowledged behind: I7.
    fn sealed(&self, extent: ExtentId, seal: Seal, frames: &Frames, history: &History) -> Result<(), Violation> {
        for (place, seen) in frames.of(extent).filter(|(place, _)| place.1 >= seal.length) {
            for (no, lba) in &seen.writes {
                if history.is_promised(*no) && !self.lies_elsewhere(*no, *lba, frames) {
                    let what = format!(
                        "extent {extent} is sealed at block {}, below write {} at block {}",
                        seal.length, no.0, place.1
                    );
                    return match self.forgetful(place) {
                        Some((agent, copy)) => {
                            Violation::new("I17", format!("{what}: {agent:?} had it, and said {copy:?}"))
                        }
                        None => Violation::new("I7", what),
                    };
                }
            }
        }
        Ok(())
    }

    /// A member that held the frame at a place durably when it was fenced, and told of a copy that ends before.
    fn forgetful(&self, (extent, offset): Place) -> Option<(AgentId, Copy)> {
        let less = |copy: &Copy| match copy {
            Copy::Open { length, .. } | Copy::Sealed { length, .. } => *length <= offset,
            Copy::Never => true,
            Copy::Unknown => false,
        };
        let told = self.known.get(&extent)?.told.iter();
        told.filter(|(_, told)| offset < told.held && less(&told.copy)).map(|(agent, told)| (*agent, told.copy)).next()
    }

    fn lies_elsewhere(&self, no: WriteNo, lba: Lba, frames: &Frames) -> bool {
        frames.places(no, lba).iter().any(|place| self.is_valid(*place))
    }

    /// Whether the frame at a place belongs to its extent for all that is known now.
    fn is_valid(&self, (extent, offset): Place) -> bool {
        self.known.get(&extent).is_some_and(|known| known.seal.is_none_or(|seal| offset < seal.length))
    }

    /// A write was acknowledged in `durable` mode: its blocks must be where the promise says.
    ///
    /// # Errors
    /// I5 when they lie in no registered extent, I1 when not on the whole ensemble of one.
    pub fn write_acked(&self, no: WriteNo, history: &History, frames: &Frames) -> Result<(), Violation> {
        let (lba, blocks) = history.range_of(no);
        for at in lba.0..lba.0 + u64::from(blocks) {
            let places = frames.places(no, Lba(at));
            if !places.iter().any(|(extent, _)| self.known.contains_key(extent)) {
                let what = format!("write {} is acknowledged, and block {at} of it lies in no registered extent", no.0);
                return Violation::new("I5", what);
            }
            if !places.iter().any(|place| self.is_whole(*place, frames)) {
                let what =
                    format!("write {} is acknowledged, and block {at} of it is not durable on all members", no.0);
                return Violation::new("I1", what);
            }
        }
        Ok(())
    }

    /// A flush was acknowledged, and covers this write.
    ///
    /// # Errors
    /// I19 when a block of it is not durable on the whole ensemble of an extent.
    pub fn flush_covers(&self, no: WriteNo, history: &History, frames: &Frames) -> Result<(), Violation> {
        let (lba, blocks) = history.range_of(no);
        let durable = |at: u64| frames.places(no, Lba(at)).iter().any(|place| self.is_whole(*place, frames));
        match (lba.0..lba.0 + u64::from(blocks)).find(|at| !durable(*at)) {
            Some(at) => {
                let what = format!("a flush covers write {}, and block {at} of it is not durable on all members", no.0);
                Violation::new("I19", what)
            }
            None => Ok(()),
        }
    }

    fn is_whole(&self, place: Place, frames: &Frames) -> bool {
        let (Some(known), Some(seen)) = (self.known.get(&place.0), frames.at(place)) else { return false };
        known.ensembles.iter().any(|members| members.iter().all(|member| seen.durable_on.contains(member)))
    }

    /// A member says that its copy is closed.
    ///
    /// # Errors
    /// I6.
    pub fn member_sealed(
        &mut self,
        extent: ExtentId,
        agent: AgentId,
        length: Blocks,
        digest: Digest,
    ) -> Result<(), Violation> {
        let Some(known) = self.known.get_mut(&extent) else { return Ok(()) };
        if let Some(seal) = known.seal.filter(|seal| seal.length != length) {
            let what = format!("{agent:?} closes extent {extent} at block {length}, and its seal is {seal:?}");
            return Violation::new("I6", what);
        }
        known.closed.insert(agent, (length, digest));
        let (first_length, first) = *known.digest.get_or_insert((length, digest));
        if first_length == length && first != digest {
            return Violation::new("I6", format!("extent {extent} has two digests at block {length}"));
        }
        Ok(())
    }

    /// A member has been asked to give the slot of `extent` back, and has agreed.
    ///
    /// # Errors
    /// I13 when it belongs to the ensemble of a registered extent, I15 when not all of those are whole.
    pub fn deleted(&self, extent: ExtentId, agent: AgentId) -> Result<(), Violation> {
        if self.head.contains(&extent.seq) {
            return Violation::new("I13", format!("extent {extent} is deleted, and the checkpoint in force is in it"));
        }
        let Some(known) = self.known.get(&extent).filter(|known| known.registered) else { return Ok(()) };
        let (Some(members), Some(seal)) = (known.ensembles.last(), known.seal) else {
            return Violation::new("I13", format!("extent {extent} is deleted while it is written"));
        };
        if seal.length == 0 {
            return Ok(());
        }
        if members.contains(&agent) {
            return Violation::new("I13", format!("extent {extent} is deleted while it is still registered"));
        }
        let said: Vec<_> = members.iter().map(|member| known.closed.get(member)).collect();
        let whole = |copy: &Option<&(Blocks, Digest)>| copy.is_some_and(|(length, _)| *length == seal.length);
        if said.iter().all(whole) && said.windows(2).all(|pair| pair[0] == pair[1]) {
            return Ok(());
        }
        let what = format!("{agent:?} gives up its copy of extent {extent} while those of its ensemble are {said:?}");
        Violation::new("I15", what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::smallvec;
    use torus_core::block::record::BlockRecord;
    use torus_core::format::{FrameHeader, Pieces};
    use torus_core::ids::{Epoch, Vseq};
    use torus_core::meta::docs::AckMode;

    const VOLUME: VolumeId = VolumeId(1);
    const EXTENT: ExtentId = ExtentId { volume: VOLUME, seq: ExtentSeq(7) };

    /// Two frames of one block, of which the members given hold the first and the second, sealed after them; its ensembles.
    fn sealed(first: &[u64], second: &[u64], ensembles: &[&[u64]]) -> (Extents, Frames) {
        let (mut extents, mut frames) = (Extents::new(VOLUME, 9), Frames::new(0));
        for (offset, holders) in (0..).zip([first, second]) {
            let header = FrameHeader {
                extent: EXTENT,
                offset,
                stream: Stream::Log,
                epoch: Epoch(1),
                base: Vseq(1 + u64::from(offset)),
                lac: Vseq(0),
                records: smallvec![BlockRecord::Trim { lba: Lba(u64::from(offset)), blocks: 1 }.encode()],
                crcs: smallvec![],
            };
            let places = frames.written(&Pieces::from_iter([header.encode()])).unwrap();
            holders.iter().for_each(|agent| frames.durable(AgentId(*agent), &places));
        }
        for members in ensembles {
            let doc = ExtentDoc {
                stream: Stream::Log,
                members: members.iter().map(|agent| AgentId(*agent)).collect(),
                former: Vec::new(),
                degraded: true,
                sealed: Some(Seal { length: 2, last: Vseq(2) }),
            };
            extents.put(EXTENT, doc, &frames, &History::new(AckMode::Durable, 2)).unwrap();
        }
        (extents, frames)
    }

    #[test]
    fn only_what_could_not_be_acknowledged_may_be_missing_for_good() {
        let found = |(extents, frames): (Extents, Frames), left: &[u64]| {
            extents.incomplete(|agent| left.contains(&agent.0), &frames).is_some()
        };
        assert!(found(sealed(&[1, 2, 3], &[1, 2], &[&[1, 2, 3]]), &[3]));
        assert!(!found(sealed(&[1, 2, 3], &[1, 2], &[&[1, 2, 3]]), &[1, 3]), "a whole copy is left");
        assert!(!found(sealed(&[1, 2, 3], &[1, 2, 3], &[&[1, 2, 3]]), &[3]), "it is whole");
        assert!(
            !found(sealed(&[1, 2, 3], &[1, 2], &[&[1, 2], &[1, 2, 3]]), &[3]),
            "all that it then was had the frame"
        );
        assert!(!found(sealed(&[1, 2, 3], &[1, 2], &[&[1, 2, 3]]), &[]), "no fault takes all");
    }

    #[test]
    fn recovery_completes_the_copies_that_it_has_heard_of() {
        let (mut extents, frames) = sealed(&[1, 2, 3], &[1, 2], &[&[1, 2, 3]]);
        extents.told(AgentId(3), &[(EXTENT.seq, Copy::Open { length: 1, lac: Vseq(0), damaged: false })], &frames);
        assert_eq!(extents.incomplete(|agent| agent == AgentId(3), &frames), None);
    }
}
