//! What front ends ask of a volume, and what they get.

#![allow(missing_docs, reason = "the fields of a variant are described by its own line")]

use crate::format::Pieces;
use crate::ids::{Epoch, Lba};

/// A request, numbered by the driver. Numbers are not used twice by one owner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct IoId(pub u64);

/// A request in whole blocks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IoOp {
    /// → [`IoDone::Data`].
    Read { lba: Lba, blocks: u64 },
    /// Pieces of whole blocks. With `fua`, done when durable in every mode. → [`IoDone::Done`].
    Write { lba: Lba, payload: Pieces, fua: bool },
    /// → [`IoDone::Done`].
    Trim { lba: Lba, blocks: u64, fua: bool },
    /// → [`IoDone::Done`].
    Zero { lba: Lba, blocks: u64, fua: bool },
    /// Every write acknowledged before is on stable storage. → [`IoDone::Done`].
    Flush,
    /// Which blocks hold data. → [`IoDone::Status`].
    Status { lba: Lba, blocks: u64 },
}

/// A request's result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IoDone {
    /// The blocks read.
    Data(Pieces),
    /// Done.
    Done,
    /// Runs of blocks in order: how many, and whether they hold data.
    Status(Vec<(u64, bool)>),
}

/// Why a request failed. There is no "timed out": what can still succeed waits, and says why (P6).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IoError {
    /// The request lies outside the volume, or is empty.
    #[error("blocks {lba}..{end} lie outside the volume, which has {size}")]
    OutOfRange { lba: Lba, end: u64, size: u64 },
    /// No agent has room, and garbage collection cannot make any.
    #[error("the pool is full: add disks or delete data")]
    NoSpace,
    /// No sound copy of these blocks is left.
    #[error("block {lba} cannot be read: no sound copy of it is left")]
    Unreadable { lba: Lba },
    /// Another owner has taken the volume over.
    #[error("the volume was taken over (epoch {epoch})")]
    Fenced { epoch: Epoch },
    /// The volume is being closed.
    #[error("the volume is being closed")]
    Closed,
}
