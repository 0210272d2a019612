//! An owner's end: one connection per agent, kept up from its first use on.
//!
//! ```text
//!            send                 greeted          lost
//!  Idle ─────────────▶ Connecting ───────▶ Up ──────────────▶ Resting
//!                          │                ▲                  │ ▲
//!                          │                └───── greeted ────┘ │   tried again in the background,
//!                          └──── refused, or no answer ──────────┘   while an address is known
//! ```
//!
//! What is sent while the first connection is being made waits for it. What is sent to an agent that was lost, or could
//! not be reached, is unanswered at once: an owner has other members to turn to, and learns from [`PeerEvent::Up`] when
//! this one is back.

use super::line::Line;
use super::link::{Link, Source};
use super::local::{End, LocalDoor};
use super::memory::Aligned;
use rand::Rng as _;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::timeout;
use torus_core::ids::{AgentId, ClusterId, Incarnation, RpcId};
use torus_core::peer::{Request, Response, Unanswered};
use torus_core::tdp::{Hello, Inbox, Refusal, Role, Welcome, WireError};
use torus_store::AlignedBuf;

/// An agent on a live network has connected and greeted by then.
const CONNECT_TIME: Duration = Duration::from_secs(2);
/// First pause after a connection was lost or could not be made; doubled each time,
const REST_MIN: Duration = Duration::from_millis(20);
/// up to this.
const REST_MAX: Duration = Duration::from_secs(2);

/// What the peers have to tell.
#[derive(Debug)]
pub enum PeerEvent {
    /// The agent takes requests, in this run of its process.
    Up {
        /// Which agent.
        agent: AgentId,
        /// Which run of it.
        incarnation: Incarnation,
    },
    /// An answer, or the news that there will be none on this connection.
    Answer {
        /// Who answers.
        agent: AgentId,
        /// Which request.
        rpc: RpcId,
        /// After [`Response::Received`] another follows, after anything else none.
        result: Result<Response, Unanswered>,
    },
    /// The agent takes no requests until [`PeerEvent::Up`]. What was outstanding has been told before.
    Down {
        /// Which agent.
        agent: AgentId,
        /// Why, for people.
        why: String,
    },
}

/// Connections to agents, on one thread's `LocalSet`. They end when this is dropped.
pub struct Peers {
    shared: Rc<Shared>,
}

struct Shared {
    cluster: ClusterId,
    role: Role,
    name: String,
    memory: Aligned,
    door: Option<LocalDoor>,
    peers: RefCell<BTreeMap<AgentId, Rc<Peer>>>,
    events: RefCell<Vec<PeerEvent>>,
    arrival: Notify,
    /// Peers with queued requests.
    dirty: RefCell<Vec<Rc<Peer>>>,
}

struct Peer {
    agent: AgentId,
    address: RefCell<Option<String>>,
    state: RefCell<State>,
    /// Requests without a final answer, in the order of their numbers unless their sender counts otherwise.
    outstanding: RefCell<VecDeque<RpcId>>,
    /// Wakes the peer's task: wanted, or another address.
    changed: Notify,
    dirty: Cell<bool>,
    task: RefCell<Option<AbortHandle>>,
}

enum State {
    Idle,
    /// Holds what is to be sent once connected.
    Connecting(Vec<(RpcId, Request)>),
    Up(Rc<Line<Request, Response>>),
    /// Down; tried again and again.
    Resting,
}

/// A connection after its greeting.
struct Connected {
    line: Rc<Line<Request, Response>>,
    /// Where answers come from, if not by the line itself.
    source: Option<(Source, Inbox<Response, AlignedBuf>)>,
    welcome: Welcome,
}

/// Why there is no connection, or none any more.
#[derive(Debug, thiserror::Error)]
enum Loss {
    #[error("no address is known for it")]
    NoAddress,
    #[error("no connection to {address}: {source}")]
    Connect { address: String, source: io::Error },
    #[error("no answer from {0} within {n} s", n = CONNECT_TIME.as_secs())]
    Silent(String),
    #[error("it refused: {0}")]
    Refused(Refusal),
    #[error("who answers is not who was meant: {0}")]
    Stranger(Refusal),
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
    #[error("connection ended: {0}")]
    Wire(#[from] WireError),
    #[error("it closed the connection")]
    Closed,
    #[error("it answered request {0}, which was not outstanding")]
    Unasked(RpcId),
}

impl Peers {
    /// No connection yet. `name` is what agents call this side in their logs; the agent behind `door` is reached by it.
    #[must_use]
    pub fn new(cluster: ClusterId, role: Role, name: String, memory: Aligned, door: Option<LocalDoor>) -> Peers {
        let shared = Shared {
            cluster,
            role,
            name,
            memory,
            door,
            peers: RefCell::default(),
            events: RefCell::default(),
            arrival: Notify::new(),
            dirty: RefCell::default(),
        };
        Peers { shared: Rc::new(shared) }
    }

    /// Where `agent` is now, or that nobody knows. A connection that works is left alone.
    ///
    /// # Panics
    /// Outside a `LocalSet`.
    pub fn set_address(&self, agent: AgentId, address: Option<String>) {
        let peer = self.shared.peer(agent);
        if *peer.address.borrow() != address {
            *peer.address.borrow_mut() = address;
            peer.changed.notify_one();
        }
    }

