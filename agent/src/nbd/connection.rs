//! One client's connection: negotiation, then requests in and replies out until either side leaves.
//!
//! The transmission phase is one hand-written future, because what makes it fast is the order of things in one poll:
//! read as many requests as the socket gives, hand all of them to the device, take every answer that is there, and only
//! when neither side has anything more send all answers by one system call. A task per request, or a reader task beside
//! a writer task, would spend more on waking than on the I/O.

use super::outbox::Outbox;
use super::payload::Payload;
use super::request::{Completion, Outcome, carry_out, price};
use crate::device::BlockDevice;
use bytes::{Buf, BufMut, BytesMut};
use futures::stream::{FuturesUnordered, Stream};
use smallvec::smallvec;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use torus_core::format::Pieces;
use torus_core::limits::{
    NBD_AHEAD_OF_LARGE_BYTES, NBD_IN_FLIGHT_BYTES_MAX, NBD_IN_FLIGHT_REQUESTS_MAX, NBD_RECEIVE_BYTES,
};
use torus_core::nbd::{
    BadMagic, Command, Exports, Handshake, HandshakeError, Progress, Refusal, RequestHeader, Session, Shape,
};
use torus_store::BufferPool;

/// Payload up to this waits in the receive buffer until it is whole; longer ones get a buffer of their own, into which
/// the socket is read directly.
const INLINE_BYTES_MAX: usize = NBD_RECEIVE_BYTES / 4;
/// The least room for a read from the socket.
const RECEIVE_ROOM_MIN: usize = 16 << 10;
/// Replies go out at the latest when this much waits.
const SEND_BYTES: u64 = 256 << 10;

