//! A connection to the kernel's FUSE: requests read on a thread of their own, answers written from wherever they are known.

use super::filesystem::OneFile;
use super::wire;
use nix::errno::Errno;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use torus_core::limits::FUSE_REQUEST_BYTES_MAX;

/// Room for a request beside its data.
const BESIDES_BYTES: usize = 4096;

/// The connection.
#[derive(Debug)]
pub(super) struct Channel {
    device: OwnedFd,
    /// This process goes, and another goes on: what is not answered is left to it.
    left: AtomicBool,
}

impl Channel {
    pub(super) fn new(device: OwnedFd) -> Arc<Self> {
        Arc::new(Self { device, left: AtomicBool::new(false) })
    }

    /// The connection once more, for another process.
    pub(super) fn device(&self) -> io::Result<OwnedFd> {
        self.device.try_clone()
    }

    /// Leaves what is not answered yet to another process.
    pub(super) fn leave(&self) {
        self.left.store(true, Ordering::Release);
    }

    pub(super) fn is_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// Has the kernel ask again for everything that another process has taken and not answered.
    pub(super) fn ask_again(&self) -> io::Result<()> {
        nix::unistd::write(&self.device, &wire::resend()).map(drop).map_err(io::Error::from)
    }

    /// Reads requests, and has `filesystem` see to each, until the filesystem is gone.
    pub(super) fn serve(self: Arc<Self>, filesystem: OneFile) -> io::Result<JoinHandle<()>> {
        thread::Builder::new().name("torus-fuse".into()).spawn(move || {
            let mut buffer = vec![0; FUSE_REQUEST_BYTES_MAX as usize + BESIDES_BYTES];
            loop {
                let len = match nix::unistd::read(&self.device, &mut buffer) {
                    Ok(len) => len,
                    // Taken back by who asked, or by a signal.
                    Err(Errno::ENOENT | Errno::EINTR | Errno::EAGAIN) => continue,
                    Err(Errno::ENODEV) => return,
                    Err(error) => return tracing::error!("cannot read from /dev/fuse: {error}"),
                };
                let Some((number, request)) = wire::read(&buffer[..len]) else {
                    return tracing::error!("the kernel's FUSE says something that is no request ({len} bytes)");
                };
                let answer = Answer { channel: Arc::clone(&self), number: Some(number) };
                match request {
                    wire::Request::Forget => answer.none(),
                    wire::Request::End => return answer.done(),
                    request => filesystem.see_to(request, answer),
                }
            }
        })
    }
}

/// The right to answer one request. Dropped, the answer is EIO, unless the request is left to another process.
pub(super) struct Answer {
    channel: Arc<Channel>,
    number: Option<u64>,
}

impl Answer {
    /// That went well.
    pub(super) fn done(self) {
        self.data(&[]);
    }

    /// That went well, and here is what was asked for.
    pub(super) fn data(mut self, pieces: &[&[u8]]) {
        if let Some(number) = self.number.take() {
            self.send(number, 0, pieces);
        }
    }

    /// That did not go well.
    pub(super) fn error(mut self, errno: Errno) {
        if let Some(number) = self.number.take() {
            self.send(number, errno as i32, &[]);
        }
    }

    /// This process serves no more, which is an error only where none comes after it.
    pub(super) fn ended(self) {
        drop(self);
    }

    /// None is wanted.
    fn none(mut self) {
        self.number = None;
    }

    fn send(&self, number: u64, error: i32, pieces: &[&[u8]]) {
        let header = wire::answer(number, error, pieces.iter().map(|piece| piece.len()).sum());
        let slices: Vec<_> = [&header[..]].iter().chain(pieces).map(|piece| IoSlice::new(piece)).collect();
        match nix::sys::uio::writev(&self.channel.device, &slices) {
            // ENOENT: who asked waits no more. ENODEV: nobody does.
            Ok(_) | Err(Errno::ENOENT | Errno::ENODEV) => {}
            Err(error) => tracing::error!("cannot answer the kernel's FUSE: {error}"),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(number) = self.number.take()
            && !self.channel.is_left()
        {
            self.send(number, Errno::EIO as i32, &[]);
        }
    }
}
