//! Messages on their way in.

use super::Message;
use super::greeting::{HELLO, Hello, REFUSAL, Refusal, WELCOME, Welcome};
use super::head::{HEAD_SIZE, Head};
use super::wire::WireError;
use crate::format::{crc, get};
use crate::ids::RpcId;
use crate::limits::{TDP_AHEAD_OF_LARGE_BYTES, TDP_GREETING_BYTES_MAX, TDP_STAGING_BYTES};
use bytes::Bytes;
use std::io::IoSliceMut;

/// Where payloads go: a pool of aligned buffers on an agent, plain memory elsewhere.
pub trait Memory {
    /// Memory that is being filled.
    type Buffer: AsMut<[u8]>;
    /// A buffer of at least `len` bytes, `len` being at most
    /// [`TDP_PAYLOAD_BYTES_MAX`](crate::limits::TDP_PAYLOAD_BYTES_MAX). What it holds does not matter.
    fn take(&mut self, len: usize) -> Self::Buffer;
    /// Its first `len` bytes, now that they are filled.
    fn freeze(&mut self, buffer: Self::Buffer, len: usize) -> Bytes;
}

/// Bytes of one connection on their way to being messages of type `T`.
///
/// Heads and bodies are read into a staging area, many at a time. The first part of a payload usually comes with them
/// and is copied to where it belongs; the rest is read there directly. After a large payload another is expected, and
/// little more than its head is read ahead. A driver's turn is: read into
/// [`Inbox::space`], say how much with [`Inbox::received`], then call [`Inbox::next`] until it gives `None`.
#[derive(Debug)]
pub struct Inbox<T, B> {
    staging: Vec<u8>,
    /// What is received and not yet looked at: `staging[start..end]`.
    start: usize,
    end: usize,
    /// How much is read into an empty staging area.
    ahead: usize,
    /// A message whose payload is not complete.
    filling: Option<Filling<T, B>>,
}

#[derive(Debug)]
struct Filling<T, B> {
    rpc: RpcId,
    message: T,
    buffer: B,
    filled: usize,
    len: usize,
}

/// A server's answer to a greeting.
type Greeted = Result<Welcome, Refusal>;

impl<T: Message, B: AsMut<[u8]>> Default for Inbox<T, B> {
    fn default() -> Self {
        Inbox { staging: vec![0; TDP_STAGING_BYTES], start: 0, end: 0, ahead: TDP_STAGING_BYTES, filling: None }
    }
}

impl<T: Message, B: AsMut<[u8]>> Inbox<T, B> {
    /// Where to read to next, in order: what the current payload lacks (empty when there is none), then staging. Never
    /// empty altogether.
    pub fn space(&mut self) -> [IoSliceMut<'_>; 2] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.staging.len() {
            self.staging.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let payload = match &mut self.filling {
            // The payload comes first on the wire, so it may only be read directly once staging is used up.
            Some(f) if self.start == self.end => &mut f.buffer.as_mut()[f.filled..f.len],
            _ => &mut [],
        };
        let until = if self.end == 0 { self.ahead } else { self.staging.len() };
        [IoSliceMut::new(payload), IoSliceMut::new(&mut self.staging[self.end..until])]
    }

    /// Says that `len` bytes were read into what [`Inbox::space`] gave.
    ///
    /// # Panics
    /// When that is more than it gave.
    pub fn received(&mut self, len: usize) {
        let mut staged = len;
        if let Some(f) = self.filling.as_mut().filter(|_| self.start == self.end) {
            let direct = len.min(f.len - f.filled);
            f.filled += direct;
            staged -= direct;
        }
        self.end += staged;
        assert!(self.end <= self.staging.len(), "{len} bytes received are more than there was space for");
    }

    /// The next complete message.
    ///
    /// # Errors
    /// On bytes that are none; the connection has to end.
    pub fn next<M: Memory<Buffer = B>>(&mut self, memory: &mut M) -> Result<Option<(RpcId, T)>, WireError> {
        if self.filling.is_none() {
            let Some(head) = self.head()? else { return Ok(None) };
            let Some(body) = self.body(&head)? else { return Ok(None) };
            if head.kind == REFUSAL {
                return Err(WireError::Refused(Refusal::take(&self.staging[body])?));
            }
            let len = head.payload as usize;
            let message = T::take_body(head.kind, &self.staging[body.clone()], len)?;
            self.start = body.end;
            if len == 0 {
                return Ok(Some((head.rpc, message)));
            }
            self.ahead = if len >= TDP_STAGING_BYTES { TDP_AHEAD_OF_LARGE_BYTES } else { TDP_STAGING_BYTES };
            self.filling = Some(Filling { rpc: head.rpc, message, buffer: memory.take(len), filled: 0, len });
        }
        let Some(mut f) = self.filling.take() else { return Ok(None) };
        let staged = (self.end - self.start).min(f.len - f.filled);
        f.buffer.as_mut()[f.filled..f.filled + staged].copy_from_slice(&self.staging[self.start..self.start + staged]);
        self.start += staged;
        f.filled += staged;
        if f.filled < f.len {
            self.filling = Some(f);
            return Ok(None);
        }
        let Filling { rpc, mut message, buffer, len, .. } = f;
        message.attach(memory.freeze(buffer, len));
        Ok(Some((rpc, message)))
    }

    /// A client's greeting: the first message a server takes.
    ///
    /// # Errors
    /// On anything else.
    pub fn hello(&mut self) -> Result<Option<Hello>, WireError> {
        self.greeting(|kind, body| match kind {
            HELLO => Hello::take(body),
            other => Err(WireError::Kind(other)),
        })
    }

    /// A server's answer to the greeting: the first message a client takes.
    ///
    /// # Errors
    /// On anything else.
    pub fn welcome(&mut self) -> Result<Option<Greeted>, WireError> {
        self.greeting(|kind, body| match kind {
            WELCOME => Welcome::take(body).map(Ok),
            REFUSAL => Refusal::take(body).map(Err),
            other => Err(WireError::Kind(other)),
        })
    }

    fn greeting<G>(&mut self, take: impl FnOnce(u8, &[u8]) -> Result<G, WireError>) -> Result<Option<G>, WireError> {
        let Some(head) = self.head()? else { return Ok(None) };
        head.within("body", head.body, TDP_GREETING_BYTES_MAX)?;
        head.within("payload", head.payload, 0)?;
        let Some(body) = self.body(&head)? else { return Ok(None) };
        let greeting = take(head.kind, &self.staging[body.clone()])?;
        self.start = body.end;
        Ok(Some(greeting))
    }

    fn head(&self) -> Result<Option<Head>, WireError> {
        if self.end - self.start < HEAD_SIZE {
            return Ok(None);
        }
        Head::decode(&get(&self.staging, self.start)).map(Some)
    }

    /// Where the body of the message lies that begins at `start`, once all of it is there.
    fn body(&mut self, head: &Head) -> Result<Option<std::ops::Range<usize>>, WireError> {
        let whole = HEAD_SIZE + head.body as usize;
        if self.end - self.start < whole {
            if self.staging.len() < whole {
                self.staging.resize(whole, 0);
            }
            if self.start + whole > self.staging.len() {
                self.staging.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            return Ok(None);
        }
        let body = self.start + HEAD_SIZE..self.start + whole;
        if crc(&self.staging[body.clone()]) != head.body_crc {
            return Err(WireError::BodyChecksum);
        }
        Ok(Some(body))
    }
}