    /// Queues a request; [`Peers::flush`] sends it. Its answer comes as a [`PeerEvent::Answer`], always.
    ///
    /// # Panics
    /// Outside a `LocalSet`, and when `rpc` is outstanding at this agent already.
    pub fn send(&self, agent: AgentId, rpc: RpcId, request: Request) {
        let peer = self.shared.peer(agent);
        let mut state = peer.state.borrow_mut();
        if matches!(*state, State::Idle) && (peer.address.borrow().is_some() || self.shared.inside(agent).is_some()) {
            *state = State::Connecting(Vec::new());
            peer.changed.notify_one();
        }
        match &mut *state {
            State::Up(line) => line.push(rpc, request),
            State::Connecting(waiting) => waiting.push((rpc, request)),
            State::Idle | State::Resting => {
                return self.shared.tell(PeerEvent::Answer { agent, rpc, result: Err(Unanswered) });
            }
        }
        drop(state);
        peer.expect(rpc);
        if !peer.dirty.replace(true) {
            self.shared.dirty.borrow_mut().push(peer);
        }
    }

    /// Sends what is queued: one write per agent.
    pub fn flush(&self) {
        for peer in self.shared.dirty.borrow_mut().drain(..) {
            peer.dirty.set(false);
            if let State::Up(line) = &*peer.state.borrow()
                && line.flush().is_err()
            {
                // The peer's task finds the same error by reading, and tells.
                line.changed().notify_one();
            }
        }
    }

    /// Waits until there is an event. Cancel safe.
    pub async fn arrival(&self) {
        self.shared.arrival.notified().await;
    }

    /// Moves all events to the end of `into`, in order.
    pub fn take(&self, into: &mut Vec<PeerEvent>) {
        into.append(&mut self.shared.events.borrow_mut());
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        for peer in self.shared.peers.borrow().values() {
            if let Some(task) = peer.task.borrow_mut().take() {
                task.abort();
            }
        }
    }
}

impl Shared {
    fn tell(&self, event: PeerEvent) {
        self.events.borrow_mut().push(event);
        self.arrival.notify_one();
    }

    fn peer(self: &Rc<Self>, agent: AgentId) -> Rc<Peer> {
        let mut peers = self.peers.borrow_mut();
        let peer = peers.entry(agent).or_insert_with(|| {
            let peer = Rc::new(Peer {
                agent,
                address: RefCell::default(),
                state: RefCell::new(State::Idle),
                outstanding: RefCell::default(),
                changed: Notify::new(),
                dirty: Cell::new(false),
                task: RefCell::default(),
            });
            let task = spawn_local(Rc::clone(self).keep(Rc::clone(&peer)));
            *peer.task.borrow_mut() = Some(task.abort_handle());
            peer
        });
        Rc::clone(peer)
    }

    /// Keeps one peer connected, from when it is first wanted.
    async fn keep(self: Rc<Self>, peer: Rc<Peer>) {
        let mut rest = REST_MIN;
        loop {
            while matches!(*peer.state.borrow(), State::Idle) {
                peer.changed.notified().await;
            }
            let loss = match self.connect(&peer).await {
                Err(loss) => loss,
                Ok(connected) => {
                    rest = REST_MIN;
                    self.up(&peer, &connected);
                    let Err(loss) = self.serve(&peer, connected).await;
                    loss
                }
            };
            self.down(&peer, &loss);
            if matches!(loss, Loss::NoAddress) {
                rest = REST_MIN;
                peer.changed.notified().await;
                continue;
            }
            // Not all owners at once on an agent that has just come back.
            let pause = rest.mul_f64(rand::rng().random_range(0.5..1.0));
            rest = (rest * 2).min(REST_MAX);
            if timeout(pause, peer.changed.notified()).await.is_ok() {
                rest = REST_MIN;
            }
        }
    }

    /// The door to `agent`, if it is in this process.
    fn inside(&self, agent: AgentId) -> Option<&LocalDoor> {
        self.door.as_ref().filter(|door| door.agent() == agent && door.is_open())
    }

    async fn connect(&self, peer: &Peer) -> Result<Connected, Loss> {
        if let Some(door) = self.inside(peer.agent) {
            let attempt = timeout(CONNECT_TIME, self.enter(door)).await;
            return attempt.map_err(|_| Loss::Silent("the agent in this process".into()))?;
        }
        let Some(address) = peer.address.borrow().clone() else { return Err(Loss::NoAddress) };
        let attempt = timeout(CONNECT_TIME, self.greet(peer.agent, &address)).await;
        attempt.map_err(|_| Loss::Silent(address))?
    }

    async fn enter(&self, door: &LocalDoor) -> Result<Connected, Loss> {
        let hello = Hello::new(self.cluster, self.role, door.agent(), self.name.clone());
        let (answer, end) = door.enter(hello.clone()).await.ok_or(Loss::Closed)?;
        let welcome = answer.map_err(Loss::Refused)?;
        hello.accept(&welcome).map_err(Loss::Stranger)?;
        Ok(Connected { line: Rc::new(Line::Local(end)), source: None, welcome })
    }

