//! How an agent speaks to the holder. Blocking, and soon over: the holder waits for nothing.

use super::message::{receive, send};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long it may take to answer.
const ANSWERED: Duration = Duration::from_secs(5);

/// Why the holder is of no help.
#[derive(Debug, thiserror::Error)]
pub enum HolderError {
    /// It is not there.
    #[error("no holder listens on {0}")]
    Absent(PathBuf, #[source] io::Error),
    /// It does not answer as it should.
    #[error("the holder does not answer as it should: {0}")]
    Confused(String),
}

/// A connection to the holder. Open, it tells the holder that this process attends to what it has kept or taken by it.
#[derive(Debug)]
pub struct Connection(OwnedFd);

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Connection {
    /// Connects to the one on `socket`.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(socket: &Path) -> Result<Self, HolderError> {
        let opened = || {
            let connection = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            for timeout in [Timeout::Recv, Timeout::Send] {
                set_socket_timeout(&connection, timeout, Some(ANSWERED))?;
            }
            connect(&connection, &SocketAddrUnix::new(socket)?)?;
            Ok::<_, rustix::io::Errno>(connection)
        };
        opened().map(Self).map_err(|error| HolderError::Absent(socket.into(), error.into()))
    }

    /// Has `what` kept under `name`.
    ///
    /// # Errors
    /// When it is not.
    pub fn keep(&self, name: &str, what: BorrowedFd<'_>) -> Result<(), HolderError> {
        match self.ask(&format!("keep {name}"), Some(what))? {
            (answer, _) if answer == "ok" => Ok(()),
            (answer, _) => Err(HolderError::Confused(answer)),
        }
    }

    /// What is kept under `name`, if anything is.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn take(&self, name: &str) -> Result<Option<OwnedFd>, HolderError> {
        match self.ask(&format!("take {name}"), None)? {
            (answer, Some(what)) if answer == "ok" => Ok(Some(what)),
            (answer, None) if answer == "none" => Ok(None),
            (answer, _) => Err(HolderError::Confused(answer)),
        }
    }

    /// Whether something is kept under `name`.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn has(&self, name: &str) -> Result<bool, HolderError> {
        match self.ask(&format!("has {name}"), None)?.0.as_str() {
            "ok" => Ok(true),
            "none" => Ok(false),
            answer => Err(HolderError::Confused(answer.into())),
        }
    }

    /// Has nothing kept under `name` any more.
    ///
    /// # Errors
    /// When that is not certain.
    pub fn release(&self, name: &str) -> Result<(), HolderError> {
        match self.ask(&format!("drop {name}"), None)?.0.as_str() {
            "ok" => Ok(()),
            answer => Err(HolderError::Confused(answer.into())),
        }
    }

    fn ask(&self, question: &str, what: Option<BorrowedFd<'_>>) -> Result<(String, Option<OwnedFd>), HolderError> {
        let failed = |error: rustix::io::Errno| HolderError::Confused(io::Error::from(error).to_string());
        send(&self.0, question, what).map_err(failed)?;
        receive(&self.0).map_err(failed)?.ok_or_else(|| HolderError::Confused("it has gone".into()))
    }
}
