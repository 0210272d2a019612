//! One connection from greeting to end, over TCP or within the process.

use super::{Connection, Server, Shared};
use crate::tdp::line::Line;
use crate::tdp::link::{Link, Source};
use crate::tdp::local::{End, Visit};
use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::timeout;
use torus_core::limits::TDP_CONNECTIONS_MAX;
use torus_core::peer::{Request, Response};
use torus_core::tdp::{Hello, Inbox, Refusal, Welcome, WireError};
use torus_store::AlignedBuf;

/// A connection that has not said who it is by then is closed.
const GREETING_TIME: Duration = Duration::from_secs(5);
/// How long a last word may take to be sent.
const LAST_WORD_TIME: Duration = Duration::from_secs(1);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Over {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("refused: {0}")]
    Refused(Refusal),
    #[error("it did not say who it is within {} s", GREETING_TIME.as_secs())]
    Silent,
    #[error("closed by the other side")]
    Closed,
    #[error("this agent stops")]
    Stopping,
}

impl Server {
    pub(super) fn admit(&self, stream: TcpStream) {
        self.admitted(async move |shared, full| {
            if let Err(e) = shared.converse(stream, full).await {
                tracing::warn!("cannot serve a TDP connection: {e}");
            }
        });
    }

    pub(super) fn admit_local(&self, visit: Visit) {
        self.admitted(async move |shared, full| shared.receive(visit, full).await);
    }

    fn admitted(&self, serve: impl AsyncFnOnce(&Rc<Shared>, bool) + 'static) {
        let shared = Rc::clone(&self.shared);
        let full = shared.stats.connections.fetch_add(1, Relaxed) >= TDP_CONNECTIONS_MAX as u64;
        spawn_local(async move {
            serve(&shared, full).await;
            shared.stats.connections.fetch_sub(1, Relaxed);
        });
    }
}

impl Shared {
    /// A connection over TCP.
    async fn converse(self: &Rc<Self>, stream: TcpStream, full: bool) -> io::Result<()> {
        let (link, mut source) = Link::new(stream)?;
        let (connection, place) = self.enroll(Line::Socket(link));
        let Line::Socket(link) = &connection.line else { unreachable!("made a moment ago") };
        let peer = link.peer();
        let mut name = String::new();
        let over = self.run(&connection, link, &mut source, full, &mut name).await;
        self.told(&over, &peer, &name);
        connection.gone.set(true);
        if let Some(last) = last_word(over) {
            link.queue(|out| out.refusal(&last));
            let _ = link.flush();
            let say = async { while link.blocked() && link.drain().await.is_ok() {} };
            let _ = timeout(LAST_WORD_TIME, say).await;
        }
        self.dismiss(&connection, place);
        Ok(())
    }

    /// A connection of an owner in this process.
    async fn receive(self: &Rc<Self>, Visit { hello, end, answer }: Visit, full: bool) {
        let welcome = self.welcome(&hello, full);
        let refused = welcome.as_ref().err().cloned();
        // Whoever came may have given up: then the connection is closed, which is found at once.
        let _ = answer.send(welcome);
        let over = match refused {
            Some(refusal) => Over::Refused(refusal),
            None => {
                let (connection, place) = self.enroll(Line::Local(end));
                let Line::Local(end) = &connection.line else { unreachable!("made a moment ago") };
                let over = self.serve_local(&connection, end).await.err().unwrap_or(Over::Closed);
                self.dismiss(&connection, place);
                over
            }
        };
        self.told(&over, "this process", &hello.name);
    }

    fn enroll(&self, line: Line<Response, Request>) -> (Rc<Connection>, usize) {
        let connection =
            Rc::new(Connection { line, held: Cell::new(0), dirty: Cell::new(false), gone: Cell::new(false) });
        let place = self.connections.borrow_mut().insert(Rc::clone(&connection));
        (connection, place)
    }

    /// Requests that are still open hold the connection, but nobody waits for their answers.
    fn dismiss(&self, connection: &Connection, place: usize) {
        connection.gone.set(true);
        connection.line.shutdown();
        self.connections.borrow_mut().remove(place);
        self.ended.notify_one();
    }

