//! An agent's half of an extent: append, fence, seal, read, restart.

mod port;

pub use port::{
    DiskError, DiskErrorKind, DiskEvent, DiskNo, DiskOp, DiskReader, DiskWrite, MemberEffects, MemberEvent, ReqId,
};
