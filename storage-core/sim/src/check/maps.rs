//! Address maps: what an owner has built from its checkpoint and the records after it.
//!
//! Pictures are taken when an owner begins to serve, and again when it ends, wherever that hits it. Between the two it has
//! applied records as they were acknowledged; an owner that begins has applied them by replay, on top of the checkpoint
//! that happened to be in force.
//!
//! 1. (I10) After the same record, the map built at run time and the one built by replay are the same.
//! 2. (I11) So are those of any two replays, from whatever checkpoints.

use super::Violation;
use crate::owner::Picture;
use std::collections::BTreeMap;
use torus_core::ids::Vseq;

/// The maps that were seen, by the last record in them.
#[derive(Debug, Default)]
pub struct Maps(BTreeMap<Vseq, Picture>);

impl Maps {
    /// An owner has this map.
    ///
    /// # Errors
    /// I10, when another owner had a different one after the same record.
    pub fn taken(&mut self, picture: Picture) -> Result<(), Violation> {
        let vseq = picture.vseq;
        let Some(known) = self.0.get(&vseq) else {
            self.0.insert(vseq, picture);
            return Ok(());
        };
        if *known == picture {
            return Ok(());
        }
        let only = |a: &Picture, b: &Picture| a.places.iter().find(|place| !b.places.contains(place)).copied();
        let what = format!(
            "two maps contain record {vseq} as their last, but only one has {:?}, only the other {:?}",
            only(known, &picture),
            only(&picture, known)
        );
        Violation::new("I10", what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use torus_core::ids::{ExtentSeq, Lba};

    #[test]
    fn maps_differ_only_after_different_records() {
        let picture = |vseq, block| Picture { vseq: Vseq(vseq), places: vec![(Lba(4), ExtentSeq(1 << 24), block)] };
        let mut maps = Maps::default();
        for (vseq, block, same) in [(7, 2, true), (7, 2, true), (8, 3, true), (7, 3, false)] {
            assert_eq!(maps.taken(picture(vseq, block)).is_ok(), same);
        }
    }
}
