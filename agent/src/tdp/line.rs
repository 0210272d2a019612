//! The sending half of a connection of either kind.

use super::link::Link;
use super::local::End;
use std::io;
use tokio::sync::Notify;
use torus_core::ids::RpcId;
use torus_core::tdp::Message;

/// Over TCP, or within this process. Sends `S`, and its other half receives `R`.
pub(super) enum Line<S, R> {
    Socket(Link),
    Local(End<S, R>),
}

impl<S: Message, R> Line<S, R> {
    /// Queues a message; [`Line::flush`] sends it.
    pub fn push(&self, rpc: RpcId, message: S) {
        match self {
            Line::Socket(link) => link.push(rpc, &message),
            Line::Local(end) => end.push(rpc, message),
        }
    }

    /// Sends what is queued, as much as is taken now.
    pub fn flush(&self) -> io::Result<()> {
        match self {
            Line::Socket(link) => link.flush(),
            Line::Local(end) => {
                end.flush();
                Ok(())
            }
        }
    }

    /// Bytes queued here. Within the process nothing is: what is sent is with its receiver.
    pub fn queued(&self) -> usize {
        match self {
            Line::Socket(link) => link.queued(),
            Line::Local(_) => 0,
        }
    }

    /// Wakes the connection's task when something that it waits by has changed.
    pub fn changed(&self) -> &Notify {
        match self {
            Line::Socket(link) => &link.changed,
            Line::Local(end) => &end.changed,
        }
    }

    /// Ends the connection for both sides, whoever still holds it.
    pub fn shutdown(&self) {
        match self {
            Line::Socket(link) => link.shutdown(),
            Line::Local(end) => end.shutdown(),
        }
    }

    /// The other end, for messages.
    pub fn peer(&self) -> String {
        match self {
            Line::Socket(link) => link.peer(),
            Line::Local(_) => "this process".into(),
        }
    }
}
