//! What an owner has asked of agents and of the metadata store, and is still waiting for.
//!
//! Every request has a number, a sender's clock reading and a deadline. An answer is matched by number, so one that
//! comes twice, late or from a request long given up changes nothing.

use super::{Effects, Send};
use crate::ids::{AgentId, RpcId};
use crate::meta::MetaOp;
use crate::peer::Request;
use crate::time::{Duration, Instant};
use std::collections::BTreeMap;

/// A request to the metadata store, numbered by the owner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Default)]
pub struct MetaId(pub u64);

/// A request under way.
#[derive(Clone, Debug)]
pub struct Call<W> {
    /// To whom.
    pub to: AgentId,
    /// When it was sent.
    pub sent: Instant,
    /// When its sender stops waiting.
    pub deadline: Instant,
    /// What its answer is for.
    pub what: W,
}

/// Requests under way. `W` says what an answer is for, `M` the same for the metadata store.
#[derive(Debug)]
pub struct Calls<W, M> {
    next: u64,
    peers: BTreeMap<RpcId, Call<W>>,
    meta: BTreeMap<MetaId, M>,
}

impl<W, M> Default for Calls<W, M> {
    fn default() -> Self {
        Calls { next: 1, peers: BTreeMap::new(), meta: BTreeMap::new() }
    }
}

impl<W, M> Calls<W, M> {
    /// None yet; the first gets the number `next`. Numbers go on where an owner's earlier stage left off, so that an answer
    /// which comes late can never be taken for another's.
    #[must_use]
    pub fn from(next: u64) -> Self {
        Calls { next, ..Calls::default() }
    }

    /// The number that the next request will get.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Sends `request` and remembers `what` it is for.
    pub fn send(&mut self, now: Instant, to: AgentId, request: Request, wait: Duration, what: W, out: &mut Effects) {
        let rpc = RpcId(self.number());
        self.peers.insert(rpc, Call { to, sent: now, deadline: now + wait, what });
        out.sends.push(Send { to, rpc, request });
    }

    /// Asks the metadata store.
    pub fn ask(&mut self, op: MetaOp, what: M, out: &mut Effects) {
        let id = MetaId(self.number());
        self.meta.insert(id, what);
        out.meta.push((id, op));
    }

    /// The request that an answer belongs to, which is then over.
    pub fn answered(&mut self, rpc: RpcId) -> Option<Call<W>> {
        self.peers.remove(&rpc)
    }

    /// The request that a first of two answers belongs to.
    #[must_use]
    pub fn peek(&self, rpc: RpcId) -> Option<&Call<W>> {
        self.peers.get(&rpc)
    }

    /// What a metadata answer was asked for.
    pub fn meta_answered(&mut self, id: MetaId) -> Option<M> {
        self.meta.remove(&id)
    }

    /// Takes out a request whose deadline has passed.
    pub fn expired(&mut self, now: Instant) -> Option<Call<W>> {
        let rpc = self.peers.iter().find(|(_, call)| call.deadline <= now).map(|(&rpc, _)| rpc)?;
        self.peers.remove(&rpc)
    }

    /// The next deadline.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.peers.values().map(|c| c.deadline).min()
    }

    /// Whether an answer of the metadata store is being waited for.
    #[must_use]
    pub fn is_transacting(&self) -> bool {
        !self.meta.is_empty()
    }
}
