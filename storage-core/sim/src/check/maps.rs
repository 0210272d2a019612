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

/// The maps that were seen, by the last record in them: which write each block shows.
#[derive(Debug, Default)]
pub struct Maps(BTreeMap<Vseq, BTreeMap<Lba, WriteNo>>);

impl Maps {
    /// An owner of `volume` has this map.
    ///
    /// # Errors
    /// I10, when another owner had a different one after the same record, or when a block lies where nothing of it was
    /// ever written.
    pub fn taken(&mut self, volume: VolumeId, picture: &Picture, frames: &Frames) -> Result<(), Violation> {
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
        let Some(known) = self.0.get(&vseq) else {
            self.0.insert(vseq, map);
            return Ok(());
        };
        let only = |a: &BTreeMap<Lba, WriteNo>, b: &BTreeMap<Lba, WriteNo>| {
            a.iter().find(|(lba, no)| b.get(lba) != Some(no)).map(|(lba, no)| (*lba, *no))
        };
        match (only(known, &map), only(&map, known)) {
            (None, None) => Ok(()),
            (one, other) => {
                let what = format!("two maps end in record {vseq}: only one has {one:?}, only the other {other:?}");
                Violation::new("I10", what)
            }
        }
    }
}
