//! One request, from what the client asked to the bytes that answer it.

use super::errno;
use super::outbox::Outbox;
use crate::device::{BlockDevice, IoError, StatusExtent, is_zeros};
use bytes::{Bytes, BytesMut};
use std::borrow::Cow;
use std::rc::Rc;
use torus_core::format::Pieces;
use torus_core::limits::NBD_STATUS_EXTENTS_MAX;
use torus_core::nbd::reply::{self, Extent};
use torus_core::nbd::{Command, Cookie, Refusal, RequestHeader, Session};

/// Zeros from this length on go out as a hole, where the client takes one: shorter ones cost less as bytes.
const HOLE_BYTES_MIN: usize = 4096;

/// What a request counts for besides its payload.
const OVERHEAD_BYTES: usize = 256;

/// An answer on its way out.
pub(super) struct Completion {
    pub(super) cookie: Cookie,
    /// READ is answered by structured replies alone, where those were negotiated.
    pub(super) is_read: bool,
    /// What the request was admitted at.
    pub(super) price: usize,
    pub(super) outcome: Outcome,
}

/// How a request ended.
pub(super) enum Outcome {
    Done,
    Data { offset: u64, pieces: Pieces, whole: bool },
    Status(Vec<StatusExtent>),
    Failed(Refusal),
}

/// Bytes that `command` may make the server hold.
pub(super) fn price(command: &Command) -> usize {
    OVERHEAD_BYTES
        + match command {
            Command::Read { len, .. } | Command::Write { len, .. } => *len as usize,
            Command::BlockStatus { .. } => NBD_STATUS_EXTENTS_MAX * size_of::<StatusExtent>(),
            _ => 0,
        }
}

/// Has `device` carry `command` out, which `header` was judged to be; `data` is a write's payload.
pub(super) async fn carry_out<D: BlockDevice>(
    device: Rc<D>,
    header: RequestHeader,
    command: Command,
    data: Pieces,
    price: usize,
) -> Completion {
    let done = |result: Result<(), IoError>| result.map(|()| Outcome::Done);
    let result = match command {
        Command::Read { offset, len, whole } => {
            device.read(offset, len).await.map(|pieces| Outcome::Data { offset, pieces, whole })
        }
        Command::Write { offset, fua, .. } => done(device.write(offset, data, fua).await),
        Command::Flush => done(device.flush().await),
        Command::Trim { offset, len, fua } => done(device.trim(offset, len.into(), fua).await),
        Command::WriteZeroes { offset, len, no_hole, fua } => {
            done(device.write_zeroes(offset, len.into(), no_hole, fua).await)
        }
        Command::BlockStatus { offset, len, one } => {
            device.block_status(offset, len.into()).await.map(|extents| Outcome::Status(trim_status(extents, len, one)))
        }
        Command::Disconnect | Command::Nothing => Ok(Outcome::Done),
    };
    let outcome = result.unwrap_or_else(|error| {
        tracing::debug!(?command, %error, "a request failed");
        Outcome::Failed(Refusal { errno: errno(error.kind), message: Cow::Owned(error.message) })
    });
    Completion { cookie: header.cookie, is_read: header.is_read(), price, outcome }
}

/// Never more than was asked for, nor more extents than an answer may have.
fn trim_status(mut extents: Vec<StatusExtent>, len: u32, one: bool) -> Vec<StatusExtent> {
    extents.truncate(if one { 1 } else { NBD_STATUS_EXTENTS_MAX });
    let mut left = u64::from(len);
    for extent in &mut extents {
        extent.len = extent.len.min(left);
        left -= extent.len;
    }
    extents.retain(|e| e.len > 0);
    extents
}

impl Completion {
    /// Puts the answer into `outbox`.
    pub(super) fn encode(self, session: &Session, outbox: &mut Outbox) {
        let cookie = self.cookie;
        match self.outcome {
            Outcome::Done if self.is_read && session.structured => outbox.head(&reply::none(cookie)),
            Outcome::Done => outbox.head(&reply::simple(cookie, None)),
            Outcome::Failed(Refusal { errno, message }) if session.structured => {
                let mut bytes = BytesMut::new();
                reply::error(cookie, errno, &message, &mut bytes);
                outbox.head(&bytes);
            }
            Outcome::Failed(refusal) => outbox.head(&reply::simple(cookie, Some(refusal.errno))),
            Outcome::Status(extents) => {
                assert!(!extents.is_empty(), "a device tells the status of at least the first block");
                let extents = extents.iter().map(|e| Extent { len: e.len as u32, hole: e.hole, zero: e.zero });
                let mut bytes = BytesMut::new();
                reply::block_status(cookie, extents, &mut bytes);
                outbox.head(&bytes);
            }
            Outcome::Data { pieces, .. } if !session.structured => {
                outbox.head(&reply::simple(cookie, None));
                pieces.into_iter().for_each(|piece| outbox.payload(piece));
            }
            Outcome::Data { offset, pieces, whole } => encode_chunks(cookie, offset, pieces, whole, outbox),
        }
        outbox.end(self.price);
    }
}

/// Data as it is, long runs of zeros as holes; with `whole` one chunk of data.
fn encode_chunks(cookie: Cookie, mut offset: u64, pieces: Pieces, whole: bool, outbox: &mut Outbox) {
    let mut rest = &pieces[..];
    while !rest.is_empty() {
        let as_hole = |run: &[Bytes]| !whole && run_len(run) >= HOLE_BYTES_MIN;
        let zeros = zeros_ahead(rest);
        let (run, after, hole) = if as_hole(&rest[..zeros]) {
            (&rest[..zeros], &rest[zeros..], true)
        } else {
            // Up to the next run of zeros that is worth a hole.
            let mut end = zeros;
            while end < rest.len() {
                let zeros = zeros_ahead(&rest[end..]);
                if as_hole(&rest[end..end + zeros]) {
                    break;
                }
                end += zeros.max(1);
            }
            (&rest[..end], &rest[end..], false)
        };
        let (len, done) = (run_len(run) as u32, after.is_empty());
        if hole {
            outbox.head(&reply::hole(cookie, offset, len, done));
        } else {
            outbox.head(&reply::data(cookie, offset, len, done));
            run.iter().for_each(|piece| outbox.payload(piece.clone()));
        }
        offset += u64::from(len);
        rest = after;
    }
}

/// How many pieces at the front are zeros.
fn zeros_ahead(pieces: &[Bytes]) -> usize {
    pieces.iter().take_while(|piece| is_zeros(piece)).count()
}

fn run_len(pieces: &[Bytes]) -> usize {
    pieces.iter().map(Bytes::len).sum()
}
