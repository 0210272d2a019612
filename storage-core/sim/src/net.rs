//! The network between owners and agents: connections that keep their order, links that can die.
//!
//! A message is never lost by itself, as under TCP: it is late, or its connection breaks, and then everything
//! outstanding on it is unanswered. What had been sent by then may still arrive, later: the receiver had it in a buffer.

use crate::owner::Run;
use std::collections::BTreeMap;
use torus_core::ids::{AgentId, RpcId};
use torus_core::time::Instant;

/// One connection of an owner to an agent; a new number after each break.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct Conn(pub u64);

/// Which direction of a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Owner to agent.
    There,
    /// Agent to owner.
    Back,
}

/// The link between one owner and one agent.
#[derive(Debug)]
pub struct Link {
    /// The connection in use.
    pub conn: Conn,
    /// Requests sent on it that have no last answer.
    pub outstanding: Vec<RpcId>,
    /// When the last message of each direction arrives: the next one does not overtake it.
    last_there: Instant,
    last_back: Instant,
    /// Whether a break is already on its way to the owner.
    pub breaking: bool,
}

/// All links.
#[derive(Debug, Default)]
pub struct Net {
    links: BTreeMap<(Run, AgentId), Link>,
    /// Links that are dead from owner to agent, or back.
    dead_there: BTreeMap<(Run, AgentId), Instant>,
    dead_back: BTreeMap<(Run, AgentId), Instant>,
    conns: u64,
}

impl Net {
    /// The link of an owner and an agent, connected.
    pub fn link(&mut self, owner: Run, agent: AgentId) -> &mut Link {
        let conns = &mut self.conns;
        self.links.entry((owner, agent)).or_insert_with(|| {
            *conns += 1;
            Link {
                conn: Conn(*conns),
                outstanding: Vec::new(),
                last_there: Instant::default(),
                last_back: Instant::default(),
                breaking: false,
            }
        })
    }

    /// Whether `conn` is the connection in use.
    #[must_use]
    pub fn is_current(&self, owner: Run, agent: AgentId, conn: Conn) -> bool {
        self.links.get(&(owner, agent)).is_some_and(|link| link.conn == conn)
    }

    /// Ends the connection: what was outstanding on it. The next message opens a new one.
    pub fn disconnect(&mut self, owner: Run, agent: AgentId) -> Vec<RpcId> {
        self.links.remove(&(owner, agent)).map(|link| link.outstanding).unwrap_or_default()
    }

    /// Takes a direction of a link away until `until`.
    pub fn kill(&mut self, owner: Run, agent: AgentId, way: Way, until: Instant) {
        let dead = match way {
            Way::There => &mut self.dead_there,
            Way::Back => &mut self.dead_back,
        };
        dead.insert((owner, agent), until);
    }

    /// When a direction that is dead at `now` comes back.
    #[must_use]
    pub fn dead_until(&self, owner: Run, agent: AgentId, way: Way, now: Instant) -> Option<Instant> {
        let dead = match way {
            Way::There => &self.dead_there,
            Way::Back => &self.dead_back,
        };
        dead.get(&(owner, agent)).copied().filter(|until| *until > now)
    }

    /// Brings all links back.
    pub fn heal(&mut self) {
        self.dead_there.clear();
        self.dead_back.clear();
    }

    /// Agents that `owner` has a connection to.
    #[must_use]
    pub fn peers(&self, owner: Run) -> Vec<AgentId> {
        self.links.keys().filter(|(run, _)| *run == owner).map(|(_, agent)| *agent).collect()
    }

    /// Owners that have a connection to `agent`.
    #[must_use]
    pub fn owners_of(&self, agent: AgentId) -> Vec<Run> {
        self.links.keys().filter(|(_, peer)| *peer == agent).map(|(run, _)| *run).collect()
    }
}

impl Link {
    /// When a message that would arrive at `at` does arrive: in order.
    pub fn arrive(&mut self, way: Way, at: Instant) -> Instant {
        let last = match way {
            Way::There => &mut self.last_there,
            Way::Back => &mut self.last_back,
        };
        *last = at.max(Instant(last.0 + 1));
        *last
    }
}
