//! A block volume on top of a replicated log: what makes a volume a *block* volume is here and nowhere below.
//!
//! | module | what it is |
//! |---|---|
//! | [`volume`] | a volume and its one owner, from the claim to the close |
//! | [`loading`] | the volume while its checkpoint is read |
//! | [`serving`] | the volume while it is open |
//! | [`io`] | what front ends ask, and get |
//! | [`record`], [`state`] | what the log's records mean, and what they come to |
//! | [`map`] | from block address to place in the log |
//! | [`reads`] | reads under way |
//! | [`space`] | when extents are emptied and given back, and whether writes may wait for room |
//! | [`gc`] | emptying an extent |
//! | [`checkpoint`] | the map as extents of its own |

pub mod checkpoint;
pub mod gc;
pub mod io;
pub mod loading;
pub mod map;
pub mod reads;
pub mod record;
pub mod serving;
pub mod space;
pub mod state;
pub mod volume;

#[cfg(test)]
mod tests;

pub use io::{IoDone, IoError, IoId, IoOp};
pub use volume::{Effects, Event, Volume, VolumeConfig, VolumeState};
