//! Messages on their way.

use super::{Event, VOLUME, World};
use crate::check::Violation;
use crate::net::{Conn, Way};
use crate::owner::{Input, Run};
use torus_core::ids::{AgentId, RpcId};
use torus_core::meta::docs::{self, ExtentDoc};
use torus_core::meta::{MetaError, MetaOp, MetaReply, Txn, Write, keys};
use torus_core::peer::{Rejection, Request, Response, Unanswered};
use torus_core::time::{Duration, Instant};

impl World {
    /// How long one message takes.
    fn trip(&mut self) -> Duration {
        let max = self.options.delay_max;
        let usual = self.some(max);
        if self.rng.one_in(200) { usual + self.some(max * 20) } else { usual + Duration::from_micros(20) }
    }

    pub(super) fn send_request(&mut self, run: Run, agent: AgentId, rpc: RpcId, request: Request) {
        let trip = self.trip();
        let breaking = {
            let link = self.net.link(run, agent);
            link.outstanding.push(rpc);
            link.breaking
        };
        if breaking {
            return;
        }
        let Some(life) = self.agents.get(&agent).filter(|a| a.is_running()).map(|a| a.life) else {
            let notice = if self.rng.one_in(6) { self.some_ms(300, 3_000) } else { self.some_ms(1, 40) };
            return self.break_link(run, agent, notice);
        };
        let mut at = self.now + trip;
        if let Some(until) = self.net.dead_until(run, agent, Way::There, self.now) {
            at = until + trip;
            self.break_link_after_timeout(run, agent);
        }
        let link = self.net.link(run, agent);
        let (at, conn) = (link.arrive(Way::There, at), link.conn);
        if self.options.duplicates && self.rng.one_in(60) {
            let later = self.some_ms(0, 1_500);
            let request = Box::new(request.clone());
            self.push_at(at + later, Event::Request { run, agent, life, conn, rpc: None, request });
        }
        self.push_at(at, Event::Request { run, agent, life, conn, rpc: Some(rpc), request: Box::new(request) });
    }

    /// The connection is about to be noticed as gone; what is on its way may still arrive, answers do not.
    pub(super) fn break_link(&mut self, run: Run, agent: AgentId, notice: Duration) {
        let link = self.net.link(run, agent);
        if !link.breaking {
            link.breaking = true;
            let conn = link.conn;
            self.push(notice, Event::Broken { run, agent, conn });
        }
    }

    /// A dead link is noticed by a timeout, if it is still dead by then.
    fn break_link_after_timeout(&mut self, run: Run, agent: AgentId) {
        let timeout = self.some_ms(300, 3_000);
        let conn = self.net.link(run, agent).conn;
        self.push(timeout, Event::Broken { run, agent, conn });
    }

    pub(super) fn request_arrives(
        &mut self,
        run: Run,
        agent: AgentId,
        life: u64,
        conn: Conn,
        rpc: Option<RpcId>,
        request: Request,
    ) -> Result<(), Violation> {
        let alive = self.agents.get(&agent).is_some_and(|a| a.is_running() && a.life == life);
        if !alive {
            return Ok(());
        }
        if !self.net.is_current(run, agent, conn) && self.rng.one_in(2) {
            return Ok(());
        }
        self.trace.note(self.now, &[1, run.0, agent.0, rpc.map_or(0, |r| r.0)], || {
            format!("{run:?} -> {agent:?} {rpc:?}: {}", brief(&request))
        });
        self.step_agent_request(run, agent, conn, rpc, request)
    }

    pub(super) fn send_response(&mut self, run: Run, agent: AgentId, conn: Conn, rpc: RpcId, response: Response) {
        let trip = self.trip();
        if !self.net.is_current(run, agent, conn) {
            return;
        }
        let mut at = self.now + trip;
        if let Some(until) = self.net.dead_until(run, agent, Way::Back, self.now) {
            at = until + trip;
            self.break_link_after_timeout(run, agent);
        }
        let at = self.net.link(run, agent).arrive(Way::Back, at);
        self.push_at(at, Event::Response { run, agent, conn, rpc, response: Box::new(response) });
    }

    pub(super) fn response_arrives(
        &mut self,
        run: Run,
        agent: AgentId,
        conn: Conn,
        rpc: RpcId,
        response: Response,
    ) -> Result<(), Violation> {
        if !self.net.is_current(run, agent, conn) || self.net.link(run, agent).breaking {
            return Ok(());
        }
        if !matches!(response, Response::Received { .. }) {
            self.net.link(run, agent).outstanding.retain(|other| *other != rpc);
        }
        self.trace.note(self.now, &[2, run.0, agent.0, rpc.0], || {
            format!("{run:?} <- {agent:?} {rpc:?}: {}", brief_response(&response))
        });
        self.step_owner(run, Input::Answer { rpc, result: Ok(response) })
    }

    pub(super) fn broken(&mut self, run: Run, agent: AgentId, conn: Conn) -> Result<(), Violation> {
        if !self.net.is_current(run, agent, conn) {
            return Ok(());
        }
        let outstanding = self.net.disconnect(run, agent);
        self.trace.note(self.now, &[3, run.0, agent.0, outstanding.len() as u64], || {
            format!("{run:?} loses its connection to {agent:?}, {} unanswered", outstanding.len())
        });
        for rpc in outstanding {
            self.step_owner(run, Input::Answer { rpc, result: Err(Unanswered) })?;
        }
        self.reconnect(run, agent);
        Ok(())
    }

