//! The agents as one owner sees them: what the cluster says of each, what this owner has met with itself, and until
//! when each has promised to serve no newer owner.

use crate::ids::{AgentId, Incarnation};
use crate::limits::{READ_LEASE, READ_LEASE_MARGIN};
use crate::peer::{Class, FreeSpace};
use crate::time::Instant;
use std::collections::BTreeMap;

/// An agent as the cluster sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AgentView {
    /// Which.
    pub id: AgentId,
    /// What people call it.
    pub name: String,
    /// It runs, as far as its lease in the metadata store tells: a hint.
    pub up: bool,
    /// Which run.
    pub incarnation: Incarnation,
    /// Its space, some seconds ago.
    pub space: FreeSpace,
}

/// An agent as this owner sees it.
#[derive(Clone, Debug)]
pub struct Peer {
    /// What people call it.
    pub name: String,
    /// As in [`AgentView::up`].
    pub up: bool,
    /// A request went unanswered and nothing has been heard since.
    pub suspect: bool,
    /// Since when it has been down or suspect.
    pub away_since: Option<Instant>,
    /// Newest word on its space.
    pub space: FreeSpace,
    /// It had no slot for new data when it had so many free ones; asked again when it has more.
    pub full_at: Option<u32>,
    /// Most slots that it had free when it refused: it keeps so many at the least.
    pub reserve: u32,
    /// Until when it serves no newer owner, by this owner's clock, margin taken off.
    pub lease: Option<Instant>,
}

/// All agents.
#[derive(Default, Debug)]
pub struct Peers {
    agents: BTreeMap<AgentId, Peer>,
    /// The cluster has said who there is.
    told: bool,
}

impl Peers {
    /// Takes over the cluster's view.
    pub fn update(&mut self, now: Instant, views: &[AgentView]) {
        self.told = true;
        for view in views {
            let peer = self.agents.entry(view.id).or_insert_with(|| Peer {
                name: view.name.clone(),
                up: false,
                suspect: false,
                away_since: Some(now),
                space: FreeSpace::default(),
                full_at: None,
                reserve: 0,
                lease: None,
            });
            peer.name.clone_from(&view.name);
            peer.up = view.up;
            peer.room(view.space);
            peer.note(now);
        }
        for (id, peer) in &mut self.agents {
            if !views.iter().any(|v| v.id == *id) {
                peer.up = false;
                peer.note(now);
            }
        }
    }

    /// One agent.
    #[must_use]
    pub fn get(&self, id: AgentId) -> Option<&Peer> {
        self.agents.get(&id)
    }

    /// All agents.
    pub fn iter(&self) -> impl Iterator<Item = (AgentId, &Peer)> {
        self.agents.iter().map(|(&id, p)| (id, p))
    }

    /// The name of an agent for a message.
    #[must_use]
    pub fn name(&self, id: AgentId) -> String {
        self.agents.get(&id).map_or_else(|| format!("agent {id}"), |p| format!("{} ({id})", p.name))
    }

    /// Worth sending to: up, as far as anyone knows. Until the cluster has said who there is, all are; then one that it does
    /// not know is gone for good.
    #[must_use]
    pub fn usable(&self, id: AgentId) -> bool {
        self.agents.get(&id).map_or(!self.told, |p| p.up && !p.suspect)
    }

    /// May be given a new extent of this class, and has more than `spare` slots.
    #[must_use]
    pub fn eligible(&self, id: AgentId, class: Class, spare: u32) -> bool {
        let room = |p: &Peer| match class {
            // Nothing is known of its space before it has told.
            Class::Data => p.full_at.is_none() && (p.space.total == 0 || p.data_slots() > 0),
            Class::Reserve => p.full_at != Some(0),
        };
        self.agents.get(&id).is_some_and(|p| p.up && !p.suspect && room(p) && (spare == 0 || p.space.free > spare))
    }

    /// Has at least half as large a part of its room free as all agents together.
    #[must_use]
    pub fn is_roomy(&self, id: AgentId) -> bool {
        let all: FreeSpace = self.agents.values().filter(|p| p.up).map(|p| p.space).sum();
        let part = |a: u32, b: u32| u128::from(a) * u128::from(b);
        self.agents.get(&id).is_some_and(|p| 2 * part(p.space.free, all.total) >= part(p.space.total, all.free))
    }

    /// A request to it went unanswered. Its leases stand: it gave its word.
    pub fn suspect(&mut self, now: Instant, id: AgentId) {
        if let Some(peer) = self.agents.get_mut(&id) {
            peer.suspect = true;
            peer.note(now);
        }
    }

    /// It has answered, or a connection to it stands again.
    pub fn heard(&mut self, now: Instant, id: AgentId) {
        if let Some(peer) = self.agents.get_mut(&id)
            && peer.suspect
        {
            peer.suspect = false;
            peer.note(now);
        }
    }

    /// It told its space.
    pub fn space(&mut self, id: AgentId, space: FreeSpace) {
        if let Some(peer) = self.agents.get_mut(&id) {
            peer.room(space);
        }
    }

    /// It had no slot.
    pub fn full(&mut self, id: AgentId, space: FreeSpace) {
        if let Some(peer) = self.agents.get_mut(&id) {
            peer.space = space;
            peer.full_at = Some(space.free);
            peer.reserve = peer.reserve.max(space.free);
        }
    }

    /// It granted a lease in answer to a request sent at `sent`.
    pub fn leased(&mut self, id: AgentId, sent: Instant) {
        if let Some(peer) = self.agents.get_mut(&id) {
            let until = sent + (READ_LEASE - READ_LEASE_MARGIN);
            peer.lease = peer.lease.max(Some(until));
        }
    }

    /// Until when its lease stands.
    #[must_use]
    pub fn lease(&self, id: AgentId) -> Instant {
        self.agents.get(&id).and_then(|p| p.lease).unwrap_or_default()
    }
}

impl Peer {
    fn room(&mut self, space: FreeSpace) {
        self.space = space;
        if self.full_at.is_some_and(|free| space.free > free) {
            self.full_at = None;
        }
    }

    fn note(&mut self, now: Instant) {
        match (self.up && !self.suspect, self.away_since) {
            (true, _) => self.away_since = None,
            (false, None) => self.away_since = Some(now),
            (false, Some(_)) => {}
        }
    }
}