    async fn greet(&self, agent: AgentId, address: &str) -> Result<Connected, Loss> {
        let failed = |source| Loss::Connect { address: address.into(), source };
        let (link, mut source) = TcpStream::connect(address).await.and_then(Link::new).map_err(failed)?;
        let hello = Hello::new(self.cluster, self.role, agent, self.name.clone());
        link.queue(|out| out.hello(&hello));
        link.flush()?;
        let mut inbox = Inbox::default();
        loop {
            if source.read(&mut inbox).await? == 0 {
                return Err(Loss::Closed);
            }
            match inbox.welcome()? {
                None => {}
                Some(Err(refusal)) => return Err(Loss::Refused(refusal)),
                Some(Ok(welcome)) => match hello.accept(&welcome) {
                    Ok(()) => {
                        let line = Rc::new(Line::Socket(link));
                        return Ok(Connected { line, source: Some((source, inbox)), welcome });
                    }
                    Err(refusal) => {
                        link.queue(|out| out.refusal(&refusal));
                        let _ = link.flush();
                        return Err(Loss::Stranger(refusal));
                    }
                },
            }
        }
    }

    fn up(&self, peer: &Peer, Connected { line, welcome, .. }: &Connected) {
        let (agent, incarnation) = (peer.agent, welcome.identity.incarnation);
        tracing::debug!(%agent, %incarnation, peer = line.peer(), "connected to agent");
        self.tell(PeerEvent::Up { agent, incarnation });
        let before = peer.state.replace(State::Up(Rc::clone(line)));
        if let State::Connecting(waiting) = before {
            waiting.into_iter().for_each(|(rpc, request)| line.push(rpc, request));
        }
        if line.flush().is_err() {
            line.changed().notify_one();
        }
    }

    async fn serve(&self, peer: &Peer, connected: Connected) -> Result<Infallible, Loss> {
        match (&*connected.line, connected.source) {
            (Line::Socket(link), Some((source, inbox))) => self.serve_socket(peer, link, source, inbox).await,
            (Line::Local(end), _) => self.serve_local(peer, end).await,
            (Line::Socket(_), None) => unreachable!("a socket is read from"),
        }
    }

    /// Takes answers and writes what the socket did not take at once, until the connection ends.
    async fn serve_socket(
        &self,
        peer: &Peer,
        link: &Link,
        mut source: Source,
        mut inbox: Inbox<Response, AlignedBuf>,
    ) -> Result<Infallible, Loss> {
        let mut memory = self.memory.clone();
        loop {
            while let Some((rpc, response)) = inbox.next(&mut memory)? {
                self.answer(peer, rpc, response)?;
            }
            tokio::select! {
                biased;
                () = link.changed.notified() => {}
                written = link.drain(), if link.blocked() => written?,
                read = source.read(&mut inbox) => if read? == 0 { return Err(Loss::Closed) },
            }
        }
    }

    /// Takes answers until the connection ends.
    async fn serve_local(&self, peer: &Peer, end: &End<Request, Response>) -> Result<Infallible, Loss> {
        let mut answers = Vec::new();
        loop {
            end.arrival().await;
            let open = end.take(&mut answers);
            for (rpc, response) in answers.drain(..) {
                self.answer(peer, rpc, response)?;
            }
            if !open {
                return Err(Loss::Closed);
            }
        }
    }

    fn answer(&self, peer: &Peer, rpc: RpcId, response: Response) -> Result<(), Loss> {
        if !peer.answered(rpc, &response) {
            return Err(Loss::Unasked(rpc));
        }
        self.tell(PeerEvent::Answer { agent: peer.agent, rpc, result: Ok(response) });
        Ok(())
    }

    /// Tells of everything outstanding that it is unanswered, then, if that is news, that the agent is down.
    fn down(&self, peer: &Peer, loss: &Loss) {
        let agent = peer.agent;
        let before = peer.state.replace(State::Resting);
        for rpc in peer.outstanding.borrow_mut().drain(..) {
            self.tell(PeerEvent::Answer { agent, rpc, result: Err(Unanswered) });
        }
        if !matches!(before, State::Resting) {
            tracing::debug!(%agent, "not connected: {loss}");
            self.tell(PeerEvent::Down { agent, why: loss.to_string() });
        }
    }
}

impl Peer {
    fn expect(&self, rpc: RpcId) {
        let mut outstanding = self.outstanding.borrow_mut();
        let at = outstanding.partition_point(|&other| other < rpc);
        assert_ne!(outstanding.get(at), Some(&rpc), "{rpc:?} is outstanding already");
        outstanding.insert(at, rpc);
    }

    /// Whether `rpc` was outstanding; it no longer is after a final answer.
    fn answered(&self, rpc: RpcId, response: &Response) -> bool {
        let mut outstanding = self.outstanding.borrow_mut();
        let Ok(at) = outstanding.binary_search(&rpc) else { return false };
        if !matches!(response, Response::Received { .. }) {
            outstanding.remove(at);
        }
        true
    }
}
