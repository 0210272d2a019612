//! Replies of the transmission phase.
//!
//! Headers come as arrays, so that a front end lays them between payloads that it never copies. A simple reply is
//! magic, error, cookie; a chunk of a structured reply is
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | magic `66 8e 33 ef` |
//! | 4..6 | flags; bit 0: the last chunk of this reply |
//! | 6..8 | type |
//! | 8..16 | cookie |
//! | 16..20 | length of what follows |

use super::{Cookie, Errno};
use crate::limits::NBD_STRING_BYTES_MAX;
use bytes::{BufMut, BytesMut};

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

const DONE: u16 = 1;

const NONE: u16 = 0;
const OFFSET_DATA: u16 = 1;
const OFFSET_HOLE: u16 = 2;
const BLOCK_STATUS: u16 = 5;
const ERROR: u16 = 1 << 15 | 1;

/// The context id under which `base:allocation` is negotiated.
pub(super) const BASE_ALLOCATION_ID: u32 = 1;

/// `base:allocation`: takes no space.
const STATE_HOLE: u32 = 1;
/// `base:allocation`: reads as zeros.
const STATE_ZERO: u32 = 1 << 1;

/// One extent of a BLOCK_STATUS answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Its length in bytes; not zero.
    pub len: u32,
    /// Takes no space.
    pub hole: bool,
    /// Reads as zeros.
    pub zero: bool,
}

/// A simple reply: success, or an error. A successful READ's bytes follow it.
#[must_use]
pub fn simple(cookie: Cookie, error: Option<Errno>) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&SIMPLE_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.map_or(0, |e| e as u32).to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.0.to_be_bytes());
    bytes
}

fn chunk<const N: usize>(kind: u16, done: bool, cookie: Cookie, len: u32) -> [u8; N] {
    let mut bytes = [0; N];
    bytes[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&(if done { DONE } else { 0 }).to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.0.to_be_bytes());
    bytes[16..20].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// The end of a reply that has nothing (more) to say.
#[must_use]
pub fn none(cookie: Cookie) -> [u8; 20] {
    chunk(NONE, true, cookie, 0)
}

/// The head of a chunk of `len` bytes that stand at `offset` of the export; they follow it.
#[must_use]
pub fn data(cookie: Cookie, offset: u64, len: u32, done: bool) -> [u8; 28] {
    let mut bytes = chunk(OFFSET_DATA, done, cookie, len + 8);
    bytes[20..].copy_from_slice(&offset.to_be_bytes());
    bytes
}

/// A chunk that stands for `len` zeros at `offset` of the export.
#[must_use]
pub fn hole(cookie: Cookie, offset: u64, len: u32, done: bool) -> [u8; 32] {
    let mut bytes = chunk(OFFSET_HOLE, done, cookie, 12);
    bytes[20..28].copy_from_slice(&offset.to_be_bytes());
    bytes[28..].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// Appends the error that ends a reply, with its reason, cut at what the protocol takes.
pub fn error(cookie: Cookie, errno: Errno, message: &str, out: &mut BytesMut) {
    let message = &message[..message.floor_char_boundary(NBD_STRING_BYTES_MAX)];
    let head: [u8; 20] = chunk(ERROR, true, cookie, message.len() as u32 + 6);
    out.put_slice(&head);
    out.put_u32(errno as u32);
    out.put_u16(message.len() as u16);
    out.put_slice(message.as_bytes());
}

/// Appends the answer to BLOCK_STATUS: `extents`, of which there is at least one, in the context `base:allocation`.
pub fn block_status(cookie: Cookie, extents: impl ExactSizeIterator<Item = Extent>, out: &mut BytesMut) {
    let head: [u8; 20] = chunk(BLOCK_STATUS, true, cookie, 4 + 8 * extents.len() as u32);
    out.put_slice(&head);
    out.put_u32(BASE_ALLOCATION_ID);
    for extent in extents {
        out.put_u32(extent.len);
        out.put_u32(if extent.hole { STATE_HOLE } else { 0 } | if extent.zero { STATE_ZERO } else { 0 });
    }
}
