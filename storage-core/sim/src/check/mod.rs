//! The checkers: what must be so, whatever happened. Each watches the world from outside and trusts no core.
//!
//! | file | invariants |
//! |---|---|
//! | [`history`] | I1 acked writes read back, I2 reads are of initiated writes, I3 exposed outcomes stay, I4 one writer, I9 acks in order, I12 garbage collection changes no read, I18 no corrupt bytes |
//! | [`frames`] | I5 acked only in registered extents, I8 one frame per place, I9 one content per vseq; and that an ack finds its frames durable on the whole ensemble |
//! | [`extents`] | I6 one seal per extent, I7 and I17 no seal below an acked record, I13 to I15 nothing needed is deleted, I16 copies lie apart, I19 flushes find their writes durable |
//! | [`maps`] | I10 the map is the checkpoint plus its replay, I11 replaying is deterministic |
//!
//! I21 and I22 are the world's healed phase. I20 is of snapshots, which do not exist yet.

pub mod extents;
pub mod frames;
pub mod history;
pub mod maps;

/// A broken invariant.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{invariant}: {what}")]
pub struct Violation {
    /// Its number in the design: `I1` to `I22`.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

impl Violation {
    pub(crate) fn new<T>(invariant: &'static str, what: String) -> Result<T, Violation> {
        Err(Violation { invariant, what })
    }
}
