//! Until when this owner may serve reads.
//!
//! A newer owner fences at least one sound member of *every* open extent, and waits out the lease which that member
//! granted. So this owner may read as long as *all* members of *one* of its open extents have granted it a lease that
//! stands: whichever of them the newer owner reaches makes it wait. The lease is checked when a read looks up the map, not
//! when its bytes arrive: what was current then was current during the read. Where there is no extent at all, the
//! metadata store vouches (`witness`).

use super::calls::Call as Sent;
use super::open::{OpenExtent, Phase};
use super::{Call, Effects, Log};
use crate::format::Stream;
use crate::ids::AgentId;
use crate::limits::{PEER_WAIT, PROBE_PAUSE, READ_LEASE};
use crate::mutation::{self, Mutation};
use crate::peer::{Rejection, Request, Response, Unanswered};
use crate::time::Instant;

impl Log {
    fn vouched(&self, x: &OpenExtent) -> Instant {
        x.members.iter().map(|m| self.peers.lease(m.agent)).min().unwrap_or_default()
    }

    /// A newer owner will find it in its listing and fence its members: it is registered, and not sealed yet. An extent
    /// that was given up while its registration was under way is not, whatever its phase.
    fn vouches(&self, x: &OpenExtent) -> bool {
        x.stream == Stream::Log && matches!(x.phase, Phase::Ready | Phase::Closing) && self.table.find(x.seq).is_some()
    }

    /// Until when reads may be served; in the past: not now.
    #[must_use]
    pub fn lease_until(&self) -> Instant {
        let vouched = self.writer.open.values().filter(|x| self.vouches(x)).map(|x| self.vouched(x)).max();
        vouched.unwrap_or_default().max(self.witnessed())
    }

    /// Whether reads may be served.
    #[must_use]
    pub fn may_read(&self, now: Instant) -> bool {
        mutation::active(Mutation::LeaseIgnored) || (self.fenced.is_none() && now < self.lease_until())
    }

    /// Reads are wanted: sees to it that the lease is renewed before it runs out.
    pub fn want_lease(&mut self, now: Instant, out: &mut Effects) {
        if self.fenced.is_some() || self.lease_until() > now + READ_LEASE / 2 {
            return;
        }
        self.unvouched.0 |= !self.may_read(now);
        // One whose members all seem to be there; failing that any, as asking is what shows that a member is gone.
        let usable = |x: &OpenExtent| x.members.iter().all(|m| self.peers.usable(m.agent));
        let ready = self.writer.open.values().filter(|x| x.stream == Stream::Log && x.phase == Phase::Ready);
        let Some(x) = ready.max_by_key(|x| (usable(x), self.vouched(x))) else {
            return self.want_witness(now, out);
        };
        let agents: Vec<AgentId> = x.members.iter().map(|m| m.agent).collect();
        for agent in agents {
            if self.peers.lease(agent) <= now + READ_LEASE / 2 && self.leasing.insert(agent) {
                let request = Request::Lease { volume: self.config.volume, epoch: self.writer.epoch() };
                self.calls.send(now, agent, request, PEER_WAIT, Call::Lease, out);
            }
        }
    }

    /// Asks agents that owe an answer whether they are there after all: one that was only paused may say so by this.
    pub(super) fn probe(&mut self, now: Instant, out: &mut Effects) {
        if now < self.probe_after {
            return;
        }
        let silent: Vec<AgentId> = self.peers.iter().filter(|(_, p)| p.up && p.suspect).map(|(id, _)| id).collect();
        if silent.is_empty() {
            return;
        }
        self.probe_after = now + PROBE_PAUSE;
        for agent in silent {
            if self.leasing.insert(agent) {
                let request = Request::Lease { volume: self.config.volume, epoch: self.writer.epoch() };
                self.calls.send(now, agent, request, PEER_WAIT, Call::Lease, out);
            }
        }
    }

    pub(super) fn on_lease(
        &mut self,
        now: Instant,
        call: &Sent<Call>,
        result: Result<Response, Unanswered>,
        out: &mut Effects,
    ) {
        self.leasing.remove(&call.to);
        match result {
            Ok(Response::Leased) => {
                self.peers.heard(now, call.to);
                self.peers.leased(call.to, call.sent);
            }
            Ok(Response::Rejected(Rejection::Fenced { epoch })) => self.fence(epoch, out),
            Ok(_) => {}
            Err(Unanswered) => self.lose_agent(now, call.to, out),
        }
    }
}
