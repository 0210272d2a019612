//! What clients saw: a register per block.
//!
//! The owner takes operations in the order in which they reach it, so the writes of a block have one order: by epoch,
//! then by number of issue ([`Version`]). For each block a *floor* is kept: no read that begins from now on may return
//! an older version. Acknowledged writes raise it, and so does everything that a read has shown. In `received` mode a
//! change of owner takes it back to the *durable floor*, which only flushes raise.
//!
//! 1. (I1, I19) A read returns no version below the floor that stood when it began.
//! 2. (I2, I18) It returns a version that was issued, of this very block, whole.
//! 3. (I3) A write that a later owner's read has shown not to have happened never turns up again; and all blocks show
//!    one cut through the order of the epoch before: recovery keeps a prefix.
//! 4. (I4) Nothing of an epoch completes after a later epoch has begun to serve.
//! 5. (I9) Writes are acknowledged in the order of issue.

use super::Violation;
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
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Open,
    Acked,
    /// Refused or failed: it may have happened, and says nothing about the order of others.
    Failed,
}

#[derive(Debug, Default)]
struct Block {
    /// All versions, in order; without the initial one.
    versions: BTreeSet<Version>,
    floor: Version,
    durable_floor: Version,
    dead: BTreeSet<Version>,
}

/// A read that has begun.
#[derive(Clone, Debug)]
pub struct ReadBegun {
    epoch: Epoch,
    lba: Lba,
    floors: Vec<Version>,
}

/// A flush that has begun: what it must make durable.
#[derive(Clone, Debug)]
pub struct FlushBegun {
    epoch: Epoch,
    acked: Vec<Version>,
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

