//! Checkpoints: the address map and the extent table, written as extents of their own and named by the volume's HEAD.
//!
//! A checkpoint is a picture of the map after record `S`. Taking over a volume loads it and replays the log from `S + 1` on,
//! so it bounds how long an open takes; and a committed HEAD is the proof that what its table lists as dead is needed no
//! more. It is a stream of pieces, one per frame: first the extent table, then the map (see [`table`] and
//! `map::codec` for their bytes).

pub mod load;
pub mod table;
pub mod write;
