//! The agent's end: connections of owners, their requests in one queue, answers back to where they belong.

mod converse;

use super::line::Line;
use super::local::Doorway;
use super::memory::Aligned;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::sleep;
use torus_core::ids::{BLOCK_SIZE, RpcId};
use torus_core::limits::{FRAMES_HEADERS_MAX, TDP_INFLIGHT_BYTES_MAX, TDP_SERVER_BYTES_MAX};
use torus_core::member::ReqId;
use torus_core::peer::{Request, Response};
use torus_core::tdp::Identity;

/// Pause after the system refused a new connection (no file descriptors left, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a request without payload is counted as.
const REQUEST_BYTES: usize = 512;

/// What happened on the sockets, for metrics.
#[derive(Debug, Default)]
pub struct ServerStats {
    /// Connections now.
    pub connections: AtomicU64,
    /// Connections refused or ended because of what they said.
    pub refused: AtomicU64,
    /// Requests received.
    pub requests: AtomicU64,
    /// Bytes of open requests, and of the answers they will get.
    pub held_bytes: AtomicU64,
}

/// Serves TDP on one thread's `LocalSet`. Cloning shares it.
#[derive(Clone)]
pub struct Server {
    shared: Rc<Shared>,
}

struct Shared {
    identity: Identity,
    memory: Aligned,
    arrived: RefCell<Vec<(ReqId, Request)>>,
    arrival: Notify,
    open: RefCell<Slab<Open>>,
    /// Connections with queued answers.
    dirty: RefCell<Vec<Rc<Connection>>>,
    /// Every connection, to say goodbye to.
    connections: RefCell<Slab<Rc<Connection>>>,
    /// Sum of all connections' `held`.
    held: Cell<usize>,
    /// Something was held back because of `held`, and may now go on.
    held_back: Cell<bool>,
    stopping: Cell<bool>,
    /// A connection has ended while stopping.
    ended: Notify,
    acceptors: RefCell<Vec<AbortHandle>>,
    stats: Arc<ServerStats>,
}

/// A request that has no answer yet.
struct Open {
    connection: Rc<Connection>,
    rpc: RpcId,
    cost: usize,
}

struct Connection {
    line: Line<Response, Request>,
    /// What its open requests may hold: their payload and that of their answers.
    held: Cell<usize>,
    dirty: Cell<bool>,
    gone: Cell<bool>,
}

impl Server {
    /// A server that says it is `identity` and receives payload into `memory`. Call [`Server::listen`] next.
    #[must_use]
    pub fn new(identity: Identity, memory: Aligned) -> Server {
        let shared = Shared {
            identity,
            memory,
            arrived: RefCell::default(),
            arrival: Notify::new(),
            open: RefCell::default(),
            dirty: RefCell::default(),
            connections: RefCell::default(),
            held: Cell::new(0),
            held_back: Cell::new(false),
            stopping: Cell::new(false),
            ended: Notify::new(),
            acceptors: RefCell::default(),
            stats: Arc::default(),
        };
        Server { shared: Rc::new(shared) }
    }

    /// Its counters.
    #[must_use]
    pub fn stats(&self) -> Arc<ServerStats> {
        Arc::clone(&self.shared.stats)
    }