    /// Tries to connect again until it works.
    fn reconnect(&mut self, run: Run, agent: AgentId) {
        let pause = self.some_ms(5, 300);
        self.push(pause, Event::PeerUp { run, agent });
    }

    pub(super) fn peer_up(&mut self, run: Run, agent: AgentId) -> Result<(), Violation> {
        if !self.owners.contains_key(&run) || !self.agents.contains_key(&agent) {
            return Ok(());
        }
        let dead = [Way::There, Way::Back].iter().any(|way| self.net.dead_until(run, agent, *way, self.now).is_some());
        if dead || !self.agents[&agent].is_serving() {
            self.reconnect(run, agent);
            return Ok(());
        }
        self.trace.note(self.now, &[4, run.0, agent.0], || format!("{run:?} is connected to {agent:?} again"));
        self.step_owner(run, Input::PeerUp(agent))
    }

    pub(super) fn send_meta(&mut self, run: Run, id: u64, op: MetaOp) {
        let there = self.trip() + Duration::from_micros(200);
        let down = self.meta_down_until > self.now;
        let ambiguous = self.options.meta_faults && self.is_faulty() && self.rng.one_in(25);
        if !down && !ambiguous {
            return self.push(there, Event::MetaArrives { run, id, op, answered: true });
        }
        let timeout = self.some_ms(200, 3_000);
        let error = if self.rng.one_in(4) {
            MetaError::Refused("the simulated store has no space".into())
        } else {
            MetaError::Unknown("the simulated store is silent".into())
        };
        if matches!(error, MetaError::Unknown(_)) && self.rng.one_in(2) {
            // Carried out all the same, before or after the sender has given up.
            let late = if self.rng.one_in(4) { timeout + self.some_ms(0, 500) } else { there };
            self.push(late, Event::MetaArrives { run, id, op, answered: false });
        }
        self.push(timeout, Event::MetaAnswer { run, id, result: Err(error) });
    }

    pub(super) fn meta_arrives(&mut self, run: Run, id: u64, op: &MetaOp, answered: bool) -> Result<(), Violation> {
        let reply = self.meta.execute(op);
        self.trace.note(self.now, &[5, run.0, id, u64::from(answered)], || {
            format!("{run:?} metadata {id}: {} -> {}", brief_meta(op), brief_reply(&reply))
        });
        if let (MetaOp::Txn(txn), MetaReply::Committed(_)) = (op, &reply) {
            self.extents.committed(txn, &self.frames, &self.history)?;
            if self.options.usurpers && answered && registers(txn) {
                self.usurp(run);
            }
        }
        if answered {
            let back = self.trip() + Duration::from_micros(200);
            self.push(back, Event::MetaAnswer { run, id, result: Ok(reply) });
        }
        Ok(())
    }

    pub(super) fn meta_answers(
        &mut self,
        run: Run,
        id: u64,
        result: Result<MetaReply, MetaError>,
    ) -> Result<(), Violation> {
        self.trace.note(self.now, &[6, run.0, id, u64::from(result.is_ok())], || {
            format!("{run:?} metadata {id} answered: {}", if result.is_ok() { "yes" } else { "no" })
        });
        self.step_owner(run, Input::Meta { id, result })
    }

    /// When the metadata store will be back.
    pub(super) fn metadata_outage(&mut self, length: Duration) {
        self.meta_down_until = self.now + length;
    }

    pub(super) fn end_metadata_outage(&mut self) {
        self.meta_down_until = Instant(0);
    }
}

/// Whether extents are registered by it.
fn registers(txn: &Txn) -> bool {
    let prefix = keys::extents(VOLUME);
    txn.then.iter().any(|write| match write {
        Write::Put { key, value, .. } if key.starts_with(&prefix) => {
            docs::decode::<ExtentDoc>(key, value).is_ok_and(|doc| doc.sealed.is_none())
        }
        _ => false,
    })
}

/// A request in a line.
fn brief(request: &Request) -> String {
    match request {
        Request::Append { extent, epoch, offset, frame, early } => {
            format!(
                "append {extent} e{epoch} at {offset}, {} blocks{}",
                frame.blocks(),
                if *early { ", early" } else { "" }
            )
        }
        Request::Fill { extent, epoch, offset, bytes, .. } => {
            format!("fill {extent} e{epoch} at {offset}, {} bytes", bytes.iter().map(bytes::Bytes::len).sum::<usize>())
        }
        other => format!("{other:?}"),
    }
}

fn brief_response(response: &Response) -> String {
    match response {
        Response::Data { bytes, .. } => format!("{} bytes", bytes.len()),
        Response::Frames { headers, end } => format!("{} headers, end {end}", headers.len()),
        Response::Rejected(Rejection::Fenced { epoch }) => format!("fenced by {epoch}"),
        other => format!("{other:?}"),
    }
}

fn brief_meta(op: &MetaOp) -> String {
    match op {
        MetaOp::Txn(txn) => {
            let writes = txn.then.iter().map(|write| match write {
                torus_core::meta::Write::Put { key, value, .. } => {
                    format!("put {key} {}", String::from_utf8_lossy(&value[..value.len().min(200)]))
                }
                torus_core::meta::Write::Delete(key) => format!("delete {key}"),
            });
            format!("txn if {} conditions: {}", txn.when.len(), writes.collect::<Vec<_>>().join("; "))
        }
        other => format!("{other:?}"),
    }
}

fn brief_reply(reply: &MetaReply) -> String {
    match reply {
        MetaReply::Listed(entries, _) => format!("{} keys", entries.len()),
        MetaReply::Got(Some(entry)) => format!("{} bytes", entry.value.len()),
        other => format!("{other:?}"),
    }
}
