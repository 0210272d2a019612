//! What clients saw: a register per block.
//!
//! The owner takes writes in the order in which they reach it, so the writes of a block have one order: by epoch, then
//! by number of issue ([`Version`]). Trims and writes of zeros have an order only to what was not under way at the same
//! time.
//!
//! A version is *settled* when it was acknowledged or when a read has shown it; from then on no read may return what it
//! supersedes. In `received` mode a change of owner unsettles what no flush has covered.
//!
//! 1. (I1) A read returns nothing that is superseded by what was settled when the read began. (I12) Nor does it when garbage
//!    collection has moved what it returns.
//! 2. (I2, I18) It returns a version that was issued, of this very block, whole.
//! 3. (I3) A write that a later owner's read has shown not to have happened never turns up again; and all blocks show
//!    one cut through the order of the epoch before: recovery keeps a prefix.
//! 4. (I4) Nothing of an epoch completes after a later epoch has begun to serve.
//! 5. (I9) Writes are acknowledged in the order of issue. (Not trims: they go to extents of their own.)

use super::Violation;
use super::frames::Frames;
use crate::payload::{Content, WriteNo};
use std::collections::{BTreeMap, BTreeSet};
use torus_core::ids::{Epoch, Lba};
use torus_core::meta::docs::AckMode;

/// A write's place in the order of its blocks; the default is "never written".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Version {
    /// The epoch of the owner it was given to.
    pub epoch: Epoch,
    /// Its number.
    pub no: WriteNo,
}

#[derive(Debug)]
struct Issued {
    version: Version,
    lba: Lba,
    blocks: u32,
    zeros: bool,
    outcome: Outcome,
    /// When it was issued and acknowledged, in operations begun or ended.
    issued: u64,
    acked: Option<u64>,
    /// It outlives its owner.
    stable: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Open,
    Acked,
    /// Refused or failed: it may have happened, and says nothing about the order of others.
    Failed,
}

/// A version that no read may go behind.
#[derive(Clone, Copy, Debug)]
struct Settled {
    version: Version,
    /// When, in operations begun or ended.
    at: u64,
    /// A change of owner does not unsettle it.
    stable: bool,
}

/// Settled versions that are kept of a block: older ones add nothing but in odd cases.
const SETTLED_MAX: usize = 6;

#[derive(Debug, Default)]
struct Block {
    /// All versions, in order; without the initial one.
    versions: BTreeSet<Version>,
    settled: Vec<Settled>,
    dead: BTreeSet<Version>,
}

impl Block {
    fn settle(&mut self, version: Version, at: u64, stable: bool) {
        if let Some(known) = self.settled.iter_mut().find(|s| s.version == version) {
            known.stable |= stable;
            return;
        }
        self.settled.push(Settled { version, at, stable });
        self.settled.sort_by_key(|s| s.version);
        if self.settled.len() > SETTLED_MAX {
            // Of those that a change of owner may leave, the newest must not go.
            let last_stable = self.settled.iter().rposition(|s| s.stable);
            self.settled.remove(usize::from(last_stable == Some(0)));
        }
    }
}

/// A read that has begun.
#[derive(Clone, Debug)]
pub struct ReadBegun {
    epoch: Epoch,
    lba: Lba,
    blocks: u32,
    at: u64,
}

/// A flush that has begun: what it must make durable.
#[derive(Clone, Debug)]
pub struct FlushBegun {
    epoch: Epoch,
    at: u64,
}

/// Where the log of the epoch before was cut, as far as reads tell: between two of its writes.
#[derive(Clone, Copy, Debug)]
struct Cut {
    epoch: Epoch,
    least: WriteNo,
    most: WriteNo,
}

/// Everything that clients did and saw on one volume.
#[derive(Debug)]
pub struct History {
    mode: AckMode,
    blocks: Vec<Block>,
    writes: Vec<Issued>,
    /// Epochs that served, with the number of the first write not yet issued then.
    served: BTreeMap<Epoch, WriteNo>,
    cuts: BTreeMap<Epoch, Cut>,
    /// Writes of each epoch that are neither acknowledged nor failed.
    open: BTreeMap<Epoch, BTreeSet<WriteNo>>,
    reads: u64,
    /// Operations begun or ended so far: the time that matters here.
    clock: u64,
}

