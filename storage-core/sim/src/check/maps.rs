//! Address maps: what an owner has built from its checkpoint and the records after it.
//!
//! Pictures are taken when an owner begins to serve, and again when it ends, wherever that hits it. Between the two it has
//! applied records as they were acknowledged; an owner that begins has applied them by replay, on top of the checkpoint
//! that happened to be in force. Not the places are compared but the writes that lie there: a frame that moved when its
//! extent lost a member may be found in both extents, and either will do.
//!
//! 1. (I10) After the same record, the map built at run time and the one built by replay are the same.
//! 2. (I11) So are those of any two replays, from whatever checkpoints.

use super::Violation;
use super::frames::Frames;
use crate::owner::Picture;
use crate::payload::WriteNo;
use std::collections::BTreeMap;
use torus_core::ids::{ExtentId, Lba, VolumeId, Vseq};

/// Which write each block shows.
type Shown = BTreeMap<Lba, WriteNo>;

/// How an owner came by its map.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Made {
    /// By replay, on top of a checkpoint.
    Replayed,
    /// By what it did itself since then.
    Running,
}

/// The maps that were seen, by the last record in them and how they were made.
#[derive(Debug, Default)]
pub struct Maps(BTreeMap<(Vseq, Made), Shown>);

impl Maps {
    /// An owner of `volume` has this map.
    ///
    /// # Errors
    /// I10 or, where both were replayed, I11, when another owner had a different one after the same record; I10, when a block
    /// lies where nothing of it was ever written.
    pub fn taken(
        &mut self,
        volume: VolumeId,
        (made, picture): (Made, &Picture),
        frames: &Frames,
    ) -> Result<(), Violation> {
        let vseq = picture.vseq;
        let mut map = BTreeMap::new();
        for &(lba, seq, block) in &picture.places {
            match frames.write_at(ExtentId { volume, seq }, block) {
                Some((no, of)) if of == lba => map.insert(lba, no),
                found => {
                    let what =
                        format!("block {lba} is said to lie at block {block} of extent {seq}: there is {found:?}");
                    return Violation::new("I10", what);
                }
            };
        }
        for other in [Made::Replayed, Made::Running] {
            if let Some(known) = self.0.get(&(vseq, other)) {
                let replayed = (made, other) == (Made::Replayed, Made::Replayed);
                alike(vseq, known, &map).or_else(|what| Violation::new(if replayed { "I11" } else { "I10" }, what))?;
            }
        }
        self.0.insert((vseq, made), map);
        Ok(())
    }
}

/// Two maps show the same, or else how they differ.
fn alike(vseq: Vseq, one: &Shown, other: &Shown) -> Result<(), String> {
    let only = |a: &Shown, b: &Shown| a.iter().find(|(lba, no)| b.get(lba) != Some(no)).map(|(lba, no)| (*lba, *no));
    match (only(one, other), only(other, one)) {
        (None, None) => Ok(()),
        (one, other) => Err(format!("two maps end in record {vseq}: only one has {one:?}, only the other {other:?}")),
    }
}
