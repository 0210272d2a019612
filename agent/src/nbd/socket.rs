//! A unix stream socket that looks for room to write only while it waits for some.
//!
//! Whenever the other end of a unix socket reads, the kernel tells everybody who asked about room that there is more of
//! it. `tokio::net::UnixStream` always asks, so each reply that a client takes would wake this thread once for nothing,
//! which at one request at a time is every third time that it wakes. TCP tells only those who met a full buffer.
//!
//! 1. Reading is watched always; writing by a second descriptor, from the first write that finds no room until
//!    [`UNHINDERED_MAX`] in a row have found some.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use torus_core::limits::NBD_SEND_BUFFER_BYTES;

/// Writes without a wait after which room is no longer watched.
const UNHINDERED_MAX: u32 = 64;
/// What is read at once: memory is cleared for as much each time, so no more than what seems to be there.
const READ_BYTES_MIN: usize = 8 << 10;
const READ_BYTES_MAX: usize = 256 << 10;

pub(super) struct Socket {
    stream: AsyncFd<UnixStream>,
    /// Tells when there is room.
    room: Option<AsyncFd<UnixStream>>,
    unhindered: u32,
    read_bytes: usize,
}

impl Socket {
    /// # Errors
    /// When the system has no more room for what is to be watched.
    pub(super) fn new(stream: tokio::net::UnixStream) -> io::Result<Self> {
        // A reply of some MiB goes out by one call, and is not waited for. Less is no failure.
        let _ = socket2::SockRef::from(&stream).set_send_buffer_size(NBD_SEND_BUFFER_BYTES);
        let stream = watch(stream.into_std()?, Interest::READABLE)?;
        Ok(Self { stream, room: None, unhindered: 0, read_bytes: READ_BYTES_MIN })
    }

    fn poll_write_by(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match write(self.stream.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    self.unhindered += 1;
                    if self.unhindered >= UNHINDERED_MAX {
                        self.room = None;
                    }
                    return Poll::Ready(done);
                }
            }
            self.unhindered = 0;
            let room = match &self.room {
                Some(room) => room,
                None => self.room.insert(watch(self.stream.get_ref().try_clone()?, Interest::WRITABLE)?),
            };
            // What is known of room is older than the write that found none.
            ready!(room.poll_write_ready(cx))?.clear_ready();
        }
    }
}

fn watch(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    #[expect(deprecated, reason = "its replacement is unsafe: it trusts us with what a UnixStream's own type promises")]
    AsyncFd::with_interest(stream, interest)
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, read_bytes, .. } = &mut *self;
        loop {
            let mut ready = ready!(stream.poll_read_ready(cx))?;
            let room = into.initialize_unfilled_to(into.remaining().min(*read_bytes));
            let wanted = room.len();
            match ready.get_inner().read(room) {
                Ok(n) => {
                    into.advance(n);
                    if n == wanted {
                        *read_bytes = (*read_bytes * 2).min(READ_BYTES_MAX);
                    } else if n > 0 {
                        // There was no more: what comes from now on is told anew.
                        ready.clear_ready();
                        *read_bytes = (*read_bytes).min(n.next_power_of_two() * 2).max(READ_BYTES_MIN);
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_by(cx, |mut stream| stream.write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_by(cx, |mut stream| stream.write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.get_ref().shutdown(std::net::Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn pair() -> (Socket, tokio::net::UnixStream) {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        (Socket::new(ours).unwrap(), theirs)
    }

    #[tokio::test]
    async fn more_than_fits_is_written_and_then_room_is_not_watched_any_more() {
        let (mut ours, mut theirs) = pair();
        let sent: Vec<u8> = (0..16 << 20).map(|i: u32| (i % 251) as u8).collect();
        let expected = sent.clone();
        let reader = tokio::spawn(async move {
            let mut got = vec![0; expected.len()];
            theirs.read_exact(&mut got).await.unwrap();
            assert_eq!(got, expected);
            theirs
        });
        ours.write_all(&sent).await.unwrap();
        let mut theirs = reader.await.unwrap();
        assert!(ours.room.is_some(), "a socket that takes 16 MiB at once tests nothing");
        for _ in 0..UNHINDERED_MAX {
            ours.write_all(b"x").await.unwrap();
            assert_eq!(theirs.read_u8().await.unwrap(), b'x');
        }
        assert!(ours.room.is_none());
    }

    #[tokio::test]
    async fn what_comes_is_read_whatever_its_size_and_so_is_the_end() {
        let (mut ours, mut theirs) = pair();
        let writer = tokio::spawn(async move {
            for len in [1, 8 << 10, 1 << 20, 3, 100_000] {
                theirs.write_all(&vec![7; len]).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let mut got = Vec::new();
        ours.read_to_end(&mut got).await.unwrap();
        writer.await.unwrap();
        assert_eq!(got, vec![7; 1 + (8 << 10) + (1 << 20) + 3 + 100_000]);
        assert!(ours.read_bytes >= READ_BYTES_MIN && ours.read_bytes <= READ_BYTES_MAX);
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_is_an_error_to_a_writer_that_waits() {
        let (mut ours, theirs) = pair();
        let gone = tokio::spawn(async move {
            tokio::task::yield_now().await;
            drop(theirs);
        });
        let error = ours.write_all(&vec![0; 32 << 20]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        gone.await.unwrap();
    }
}
