//! The descriptor on which a disk says that something is done: an eventfd, so that a thread that waits for sockets
//! waits for disks in the same `epoll`.

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

#[derive(Debug)]
pub(crate) struct Signal(OwnedFd);

impl Signal {
    pub fn new() -> io::Result<Self> {
        Ok(Self(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes it readable.
    pub fn raise(&self) {
        // The only failure left is a counter that is full, and then it is readable already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes it unreadable. To be followed by a look at everything it may have announced.
    pub fn lower(&self) {
        // Nothing to read is no failure: then it was not readable in the first place.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }

    /// Blocks until it is readable.
    pub fn wait(&self) -> io::Result<()> {
        loop {
            match rustix::event::poll(&mut [PollFd::new(&self.0, PollFlags::IN)], None) {
                Err(Errno::INTR) => {}
                other => return Ok(other.map(drop)?),
            }
        }
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
