//! The owner's side of the world: one process that has, or wants, the volume.
//!
//! The world drives owners through this port, so that the same faults and checkers serve the block volume and the small
//! [`crate::scripted`] owner.

#![allow(missing_docs, reason = "the fields of a message are described by its own line")]

use bytes::Bytes;
use torus_core::ids::{AgentId, Blocks, Epoch, ExtentSeq, Incarnation, Lba, RpcId, Vseq};
use torus_core::meta::{MetaError, MetaOp, MetaReply};
use torus_core::peer::{FreeSpace, Request, Response, Unanswered};
use torus_core::time::Instant;

/// One run of an owner's process; numbered from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Run(pub u64);

/// An operation of a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Write whole blocks; `fua`: durable before it is acknowledged, whatever the mode.
    Write { lba: Lba, data: Bytes, fua: bool },
    /// Make a range read as zeros; `trim`: its space may go too.
    Zero { lba: Lba, blocks: u32, trim: bool },
    /// Read whole blocks.
    Read { lba: Lba, blocks: u32 },
    /// Make durable what was acknowledged.
    Flush,
}

/// How an operation ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Done {
    /// Carried out.
    Ok,
    /// The bytes that were read.
    Data(Vec<u8>),
    /// No good copy of a block is left.
    Unreadable,
    /// Not carried out, or not known to be: the owner is ending, or has no space.
    Failed(String),
}

/// An agent as the cluster sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Which.
    pub id: AgentId,
    /// Its lease is alive: a hint.
    pub up: bool,
    /// Its run.
    pub incarnation: Incarnation,
    /// Its space, some time ago.
    pub space: FreeSpace,
}

/// What happens to an owner.
#[derive(Clone, Debug)]
pub enum Input {
    /// A client asks.
    Io { id: u64, op: Op },
    /// An agent answers, or will not.
    Answer { rpc: RpcId, result: Result<Response, Unanswered> },
    /// The metadata store answers, or will not.
    Meta { id: u64, result: Result<MetaReply, MetaError> },
    /// The cluster as it is seen.
    Agents(Vec<Seen>),
    /// A connection to an agent stands again.
    PeerUp(AgentId),
    /// The volume has grown to so many blocks.
    Resized(u64),
    /// The deadline has come.
    Tick,
    /// Write a checkpoint and end.
    Close,
}

/// What an owner wants done.
#[derive(Debug, Default)]
pub struct Output {
    /// Requests to agents, in this order.
    pub sends: Vec<(AgentId, RpcId, Request)>,
    /// Requests to the metadata store.
    pub meta: Vec<(u64, MetaOp)>,
    /// Operations that ended.
    pub done: Vec<(u64, Done)>,
    /// It serves from now on, in this epoch.
    pub serving: Option<Epoch>,
    /// It will do nothing more, and why.
    pub ended: Option<String>,
    /// For the trace.
    pub notes: Vec<String>,
}

/// An owner's address map at a moment when everything it has acknowledged is durable: which block lies where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Picture {
    /// The last record that it contains.
    pub vseq: Vseq,
    /// The blocks that were ever written, in order.
    pub places: Vec<(Lba, ExtentSeq, Blocks)>,
}

/// An owner's core.
pub trait Owner {
    /// Takes one event.
    fn step(&mut self, now: Instant, input: Input, out: &mut Output);
    /// Its address map, if it serves and has one to show.
    fn picture(&self) -> Option<Picture>;
    /// When it wants [`Input::Tick`] if nothing else happens, as of now.
    fn deadline(&self, now: Instant) -> Option<Instant>;
}