    fn told(&self, over: &Over, peer: &str, name: &str) {
        match over {
            Over::Closed | Over::Stopping => tracing::debug!(peer, name, "TDP connection ended: {over}"),
            Over::Io(_) => tracing::info!(peer, name, "TDP connection lost: {over}"),
            Over::Wire(_) | Over::Refused(_) | Over::Silent => {
                self.stats.refused.fetch_add(1, Relaxed);
                tracing::warn!(peer, name, "TDP connection refused: {over}");
            }
        }
    }

    async fn run(
        self: &Rc<Self>,
        connection: &Rc<Connection>,
        link: &Link,
        source: &mut Source,
        full: bool,
        name: &mut String,
    ) -> Over {
        let mut inbox = Inbox::default();
        let greeting = timeout(GREETING_TIME, self.greet(link, source, &mut inbox, full));
        match greeting.await {
            Err(_) => Over::Silent,
            Ok(Err(over)) => over,
            Ok(Ok(hello)) => {
                *name = hello.name;
                tracing::debug!(peer = link.peer(), name, "TDP connection from {:?}", hello.role);
                self.serve(connection, link, source, &mut inbox).await.err().unwrap_or(Over::Closed)
            }
        }
    }

    async fn greet(
        &self,
        link: &Link,
        source: &mut Source,
        inbox: &mut Inbox<Request, AlignedBuf>,
        full: bool,
    ) -> Result<Hello, Over> {
        let hello = loop {
            if source.read(inbox).await? == 0 {
                return Err(Over::Closed);
            }
            if let Some(hello) = inbox.hello()? {
                break hello;
            }
        };
        let welcome = self.welcome(&hello, full).map_err(Over::Refused)?;
        link.queue(|out| out.welcome(&welcome));
        link.flush()?;
        Ok(hello)
    }

    fn welcome(&self, hello: &Hello, full: bool) -> Result<Welcome, Refusal> {
        match full {
            true => Err(Refusal::Unavailable(format!("{TDP_CONNECTIONS_MAX} connections are open"))),
            false => self.identity.admit(hello),
        }
    }

    /// Reads requests and writes what the socket did not take at once, until something ends it.
    async fn serve(
        self: &Rc<Self>,
        connection: &Rc<Connection>,
        link: &Link,
        source: &mut Source,
        inbox: &mut Inbox<Request, AlignedBuf>,
    ) -> Result<(), Over> {
        let mut memory = self.memory.clone();
        loop {
            while self.may_read(connection) {
                match inbox.next(&mut memory)? {
                    Some((rpc, request)) => self.arrive(connection, rpc, request),
                    None => break,
                }
            }
            self.look(connection)?;
            tokio::select! {
                biased;
                () = link.changed.notified() => {}
                written = link.drain(), if link.blocked() => written?,
                read = source.read(inbox), if self.may_read(connection) => if read? == 0 { return Ok(()) },
            }
        }
    }

    /// Takes requests until something ends it.
    async fn serve_local(
        self: &Rc<Self>,
        connection: &Rc<Connection>,
        end: &End<Response, Request>,
    ) -> Result<(), Over> {
        let (mut requests, mut open) = (VecDeque::new(), true);
        loop {
            while self.may_read(connection)
                && let Some((rpc, request)) = requests.pop_front()
            {
                self.arrive(connection, rpc, request);
            }
            self.look(connection)?;
            if !open && requests.is_empty() {
                return Ok(());
            }
            tokio::select! {
                biased;
                () = end.changed.notified() => {}
                () = end.arrival(), if requests.is_empty() => open = end.take(&mut requests),
            }
        }
    }

    /// Whether a connection goes on.
    fn look(&self, connection: &Connection) -> Result<(), Over> {
        if connection.gone.get() {
            return Err(Over::Closed);
        }
        if self.stopping.get() && connection.held.get() == 0 && connection.line.queued() == 0 {
            return Err(Over::Stopping);
        }
        Ok(())
    }
}

fn last_word(end: Over) -> Option<Refusal> {
    match end {
        Over::Wire(WireError::Refused(_)) | Over::Io(_) | Over::Silent | Over::Closed => None,
        Over::Wire(e) => Some(Refusal::Protocol(e.to_string())),
        Over::Refused(refusal) => Some(refusal),
        Over::Stopping => Some(Refusal::Unavailable("the agent stops".into())),
    }
}
