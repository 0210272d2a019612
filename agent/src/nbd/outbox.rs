//! What a connection has to send: headers and payloads in order, sent by as few system calls as possible.
//!
//! Headers are gathered in one buffer, payloads are kept as they came from the device. Each reply carries the price that
//! its request was admitted at, given back when its last byte is with the kernel.

use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// Slices in one system call.
const SLICES_MAX: usize = 256;
/// Payloads up to this are copied beside their header: cheaper than a slice of their own.
const COPY_BYTES_MAX: usize = 512;
/// How much memory for headers is taken at a time.
const HEADS_BYTES: usize = 16 << 10;

/// The queue of bytes to send.
pub(super) struct Outbox {
    slices: VecDeque<Bytes>,
    /// What follows `slices`: replies without payload, one after another.
    heads: BytesMut,
    /// Bytes ever put in and ever sent.
    put: u64,
    sent: u64,
    /// Where each reply ends, counted as `put` is, and its price.
    replies: VecDeque<(u64, usize)>,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self { slices: VecDeque::new(), heads: BytesMut::new(), put: 0, sent: 0, replies: VecDeque::new() }
    }

    /// Bytes waiting to be sent.
    pub(super) fn len(&self) -> u64 {
        self.put - self.sent
    }

    /// Appends a header.
    pub(super) fn head(&mut self, bytes: &[u8]) {
        if self.heads.capacity() - self.heads.len() < bytes.len() {
            self.heads.reserve(HEADS_BYTES.max(bytes.len()));
        }
        self.heads.extend_from_slice(bytes);
        self.put += bytes.len() as u64;
    }

    /// Appends payload, without a copy where that pays.
    pub(super) fn payload(&mut self, bytes: Bytes) {
        if bytes.len() <= COPY_BYTES_MAX {
            return self.head(&bytes);
        }
        self.close_heads();
        self.put += bytes.len() as u64;
        self.slices.push_back(bytes);
    }

    /// Ends a reply whose request was admitted at `price`.
    pub(super) fn end(&mut self, price: usize) {
        self.replies.push_back((self.put, price));
    }

    fn close_heads(&mut self) {
        if !self.heads.is_empty() {
            self.slices.push_back(self.heads.split().freeze());
        }
    }

    /// Forgets what was not sent: nobody is there to read it. The prices come back by [`Self::paid`].
    pub(super) fn discard(&mut self) {
        self.slices.clear();
        self.heads.clear();
        self.sent = self.put;
    }

    /// The price of one more reply that was sent whole.
    pub(super) fn paid(&mut self) -> Option<usize> {
        let (end, _) = self.replies.front()?;
        if *end > self.sent {
            return None;
        }
        self.replies.pop_front().map(|(_, price)| price)
    }

    /// Sends with one system call what it takes. Ready once something was sent.
    pub(super) fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut S,
    ) -> Poll<io::Result<()>> {
        self.close_heads();
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let count = self.slices.len().min(SLICES_MAX);
        for (slice, bytes) in slices.iter_mut().zip(&self.slices) {
            *slice = IoSlice::new(bytes);
        }
        let mut n = ready!(Pin::new(socket).poll_write_vectored(cx, &slices[..count]))?;
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.sent += n as u64;
        while n > 0 {
            let first = self.slices.front_mut().expect("no more is sent than was there");
            let taken = n.min(first.len());
            first.advance(taken);
            n -= taken;
            if first.is_empty() {
                self.slices.pop_front();
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    /// Takes a few bytes at a time.
    struct Slow(Vec<u8>, usize);

    impl AsyncWrite for Slow {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let n = bytes.len().min(self.1);
            self.0.extend_from_slice(&bytes[..n]);
            Poll::Ready(Ok(n))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn order_is_kept_and_prices_come_back_when_a_reply_is_out() {
        let mut outbox = Outbox::new();
        let big = Bytes::from(vec![b'B'; 1000]);
        outbox.head(b"one");
        outbox.end(1);
        outbox.head(b"two");
        outbox.payload(big.clone());
        outbox.end(2);
        outbox.head(b"three");
        outbox.payload(Bytes::from_static(b"small"));
        outbox.end(3);
        let want = [b"onetwo", &big[..], b"threesmall"].concat();
        assert_eq!(outbox.len(), want.len() as u64);

        let mut socket = Slow(Vec::new(), 7);
        let mut cx = Context::from_waker(Waker::noop());
        let mut paid = Vec::new();
        while outbox.len() > 0 {
            assert!(matches!(outbox.poll_send(&mut cx, &mut socket), Poll::Ready(Ok(()))));
            while let Some(price) = outbox.paid() {
                let end = [3, 6 + 1000, want.len()][price - 1];
                assert!(socket.0.len() >= end, "paid back before it was sent");
                paid.push(price);
            }
        }
        assert_eq!((socket.0, paid), (want, vec![1, 2, 3]));
    }

    #[test]
    fn what_is_discarded_is_paid_back() {
        let mut outbox = Outbox::new();
        outbox.payload(Bytes::from(vec![0; 4096]));
        outbox.end(4096);
        outbox.discard();
        assert_eq!((outbox.len(), outbox.paid(), outbox.paid()), (0, Some(4096), None));
    }
}