/// Why a connection ended otherwise than by the client's wish.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    /// In the negotiation.
    #[error("the negotiation failed")]
    Handshake(#[from] HandshakeError),
    /// The client went away, or the network did.
    #[error("the connection broke")]
    Socket(#[source] io::Error),
    /// What came is no request.
    #[error("the request stream is out of step")]
    OutOfStep(#[from] BadMagic),
}

/// Negotiates. `None`: the client left.
///
/// # Errors
/// When the connection is to be closed at once. Dropping the future is safe at any time.
pub(super) async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut S,
    exports: &impl Exports,
) -> Result<Option<(Session, BytesMut)>, ConnectionError> {
    let mut out = BytesMut::new();
    let mut input = BytesMut::new();
    let mut handshake = Handshake::new(&mut out);
    loop {
        let progress = handshake.step(&mut input, exports, &mut out)?;
        let told = socket.write_all_buf(&mut out).await;
        match progress {
            // A client may leave without waiting for the answer to its ABORT.
            Progress::Aborted => return Ok(None),
            _ => told.map_err(ConnectionError::Socket)?,
        }
        match progress {
            Progress::Taken | Progress::Aborted => {}
            Progress::Ready(session) => return Ok(Some((session, input))),
            Progress::Incomplete => {
                input.reserve(RECEIVE_ROOM_MIN);
                let mut room = (&mut input).limit(RECEIVE_ROOM_MIN);
                if socket.read_buf(&mut room).await.map_err(ConnectionError::Socket)? == 0 {
                    return Ok(None);
                }
            }
        }
    }
}

/// What is being received.
enum Incoming {
    /// The next header.
    Header,
    /// A request that was read but does not fit into what may be in flight.
    Waiting { header: RequestHeader, command: Command },
    /// The rest of a write's payload, into the receive buffer or into one of its own.
    Payload { header: RequestHeader, command: Command, own: Option<Payload> },
    /// The payload of a write that was refused.
    Refused { header: RequestHeader, refusal: Refusal, left: usize },
}

/// The transmission phase of one connection.
pub(super) struct Transmission<S, D, F> {
    socket: S,
    device: Rc<D>,
    session: Session,
    input: BytesMut,
    /// How much is read into `input` while it is empty.
    ahead: usize,
    incoming: Incoming,
    in_flight: FuturesUnordered<F>,
    /// Makes the future of a request: its type has no name that could stand here.
    carry_out: fn(Rc<D>, RequestHeader, Command, Pieces, usize) -> F,
    /// Where large payloads are received into.
    memory: BufferPool,
    requests: usize,
    bytes: usize,
    outbox: Outbox,
    /// More requests are taken.
    receiving: bool,
    /// The client can still be told something.
    sending: bool,
    /// What to report at the end.
    error: Option<ConnectionError>,
}

/// Serves requests for `device` until the client leaves, or `stopping` says so and all is answered.
///
/// # Errors
/// When it did not end by the client's wish or by `stopping`.
pub(super) async fn transmit<S, D>(
    socket: S,
    device: Rc<D>,
    session: Session,
    input: BytesMut,
    memory: BufferPool,
    stopping: impl Future<Output = ()>,
) -> Result<(), ConnectionError>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: BlockDevice,
{
    let mut transmission = Transmission {
        socket,
        device,
        session,
        input,
        ahead: NBD_RECEIVE_BYTES,
        incoming: Incoming::Header,
        in_flight: FuturesUnordered::new(),
        carry_out,
        memory,
        requests: 0,
        bytes: 0,
        outbox: Outbox::new(),
        receiving: true,
        sending: true,
        error: None,
    };
    let mut stopping = pin!(stopping);
    std::future::poll_fn(|cx| {
        if transmission.receiving && stopping.as_mut().poll(cx).is_ready() {
            transmission.receiving = false;
        }
        transmission.poll(cx)
    })
    .await;
    match transmission.error {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

impl<S, D, F> Transmission<S, D, F>
where
    S: AsyncRead + AsyncWrite + Unpin,
    D: BlockDevice,
    F: Future<Output = Completion>,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let received = self.receive(cx);
            while let Poll::Ready(Some(completion)) = Pin::new(&mut self.in_flight).poll_next(cx) {
                completion.encode(&self.session, &mut self.outbox);
            }
            let sent = (!received || self.outbox.len() >= SEND_BYTES) && self.send(cx);
            if !self.receiving && self.in_flight.is_empty() && self.outbox.len() == 0 {
                return Poll::Ready(());
            }
            if !received && !sent {
                return Poll::Pending;
            }
        }
    }

    fn full(&self) -> bool {
        self.requests >= NBD_IN_FLIGHT_REQUESTS_MAX
    }

    fn fail(&mut self, error: ConnectionError) {
        self.receiving = false;
        self.error.get_or_insert(error);
    }

    /// Sends once. Whether something moved.
    fn send(&mut self, cx: &mut Context<'_>) -> bool {
        if self.outbox.len() == 0 {
            return false;
        }
        let moved = match self.sending {
            false => true,
            true => match self.outbox.poll_send(cx, &mut self.socket) {
                Poll::Pending => return false,
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(error)) => {
                    self.sending = false;
                    self.fail(ConnectionError::Socket(error));
                    true
                }
            },
        };
        if !self.sending {
            self.outbox.discard();
        }
        while let Some(price) = self.outbox.paid() {
            self.requests -= 1;
            self.bytes -= price;
        }
        moved
    }

    /// Takes what is there, reads the socket once, takes that. Whether something was read.
    fn receive(&mut self, cx: &mut Context<'_>) -> bool {
        self.take_requests();
        // At a bound the socket is left alone. What waits in it may wait for long, and its client meanwhile come back by
        // another connection, repeat there what it asked for here, and go on from that: then it must not be done after
        // all. It is not, because only a reply that was sent makes room, and none can be sent to a client that is gone.
        if !self.receiving || self.full() || matches!(self.incoming, Incoming::Waiting { .. }) {
            return false;
        }
        match self.poll_read(cx) {
            Poll::Pending => false,
            Poll::Ready(Ok(0)) => {
                self.receiving = false;
                if !matches!(self.incoming, Incoming::Header) || !self.input.is_empty() {
                    self.fail(ConnectionError::Socket(io::ErrorKind::UnexpectedEof.into()));
                }
                true
            }
            Poll::Ready(Ok(_)) => {
                self.take_requests();
                true
            }
            Poll::Ready(Err(error)) => {
                self.sending = false;
                self.fail(ConnectionError::Socket(error));
                true
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if let Incoming::Payload { own: Some(own), .. } = &mut self.incoming {
            let n = ready!(pin!(self.socket.read(own.room())).poll(cx))?;
            own.arrived(n);
            return Poll::Ready(Ok(n));
        }
        if self.input.capacity() - self.input.len() < RECEIVE_ROOM_MIN {
            // Takes the same memory again when every write that was cut from it is done.
            self.input.reserve(NBD_RECEIVE_BYTES);
        }
        // Where a large payload is likely to follow, most of it is not to come by way of this buffer.
        let ahead = if self.input.is_empty() { self.ahead } else { NBD_RECEIVE_BYTES };
        let n = ready!(pin!(self.socket.read_buf(&mut (&mut self.input).limit(ahead))).poll(cx))?;
        Poll::Ready(Ok(n))
    }

    /// Takes requests until something is missing: bytes, or room in flight.
    fn take_requests(&mut self) {
        while self.receiving {
            match std::mem::replace(&mut self.incoming, Incoming::Header) {
                Incoming::Header => match self.take_header() {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => return self.fail(error.into()),
                },
                Incoming::Waiting { header, command } => {
                    let price = price(&command);
                    if self.bytes > 0 && self.bytes + price > NBD_IN_FLIGHT_BYTES_MAX {
                        self.incoming = Incoming::Waiting { header, command };
                        return;
                    }
                    self.requests += 1;
                    self.bytes += price;
                    self.admit(header, command);
                }
                Incoming::Payload { header, command, own } => {
                    let len = header.payload_len() as usize;
                    match own {
                        Some(own) if own.is_whole() => self.start(header, command, own.into_pieces()),
                        None if self.input.len() >= len => {
                            let data = self.input.split_to(len).freeze();
                            self.start(header, command, smallvec![data]);
                        }
                        own => {
                            self.incoming = Incoming::Payload { header, command, own };
                            return;
                        }
                    }
                }
                Incoming::Refused { header, refusal, mut left } => {
                    let n = left.min(self.input.len());
                    self.input.advance(n);
                    left -= n;
                    if left > 0 {
                        self.incoming = Incoming::Refused { header, refusal, left };
                        return;
                    }
                    // Refusals count too, as a client may send them without ever reading an answer.
                    let answer = Completion {
                        cookie: header.cookie,
                        is_read: header.is_read(),
                        price: price(&Command::Nothing),
                        outcome: Outcome::Failed(refusal),
                    };
                    self.requests += 1;
                    self.bytes += answer.price;
                    answer.encode(&self.session, &mut self.outbox);
                }
            }
        }
    }

    /// Takes a header and judges the request. Whether one was there.
    fn take_header(&mut self) -> Result<bool, BadMagic> {
        let Some(bytes) = self.input.first_chunk::<{ RequestHeader::BYTES }>() else { return Ok(false) };
        if self.full() {
            return Ok(false);
        }
        let header = RequestHeader::decode(bytes)?;
        self.input.advance(RequestHeader::BYTES);
        let info = self.device.info();
        let shape = Shape {
            size_bytes: info.size_bytes,
            block_min_bytes: info.block_bytes,
            read_only: info.read_only,
            structured: self.session.structured,
            base_allocation: self.session.base_allocation,
        };
        match header.command(&shape) {
            Ok(Command::Disconnect) => self.receiving = false,
            Ok(command) => self.incoming = Incoming::Waiting { header, command },
            Err(refusal) => {
                let left = header.payload_len() as usize;
                self.incoming = Incoming::Refused { header, refusal, left };
            }
        }
        Ok(true)
    }

    /// Receives the payload of an admitted request, if it has any, and starts it.
    fn admit(&mut self, header: RequestHeader, command: Command) {
        let len = header.payload_len() as usize;
        if len == 0 {
            return self.start(header, command, Pieces::new());
        }
        let mut own = None;
        self.ahead = if len > INLINE_BYTES_MAX { NBD_AHEAD_OF_LARGE_BYTES } else { NBD_RECEIVE_BYTES };
        if len > self.input.len() {
            if len > INLINE_BYTES_MAX {
                let mut payload = Payload::new(&self.memory, len);
                while !self.input.is_empty() {
                    let room = payload.room();
                    let n = room.len().min(self.input.len());
                    room[..n].copy_from_slice(&self.input[..n]);
                    self.input.advance(n);
                    payload.arrived(n);
                }
                own = Some(payload);
            } else {
                self.input.reserve(len - self.input.len());
            }
        }
        self.incoming = Incoming::Payload { header, command, own };
    }

    fn start(&mut self, header: RequestHeader, command: Command, data: Pieces) {
        let price = price(&command);
        self.in_flight.push((self.carry_out)(self.device.clone(), header, command, data, price));
    }
}

#[cfg(test)]
mod tests;