    /// Takes connections from `listener` until [`Server::stop`].
    pub fn listen(&self, listener: TcpListener) {
        let server = self.clone();
        let task = spawn_local(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => server.admit(stream),
                    Err(e) => {
                        tracing::warn!("cannot accept a TDP connection: {e}");
                        sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
        self.shared.acceptors.borrow_mut().push(task.abort_handle());
    }

    /// Takes in what comes by the door that `doorway` belongs to, until [`Server::stop`].
    pub fn open(&self, Doorway { mut visits, mut tasks }: Doorway) {
        let server = self.clone();
        let task = spawn_local(async move {
            loop {
                tokio::select! {
                    Some(visit) = visits.recv() => server.admit_local(visit),
                    Some(begin) = tasks.recv() => begin(),
                    else => return,
                }
            }
        });
        self.shared.acceptors.borrow_mut().push(task.abort_handle());
    }

    /// Waits until requests have arrived. Cancel safe.
    pub async fn arrival(&self) {
        self.shared.arrival.notified().await;
    }

    /// Moves all requests that have arrived to the end of `into`.
    pub fn take(&self, into: &mut Vec<(ReqId, Request)>) {
        into.append(&mut self.shared.arrived.borrow_mut());
    }

    /// Queues an answer. Any but [`Response::Received`] ends the request.
    ///
    /// # Panics
    /// When `req` is not open.
    pub fn reply(&self, req: ReqId, response: Response) {
        let index = req.0 as usize;
        let mut open = self.shared.open.borrow_mut();
        let entry = open.get(index).expect("a request is answered once, while it is open");
        let connection = Rc::clone(&entry.connection);
        let rpc = entry.rpc;
        if !matches!(response, Response::Received { .. }) {
            let cost = open.remove(index).cost;
            self.shared.release(&connection, cost);
        }
        if connection.gone.get() {
            return;
        }
        connection.line.push(rpc, response);
        if !connection.dirty.replace(true) {
            self.shared.dirty.borrow_mut().push(connection);
        }
    }

    /// Sends what is queued: one write per connection.
    pub fn flush(&self) {
        for connection in self.shared.dirty.borrow_mut().drain(..) {
            connection.dirty.set(false);
            if !connection.gone.get() && connection.line.flush().is_err() {
                // Its task finds the same error by reading, and cleans up.
                connection.gone.set(true);
                connection.line.changed().notify_one();
            }
        }
        if self.shared.held_back.replace(false) {
            self.shared.connections.borrow().iter().for_each(|(_, c)| c.line.changed().notify_one());
        }
        self.shared.stats.held_bytes.store(self.shared.held.get() as u64, Relaxed);
    }

    /// Takes no more connections and no more requests. What is open is still answered.
    pub fn stop(&self) {
        self.shared.stopping.set(true);
        self.shared.acceptors.borrow_mut().drain(..).for_each(|task| task.abort());
        self.shared.connections.borrow().iter().for_each(|(_, c)| c.line.changed().notify_one());
    }

    /// Ends everything now, answers or not: what a crash looks like to owners.
    pub fn kill(&self) {
        self.stop();
        for (_, connection) in self.shared.connections.borrow().iter() {
            connection.gone.set(true);
            connection.line.shutdown();
        }
    }

    /// Whether all requests are answered and, after [`Server::stop`], all answers sent and all connections closed.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.shared.open.borrow().is_empty()
            && self.shared.arrived.borrow().is_empty()
            && (self.shared.connections.borrow().is_empty() || !self.shared.stopping.get())
    }

    /// Waits until a connection has ended after [`Server::stop`]. Cancel safe.
    pub async fn ended(&self) {
        self.shared.ended.notified().await;
    }

    /// Bytes held for all connections: open requests and queued answers.
    #[cfg(test)]
    pub(super) fn queued_bytes(&self) -> usize {
        self.shared.held.get() + self.shared.connections.borrow().iter().map(|(_, c)| c.line.queued()).sum::<usize>()
    }
}

impl Shared {
    /// Whether there is room for one more request. Room for a large one is not asked for: a connection may exceed its
    /// share by one request.
    fn may_read(&self, connection: &Connection) -> bool {
        let room = connection.held.get() + connection.line.queued() < TDP_INFLIGHT_BYTES_MAX
            && self.held.get() < TDP_SERVER_BYTES_MAX;
        if !room {
            self.held_back.set(true);
        }
        room && !self.stopping.get()
    }

    fn arrive(&self, connection: &Rc<Connection>, rpc: RpcId, request: Request) {
        let cost = cost(&request);
        connection.held.set(connection.held.get() + cost);
        self.held.set(self.held.get() + cost);
        self.stats.requests.fetch_add(1, Relaxed);
        let open = Open { connection: Rc::clone(connection), rpc, cost };
        let req = ReqId(self.open.borrow_mut().insert(open) as u64);
        self.arrived.borrow_mut().push((req, request));
        self.arrival.notify_one();
    }

    fn release(&self, connection: &Connection, cost: usize) {
        connection.held.set(connection.held.get() - cost);
        self.held.set(self.held.get() - cost);
        if self.stopping.get() && connection.held.get() == 0 {
            connection.line.changed().notify_one();
        }
    }
}

/// Memory that a request and its answer take.
fn cost(request: &Request) -> usize {
    REQUEST_BYTES
        + match request {
            Request::Append { frame, .. } => frame.blocks() as usize * BLOCK_SIZE,
            Request::Fill { bytes, .. } => bytes.iter().map(|b| b.len()).sum(),
            Request::Read { blocks, .. } => *blocks as usize * BLOCK_SIZE,
            Request::Frames { .. } => FRAMES_HEADERS_MAX * BLOCK_SIZE,
            _ => 0,
        }
}
