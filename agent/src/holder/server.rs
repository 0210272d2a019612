//! The holder's loop: one thread that waits for messages, for the end of clients, and for time to pass.

use super::message::{receive, send};
use super::store::{Client, HELD_MAX, Store};
use crate::listen::{self, ListenError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// Serves on `socket` until `stop` can be read.
///
/// # Errors
/// When somebody else serves there, or the system refuses.
pub fn serve(socket: &Path, dead_time: Duration, stop: BorrowedFd<'_>) -> Result<(), ListenError> {
    let failed = |error: io::Error| ListenError::Socket(socket.into(), error);
    if let Some(directory) = socket.parent() {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    let (listener, _file) = listen::messages(socket, 0o600)?;
    let mut holder = Holder { store: Store::new(dead_time), clients: BTreeMap::new(), next: 0 };
    loop {
        let mut waited = vec![PollFd::new(&stop, PollFlags::IN)];
        // One more than there may be waits until another has gone.
        let takes_more = holder.clients.len() < HELD_MAX;
        waited.push(PollFd::new(&listener, if takes_more { PollFlags::IN } else { PollFlags::empty() }));
        let clients: Vec<Client> = holder.clients.keys().copied().collect();
        waited.extend(holder.clients.values().map(|client| PollFd::new(client, PollFlags::IN)));
        let wait = holder.store.next().map(|next| next.saturating_duration_since(Instant::now()));
        // Rounded up, so that it is over by then.
        let wait = wait.map(|wait| wait + Duration::from_millis(1));
        let wait = wait.map(|wait| Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() });
        match poll(&mut waited, wait.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
        let ready: Vec<bool> = waited.iter().map(|one| !one.revents().is_empty()).collect();
        drop(waited);
        if ready[0] {
            return Ok(());
        }
        if ready[1] {
            holder.accept(listener.as_fd());
        }
        for (client, _) in clients.into_iter().zip(&ready[2..]).filter(|(_, ready)| **ready) {
            holder.listen_to(client);
        }
        for name in holder.store.expire(Instant::now()) {
            tracing::warn!("nobody has come for {name} within {dead_time:?}: its device gives errors from now on");
        }
    }
}

struct Holder {
    store: Store<OwnedFd>,
    clients: BTreeMap<Client, OwnedFd>,
    next: Client,
}

impl Holder {
    fn accept(&mut self, listener: BorrowedFd<'_>) {
        match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(client) => {
                self.clients.insert(self.next, client);
                self.next += 1;
            }
            // It has gone again.
            Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => {}
            Err(error) => tracing::warn!("cannot take a connection: {error}"),
        }
    }

    /// Sees to what `client` has to say, or to its end.
    fn listen_to(&mut self, client: Client) {
        let Some(socket) = self.clients.get(&client) else { return };
        let answered = match receive(socket) {
            Ok(Some((question, what))) => self.answer(client, &question, what),
            Err(Errno::AGAIN) => return,
            Ok(None) | Err(_) => false,
        };
        if !answered {
            self.clients.remove(&client);
            let left = self.store.gone(client, Instant::now());
            if !left.is_empty() {
                tracing::info!("nobody attends to {} now", left.join(", "));
            }
        }
    }

    /// Answers; whether the client may go on.
    fn answer(&mut self, client: Client, question: &str, what: Option<OwnedFd>) -> bool {
        let Some(socket) = self.clients.get(&client) else { return false };
        let Some((word, name)) = question.split_once(' ') else { return false };
        let sent = match (word, what) {
            ("keep", Some(what)) => match self.store.keep(name, what, client) {
                Ok(()) => {
                    tracing::info!("keeping {name}");
                    send(socket, "ok", None)
                }
                Err(why) => send(socket, &format!("no {why}"), None),
            },
            ("take", None) => match self.store.take(name, client) {
                Some(what) => {
                    tracing::info!("{name} is attended to again");
                    send(socket, "ok", Some(what.as_fd()))
                }
                None => send(socket, "none", None),
            },
            ("has", None) => send(socket, if self.store.has(name) { "ok" } else { "none" }, None),
            ("drop", None) => {
                self.store.release(name);
                send(socket, "ok", None)
            }
            _ => return false,
        };
        sent.is_ok()
    }
}