    /// Whether this write may count as acknowledged for good: nothing may lose it any more.
    #[must_use]
    pub fn is_settled(&self, no: WriteNo, lba: Lba) -> bool {
        let Some(block) = self.blocks.get(lba.0 as usize) else { return false };
        let version = self.write(no).version;
        match self.mode {
            AckMode::Durable => self.write(no).outcome == Outcome::Acked && block.floor == version,
            AckMode::Received => block.durable_floor == version,
        }
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
                block.floor = block.durable_floor;
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

    /// A write, or with `zeros` a trim or a write of zeros, is given to the owner of `epoch`. `ordered`: those after it
    /// must not be acknowledged before it; so all but a write that waits to be durable where others do not.
    pub fn write_begins(&mut self, epoch: Epoch, lba: Lba, blocks: u32, zeros: bool, ordered: bool) -> WriteNo {
        let no = self.next_write();
        let version = Version { epoch, no };
        self.writes.push(Issued { version, lba, blocks, zeros, outcome: Outcome::Open });
        for at in lba.0..lba.0 + u64::from(blocks) {
            self.blocks[at as usize].versions.insert(version);
        }
        let open = self.open.entry(epoch).or_default();
        if ordered {
            open.insert(no);
        }
        no
    }

    /// It was acknowledged; `stable`: as a write that must outlive its owner.
    ///
    /// # Errors
    /// I4, I9.
    pub fn write_acked(&mut self, no: WriteNo, stable: bool) -> Result<(), Violation> {
        let Issued { version, lba, blocks, .. } = *self.write(no);
        self.not_superseded(version.epoch, &format!("write {} is acknowledged", no.0))?;
        let open = self.open.entry(version.epoch).or_default();
        open.remove(&no);
        if let Some(first) = open.first().filter(|first| **first < no) {
            return Violation::new("I9", format!("write {} is acknowledged before write {}", no.0, first.0));
        }
        self.writes[no.0 as usize - 1].outcome = Outcome::Acked;
        for at in lba.0..lba.0 + u64::from(blocks) {
            let block = &mut self.blocks[at as usize];
            block.floor = block.floor.max(version);
            if stable || self.mode == AckMode::Durable {
                block.durable_floor = block.durable_floor.max(version);
            }
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
    pub fn flush_begins(&self, epoch: Epoch) -> FlushBegun {
        FlushBegun { epoch, acked: self.blocks.iter().map(|b| b.floor).collect() }
    }

    /// It was acknowledged.
    ///
    /// # Errors
    /// I4.
    pub fn flush_acked(&mut self, flush: &FlushBegun) -> Result<(), Violation> {
        self.not_superseded(flush.epoch, "a flush is acknowledged")?;
        for (block, acked) in self.blocks.iter_mut().zip(&flush.acked) {
            block.durable_floor = block.durable_floor.max(*acked);
        }
        Ok(())
    }

    /// A read is given to the owner of `epoch`.
    #[must_use]
    pub fn read_begins(&self, epoch: Epoch, lba: Lba, blocks: u32) -> ReadBegun {
        let range = lba.0 as usize..lba.0 as usize + blocks as usize;
        ReadBegun { epoch, lba, floors: self.blocks[range].iter().map(|b| b.floor).collect() }
    }

    /// It returned these blocks.
    ///
    /// # Errors
    /// I1, I2, I3, I4, I18.
    pub fn read_returns(&mut self, read: &ReadBegun, contents: &[Content]) -> Result<(), Violation> {
        self.not_superseded(read.epoch, &format!("a read of block {} returns", read.lba))?;
        if contents.len() != read.floors.len() {
            let (got, asked) = (contents.len(), read.floors.len());
            return Violation::new("I2", format!("a read of {asked} blocks from {} returned {got}", read.lba));
        }
        for (i, (content, floor)) in contents.iter().zip(&read.floors).enumerate() {
            self.block_returns(read.epoch, Lba(read.lba.0 + i as u64), *floor, *content)?;
        }
        Ok(())
    }

    fn block_returns(&mut self, epoch: Epoch, lba: Lba, floor: Version, content: Content) -> Result<(), Violation> {
        self.reads += 1;
        match content {
            Content::Garbage => Violation::new("I18", format!("block {lba} returned {content}")),
            Content::Zeros => self.zeros_return(epoch, lba, floor),
            Content::Written(of, no) => {
                let known = no.0 >= 1 && no < self.next_write();
                if of != lba || !known || self.write(no).zeros {
                    return Violation::new("I2", format!("block {lba} returned {content}"));
                }
                let version = self.write(no).version;
                self.may_show(epoch, lba, version)?;
                if version < floor {
                    let lost = floor.no.0;
                    let what = format!(
                        "block {lba} returned write {} (epoch {}) after write {lost} (epoch {}) was acknowledged or shown",
                        no.0, version.epoch, floor.epoch
                    );
                    return Violation::new("I1", what);
                }
                self.shown(epoch, lba, version)
            }
        }
    }

    /// Zeros do not say which trim they come from: any one that fits will do.
    fn zeros_return(&mut self, epoch: Epoch, lba: Lba, floor: Version) -> Result<(), Violation> {
        let block = &self.blocks[lba.0 as usize];
        let initial = std::iter::once(Version::default());
        let zeros = block.versions.iter().copied().filter(|v| self.write(v.no).zeros);
        let fits = |v: &Version| *v >= floor && (v.no.0 == 0 || self.may_show(epoch, lba, *v).is_ok());
        let mut candidates = initial.chain(zeros).filter(fits);
        let Some(first) = candidates.next() else {
            let what = format!(
                "block {lba} returned zeros after write {} (epoch {}) was acknowledged or shown",
                floor.no.0, floor.epoch
            );
            return Violation::new("I1", what);
        };
        let only = candidates.next().is_none();
        drop(candidates);
        if only {
            return self.shown(epoch, lba, first);
        }
        let block = &mut self.blocks[lba.0 as usize];
        block.floor = block.floor.max(first);
        Ok(())
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

    /// Draws the conclusions from `version` having been shown by `epoch`.
    fn shown(&mut self, epoch: Epoch, lba: Lba, version: Version) -> Result<(), Violation> {
        let block = &mut self.blocks[lba.0 as usize];
        block.floor = block.floor.max(version);
        if self.mode == AckMode::Durable || version.epoch < epoch {
            block.durable_floor = block.durable_floor.max(version);
        }
        let older = Version { epoch, no: WriteNo(0) };
        if version < older {
            let skipped: Vec<Version> =
                block.versions.range(version..older).copied().filter(|v| *v > version).collect();
            block.dead.extend(skipped);
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
        let missing = versions.range(from..end).find(|v| **v > version && self.write(v.no).outcome != Outcome::Failed);
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