impl History {
    /// Of a volume that was never written.
    #[must_use]
    pub fn new(mode: AckMode, blocks: u64) -> Self {
        let mut new = Self {
            mode,
            blocks: Vec::new(),
            writes: Vec::new(),
            served: BTreeMap::new(),
            cuts: BTreeMap::new(),
            open: BTreeMap::new(),
            reads: 0,
            clock: 0,
        };
        new.grow(blocks);
        new
    }

    /// The volume has `blocks` blocks now.
    pub fn grow(&mut self, blocks: u64) {
        self.blocks.resize_with(blocks as usize, Block::default);
    }

    /// The number that the next write will get.
    #[must_use]
    pub fn next_write(&self) -> WriteNo {
        WriteNo(self.writes.len() as u64 + 1)
    }

    /// Blocks that were read and judged.
    #[must_use]
    pub fn blocks_read(&self) -> u64 {
        self.reads
    }

    /// The lba and length of a write.
    #[must_use]
    pub fn range_of(&self, no: WriteNo) -> (Lba, u32) {
        let write = self.write(no);
        (write.lba, write.blocks)
    }

    /// Whether this write is acknowledged for good: nothing may lose it any more.
    #[must_use]
    pub fn is_promised(&self, no: WriteNo) -> bool {
        let write = self.write(no);
        write.stable && write.outcome == Outcome::Acked
    }

