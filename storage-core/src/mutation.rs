//! Deliberate defects, for the simulator alone: a checker that has never caught anything has not been shown to work.
//!
//! Each variant of [`Mutation`] is one wrong decision. The line that decides asks [`active`]; without the feature
//! `mutations`, which nothing but `torus-sim` turns on, that is the constant `false` and the hook compiles to nothing.
//! Defects of the world *around* the cores (a disk that lies about a sync, a store that ignores a comparison) are not
//! here: the simulator makes those by itself.

/// One deliberate defect of a core.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Mutation {
    /// Member: takes appends of an epoch below its fence.
    EpochIgnored,
    /// Member: a fence is kept in memory only.
    FenceNotPersisted,
    /// Member: says a frame is durable when it has only received it.
    AppendedBeforeCommit,
    /// Member and reads: data is read, scanned and filled without looking at checksums.
    CrcIgnored,
    /// Member: a damaged copy reports its valid prefix as all there was.
    DamageHidden,
    /// Member: a frame that is resent is appended a second time, where the copy now ends.
    ResendAppendsAgain,
    /// Member: grants a lease and forgets it, so that a fence reports none.
    LeaseForgotten,
    /// Member: seals at its own length, whatever was asked for.
    SealsAtOwnLength,
    /// Log: a write is acknowledged when the first member has it.
    AckBeforeAllMembers,
    /// Log: writes are acknowledged as they finish, not in `vseq` order.
    AckOutOfOrder,
    /// Log: writes to an extent are acknowledged before it is registered.
    UnregisteredExtent,
    /// Log: an extent is sealed at the shortest length reported instead of the longest.
    ShortestLengthSeals,
    /// Log: an owner that opens a volume leaves out the last frame of each open extent.
    LastFrameLeftOut,
    /// Log: an owner that opens a volume keeps what lies behind the first missing record.
    GapKept,
    /// Log: an owner that opens a volume waits until every member has answered.
    SilenceWaitedOut,
    /// Log: an extent whose member is lost is kept.
    LostMemberKept,
    /// Log: in `received` mode a flush does not wait for anything.
    FlushDoesNotWait,
    /// Log: an owner goes on serving when its read leases have run out.
    LeaseIgnored,
    /// Log: a new owner serves without waiting out the leases of the older one.
    LeaseNotWaitedOut,
    /// Recovery: the witness of an owner without extents is not waited out.
    WitnessNotWaitedOut,
    /// Log: an extent's number is drawn again after a reopening.
    ExtentReused,
    /// Block: a read of several blocks returns them turned by one.
    BlocksTurned,
    /// Block: replay leaves out the frame before the last.
    FrameSkipped,
    /// Block: replay applies the records of a frame back to front.
    ReplayOutOfOrder,
    /// Block: a checkpoint is written without the first part of the map.
    CheckpointIncomplete,
    /// Block: a relocation is applied whatever the map says.
    RelocUnconditional,
    /// Block: an emptied extent is deleted before a checkpoint says that it is dead.
    DeleteBeforeCheckpoint,
    /// Block: a failed metadata transaction is taken for a success before deleting.
    DeleteOnMetaError,
}

#[cfg(feature = "mutations")]
mod switch {
    use super::Mutation;
    use core::cell::Cell;

    std::thread_local! {
        static ACTIVE: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Whether this thread's cores are to have this defect.
    #[must_use]
    pub fn active(mutation: Mutation) -> bool {
        ACTIVE.get() == Some(mutation)
    }

    /// Gives this thread's cores a defect, or none.
    pub fn set(mutation: Option<Mutation>) {
        ACTIVE.set(mutation);
    }
}

#[cfg(feature = "mutations")]
pub use switch::{active, set};

/// Whether this thread's cores are to have this defect: never, in a program that people run.
#[cfg(not(feature = "mutations"))]
#[must_use]
#[inline(always)]
pub const fn active(_: Mutation) -> bool {
    false
}
