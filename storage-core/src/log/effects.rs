//! What a log wants done, and what the answers are for.

#![allow(missing_docs, reason = "the fields of a variant are described by its own line")]

use super::calls::MetaId;
use super::transactions::LogTxn;
use crate::ids::{AgentId, Blocks, Epoch, ExtentSeq, RpcId};
use crate::meta::{MetaOp, Txn};
use crate::peer::Request;

/// A request on its way to an agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Send {
    /// To whom.
    pub to: AgentId,
    /// Its number: comes back with the answer.
    pub rpc: RpcId,
    /// What is asked.
    pub request: Request,
}

/// Something that a person should be told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    /// An agent stopped answering; writing goes on elsewhere.
    AgentLost { agent: AgentId },
    /// An extent was given fewer copies, or less spread, than asked for.
    Degraded { extent: ExtentSeq },
    /// A copy of an extent is whole again, or a new one was made.
    Repaired { extent: ExtentSeq, agent: AgentId },
    /// A copy's bytes are not what they should be; another copy served.
    DamagedCopy { extent: ExtentSeq, agent: AgentId },
    /// No copy of some blocks can be read: their range answers EIO.
    Unreadable { extent: ExtentSeq, block: Blocks },
    /// The metadata store refused something.
    MetadataRefused { reason: String },
    /// A newer epoch owns the volume: this owner is done.
    Fenced { epoch: Epoch },
}

/// What an owner wants done.
#[derive(Default, Debug)]
pub struct Effects {
    /// Requests to agents, to be sent in this order.
    pub sends: Vec<Send>,
    /// Requests to the metadata store.
    pub meta: Vec<(MetaId, MetaOp)>,
    /// News.
    pub notes: Vec<Note>,
}

/// What an agent's answer is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Call {
    /// A slot in an extent.
    Create { seq: ExtentSeq },
    /// Frames up to `end`.
    Append { seq: ExtentSeq, end: Blocks },
    /// The end of an extent's copy.
    Seal { seq: ExtentSeq },
    /// A read lease.
    Lease,
    /// A step of repair job `job`.
    Repair { job: u64 },
    /// An extent's deletion.
    Delete { seq: ExtentSeq },
    /// Something of the layer above, by its own number.
    Upper(u64),
}

/// What a metadata answer is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetaCall {
    /// A transaction of the log's, to be repeated until its outcome is known.
    Log(LogTxn, Txn),
    /// Something of the layer above, by its own number.
    Upper(u64),
}