    /// Whether it has a payload.
    #[must_use]
    pub fn has_data(&self, no: WriteNo) -> bool {
        !self.write(no).zeros
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn write(&self, no: WriteNo) -> &Issued {
        &self.writes[no.0 as usize - 1]
    }

    /// An owner of `epoch` has begun to serve. One that has been overtaken without knowing may think so: it will get
    /// nothing done.
    ///
    /// # Errors
    /// I4, when another one serves in the same epoch.
    pub fn serves(&mut self, epoch: Epoch) -> Result<(), Violation> {
        if self.served.last_key_value().is_some_and(|(newest, _)| *newest > epoch) {
            return Ok(());
        }
        if self.served.contains_key(&epoch) {
            return Violation::new("I4", format!("two owners serve in epoch {epoch}"));
        }
        if let Some(before) = self.open.iter().rev().find(|(e, _)| **e < epoch).map(|(e, _)| *e) {
            let cut = Cut { epoch: before, least: WriteNo(0), most: self.next_write() };
            self.cuts.insert(epoch, cut);
        }
        self.served.insert(epoch, self.next_write());
        if self.mode == AckMode::Received {
            for block in &mut self.blocks {
                block.settled.retain(|settled| settled.stable);
            }
        }
        Ok(())
    }

    fn not_superseded(&self, epoch: Epoch, what: &str) -> Result<(), Violation> {
        match self.served.last_key_value() {
            Some((newest, _)) if *newest > epoch => {
                Violation::new("I4", format!("{what} in epoch {epoch} although epoch {newest} serves"))
            }
            _ => Ok(()),
        }
    }

    /// A write, or with `zeros` a trim or a write of zeros, is given to the owner of `epoch`. `ordered`: writes after it
    /// must not be acknowledged before it; so all but one that waits to be durable where others do not.
    pub fn write_begins(&mut self, epoch: Epoch, lba: Lba, blocks: u32, zeros: bool, ordered: bool) -> WriteNo {
        let no = self.next_write();
        let version = Version { epoch, no };
        let issued = self.tick();
        let outcome = Outcome::Open;
        self.writes.push(Issued { version, lba, blocks, zeros, outcome, issued, acked: None, stable: false });
        for at in lba.0..lba.0 + u64::from(blocks) {
            self.blocks[at as usize].versions.insert(version);
        }
        let open = self.open.entry(epoch).or_default();
        if ordered && !zeros {
            open.insert(no);
        }
        no
    }

    /// It was acknowledged; `stable`: as a write that must outlive its owner.
    ///
    /// # Errors
    /// I4, I9.
    pub fn write_acked(&mut self, no: WriteNo, stable: bool) -> Result<(), Violation> {
        let Issued { version, lba, blocks, zeros, .. } = *self.write(no);
        self.not_superseded(version.epoch, &format!("write {} is acknowledged", no.0))?;
        let open = self.open.entry(version.epoch).or_default();
        open.remove(&no);
        if let Some(first) = open.first().filter(|first| **first < no && !zeros) {
            return Violation::new("I9", format!("write {} is acknowledged before write {}", no.0, first.0));
        }
        let now = self.tick();
        let write = &mut self.writes[no.0 as usize - 1];
        (write.outcome, write.acked, write.stable) = (Outcome::Acked, Some(now), stable);
        for at in lba.0..lba.0 + u64::from(blocks) {
            self.blocks[at as usize].settle(version, now, stable);
        }
        Ok(())
    }

    /// It was refused or failed.
    pub fn write_failed(&mut self, no: WriteNo) {
        let version = self.write(no).version;
        self.open.entry(version.epoch).or_default().remove(&no);
        self.writes[no.0 as usize - 1].outcome = Outcome::Failed;
    }

    /// A flush is given to the owner of `epoch`.
    #[must_use]
    pub fn flush_begins(&mut self, epoch: Epoch) -> FlushBegun {
        FlushBegun { epoch, at: self.tick() }
    }

    /// It was acknowledged: the writes with data that are promised by it alone.
    ///
    /// # Errors
    /// I4.
    pub fn flush_acked(&mut self, flush: &FlushBegun) -> Result<Vec<WriteNo>, Violation> {
        self.not_superseded(flush.epoch, "a flush is acknowledged")?;
        for settled in self.blocks.iter_mut().flat_map(|block| &mut block.settled) {
            settled.stable |= settled.at < flush.at;
        }
        let covered = |write: &&mut Issued| write.acked.is_some_and(|at| at < flush.at);
        let mut promised = Vec::new();
        for write in self.writes.iter_mut().filter(covered) {
            // What an older owner acknowledged and no flush covered may be gone: nobody has promised it since.
            if !write.stable && !write.zeros && write.version.epoch == flush.epoch {
                promised.push(write.version.no);
            }
            write.stable = true;
        }
        Ok(promised)
    }

    /// A read is given to the owner of `epoch`.
    #[must_use]
    pub fn read_begins(&mut self, epoch: Epoch, lba: Lba, blocks: u32) -> ReadBegun {
        ReadBegun { epoch, lba, blocks, at: self.tick() }
    }

    /// It returned these blocks.
    ///
    /// # Errors
    /// I1, I2, I3, I4, I12, I18.
    pub fn read_returns(&mut self, read: &ReadBegun, contents: &[Content], frames: &Frames) -> Result<(), Violation> {
        self.not_superseded(read.epoch, &format!("a read of block {} returns", read.lba))?;
        if contents.len() != read.blocks as usize {
            let (got, asked) = (contents.len(), read.blocks);
            return Violation::new("I2", format!("a read of {asked} blocks from {} returned {got}", read.lba));
        }
        self.tick();
        for (i, content) in contents.iter().enumerate() {
            self.block_returns(read, Lba(read.lba.0 + i as u64), *content, frames)?;
        }
        Ok(())
    }

    /// What was settled by `at` and supersedes `version` of a block.
    fn superseding(&self, lba: Lba, version: Version, at: u64) -> Option<Version> {
        let newer = self.blocks[lba.0 as usize].settled.iter().filter(|s| s.at < at && s.version > version);
        newer.map(|s| s.version).find(|newer| version.no.0 == 0 || self.follows(*newer, version))
    }

    /// Whether `newer` certainly comes after `older`.
    fn follows(&self, newer: Version, older: Version) -> bool {
        let (newer, older) = (self.write(newer.no), self.write(older.no));
        newer.version.epoch > older.version.epoch
            || !(newer.zeros || older.zeros)
            || older.acked.is_some_and(|acked| acked < newer.issued)
    }

    fn block_returns(
        &mut self,
        read: &ReadBegun,
        lba: Lba,
        content: Content,
        frames: &Frames,
    ) -> Result<(), Violation> {
        let ReadBegun { epoch, at, .. } = *read;
        self.reads += 1;
        match content {
            Content::Garbage => Violation::new("I18", format!("block {lba} returned {content}")),
            Content::Zeros => self.zeros_return(epoch, lba, at),
            Content::Written(of, no) => {
                let known = no.0 >= 1 && no < self.next_write();
                if of != lba || !known || self.write(no).zeros {
                    return Violation::new("I2", format!("block {lba} returned {content}"));
                }
                let version = self.write(no).version;
                self.may_show(epoch, lba, version)?;
                if let Some(newer) = self.superseding(lba, version, at) {
                    let (old, new) = (version.epoch, newer.epoch);
                    let what = format!(
                        "block {lba} returned write {} (epoch {old}) after write {} (epoch {new}) was acknowledged or shown",
                        no.0, newer.no.0
                    );
                    let moved = frames.was_moved(no, lba);
                    return Violation::new(if moved { "I12" } else { "I1" }, what);
                }
                self.shown(epoch, lba, version)
            }
        }
    }

    /// Zeros do not say which trim they come from: any one that fits will do.
    fn zeros_return(&mut self, epoch: Epoch, lba: Lba, at: u64) -> Result<(), Violation> {
        let initial = std::iter::once(Version::default());
        let zeros = self.blocks[lba.0 as usize].versions.iter().copied().filter(|v| self.write(v.no).zeros);
        let fits = |v: &Version| {
            self.superseding(lba, *v, at).is_none() && (v.no.0 == 0 || self.may_show(epoch, lba, *v).is_ok())
        };
        if initial.chain(zeros).any(|v| fits(&v)) {
            return Ok(());
        }
        let newer = self.blocks[lba.0 as usize].settled.last().map_or(0, |s| s.version.no.0);
        Violation::new("I1", format!("block {lba} returned zeros after write {newer} was acknowledged or shown"))
    }

    /// Whether an owner of `epoch` may show this version at all.
    fn may_show(&self, epoch: Epoch, lba: Lba, version: Version) -> Result<(), Violation> {
        let no = version.no.0;
        let too_late =
            self.served.range(Epoch(version.epoch.0 + 1)..).next().filter(|(_, first)| version.no >= **first);
        if version.epoch > epoch {
            return Violation::new(
                "I4",
                format!("epoch {epoch} shows write {no} of epoch {} in block {lba}", version.epoch),
            );
        }
        if let Some((newer, _)) = too_late {
            let what = format!(
                "block {lba} shows write {no}, given to epoch {} when epoch {newer} already served",
                version.epoch
            );
            return Violation::new("I4", what);
        }
        if self.blocks[lba.0 as usize].dead.contains(&version) {
            return Violation::new(
                "I3",
                format!("block {lba} shows write {no}, which recovery had shown not to have happened"),
            );
        }
        Ok(())
    }

    /// Draws the conclusions from the data of `version` having been shown by `epoch`.
    fn shown(&mut self, epoch: Epoch, lba: Lba, version: Version) -> Result<(), Violation> {
        let stable = self.mode == AckMode::Durable || version.epoch < epoch;
        let now = self.clock;
        let older = Version { epoch, no: WriteNo(0) };
        self.blocks[lba.0 as usize].settle(version, now, stable);
        if version < older {
            let later = self.blocks[lba.0 as usize].versions.range(version..older).copied();
            let skipped: Vec<Version> = later.filter(|v| *v > version && !self.write(v.no).zeros).collect();
            self.blocks[lba.0 as usize].dead.extend(skipped);
            self.narrow_cut(epoch, lba, version)?;
        }
        Ok(())
    }

    fn narrow_cut(&mut self, epoch: Epoch, lba: Lba, version: Version) -> Result<(), Violation> {
        let Some(cut) = self.cuts.get(&epoch).copied() else { return Ok(()) };
        let least = if version.epoch == cut.epoch { cut.least.max(version.no) } else { cut.least };
        let from = version.max(Version { epoch: cut.epoch, no: WriteNo(0) });
        let end = Version { epoch: cut.epoch.next(), no: WriteNo(0) };
        let versions = &self.blocks[lba.0 as usize].versions;
        let missing = versions.range(from..end).find(|v| {
            let write = self.write(v.no);
            **v > version && !write.zeros && write.outcome != Outcome::Failed
        });
        let most = missing.map_or(cut.most, |v| cut.most.min(v.no));
        if least > most {
            let what =
                format!("epoch {epoch} recovered write {} of epoch {} but not write {}", least.0, cut.epoch, most.0);
            return Violation::new("I3", what);
        }
        self.cuts.insert(epoch, Cut { least, most, ..cut });
        Ok(())
    }
}
