//! A connection without a socket, for an owner in the process of the agent it speaks to: messages are handed over as they
//! are, and no byte of a payload is copied.
//!
//! An owner may be on a thread of its own, or on the agent's ([`LocalDoor::inside`]). There no request has to wake anybody,
//! which for a lone one is half of its cost.
//!
//! 1. It means what a TCP connection means. Greetings are judged alike, and when either end goes, the other learns of it
//!    and everything outstanding is unanswered.
//! 2. Messages arrive in the order in which they were pushed; all that were pushed before a flush arrive together.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::spawn_local;
use torus_core::ids::{AgentId, RpcId};
use torus_core::peer::{Request, Response};
use torus_core::tdp::{Hello, Refusal, Welcome};

/// The way into an agent of this process, from any thread. Cloning shares it.
#[derive(Clone, Debug)]
pub struct LocalDoor {
    agent: AgentId,
    visits: mpsc::UnboundedSender<Visit>,
    tasks: mpsc::UnboundedSender<Task>,
}

/// What is to be begun on the agent's thread.
pub(super) type Task = Box<dyn FnOnce() + Send>;

/// Where the agent takes in what comes by a [`LocalDoor`].
#[derive(Debug)]
pub struct Doorway {
    pub(super) visits: mpsc::UnboundedReceiver<Visit>,
    pub(super) tasks: mpsc::UnboundedReceiver<Task>,
}

/// An owner that wants in.
#[derive(Debug)]
pub(super) struct Visit {
    pub hello: Hello,
    pub end: End<Response, Request>,
    pub answer: oneshot::Sender<Result<Welcome, Refusal>>,
}

/// One end of a connection: sends `S`, receives `R`. Dropped, it closes the connection.
#[derive(Debug)]
pub(super) struct End<S, R> {
    sends: Arc<Lane<S>>,
    receives: Arc<Lane<R>>,
    queued: RefCell<Vec<(RpcId, S)>>,
    /// Wakes this end's own task, as [`Link::changed`](super::link::Link) does.
    pub changed: Notify,
}

/// One direction.
#[derive(Debug)]
struct Lane<T> {
    messages: Mutex<Vec<(RpcId, T)>>,
    news: Notify,
    closed: AtomicBool,
}

impl LocalDoor {
    /// A door of `agent`, and its other side.
    #[must_use]
    pub fn new(agent: AgentId) -> (LocalDoor, Doorway) {
        let (visits, visitors) = mpsc::unbounded_channel();
        let (tasks, to_do) = mpsc::unbounded_channel();
        (LocalDoor { agent, visits, tasks }, Doorway { visits: visitors, tasks: to_do })
    }

    /// Runs what `make` makes on the agent's own thread, as a task of its `LocalSet`, beside all that the agent does. It ends
    /// with the agent at the latest; if the agent has ended, nothing is made.
    pub fn inside<F: Future<Output = ()> + 'static>(&self, make: impl FnOnce() -> F + Send + 'static) {
        let _ = self.tasks.send(Box::new(move || drop(spawn_local(make()))));
    }

    /// Whose it is.
    #[must_use]
    pub fn agent(&self) -> AgentId {
        self.agent
    }

    /// Whether that agent still takes in who comes.
    pub(super) fn is_open(&self) -> bool {
        !self.visits.is_closed()
    }

    /// Goes in. `None`: the agent has ended.
    pub(super) async fn enter(&self, hello: Hello) -> Option<(Result<Welcome, Refusal>, End<Request, Response>)> {
        let (ours, end) = pair();
        let (answer, answered) = oneshot::channel();
        self.visits.send(Visit { hello, end, answer }).ok()?;
        Some((answered.await.ok()?, ours))
    }
}

/// A connection.
pub(super) fn pair<A, B>() -> (End<A, B>, End<B, A>) {
    let (a, b) = (Arc::new(Lane::default()), Arc::new(Lane::default()));
    (End::new(Arc::clone(&a), Arc::clone(&b)), End::new(b, a))
}

impl<S, R> End<S, R> {
    fn new(sends: Arc<Lane<S>>, receives: Arc<Lane<R>>) -> Self {
        Self { sends, receives, queued: RefCell::default(), changed: Notify::new() }
    }

    /// Queues a message; [`End::flush`] sends it.
    pub fn push(&self, rpc: RpcId, message: S) {
        self.queued.borrow_mut().push((rpc, message));
    }

    /// Sends what is queued. Nothing says whether anybody takes it.
    pub fn flush(&self) {
        let mut queued = self.queued.borrow_mut();
        if !queued.is_empty() {
            self.sends.messages.lock().unwrap_or_else(PoisonError::into_inner).append(&mut queued);
            self.sends.news.notify_one();
        }
    }

    /// Waits until something has come, or the connection is closed. Cancel safe.
    pub async fn arrival(&self) {
        self.receives.news.notified().await;
    }

    /// Moves what has come to the end of `into`, in order. False: the connection is closed, and there will be no more.
    pub fn take(&self, into: &mut impl Extend<(RpcId, R)>) -> bool {
        // Looked at first: whatever was sent before the end is there by then. That there was something says nothing of what
        // [`End::arrival`] will tell, as one word of it stands for any number of messages and for the end.
        let open = !self.receives.closed.load(Ordering::Acquire);
        into.extend(self.receives.messages.lock().unwrap_or_else(PoisonError::into_inner).drain(..));
        open
    }

    /// Closes the connection for both ends.
    pub fn shutdown(&self) {
        self.sends.close();
        self.receives.close();
        self.changed.notify_one();
    }
}

impl<S, R> Drop for End<S, R> {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        Self { messages: Mutex::default(), news: Notify::new(), closed: AtomicBool::new(false) }
    }
}

impl<T> Lane<T> {
    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.news.notify_one();
    }
}
