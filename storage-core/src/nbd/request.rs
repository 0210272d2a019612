//! Requests of the transmission phase.
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | magic `25 60 95 13` |
//! | 4..6 | command flags |
//! | 6..8 | type |
//! | 8..16 | cookie, returned as it is |
//! | 16..24 | offset |
//! | 24..28 | length; WRITE is followed by as many bytes |

use super::Errno;
use crate::limits::NBD_REQUEST_BYTES_MAX;
use std::borrow::Cow;

const MAGIC: u32 = 0x2560_9513;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const WRITE_ZEROES: u16 = 6;
const BLOCK_STATUS: u16 = 7;

const FLAG_FUA: u16 = 1;
const FLAG_NO_HOLE: u16 = 1 << 1;
const FLAG_DF: u16 = 1 << 2;
const FLAG_REQ_ONE: u16 = 1 << 3;
const FLAG_FAST_ZERO: u16 = 1 << 4;

/// What a client calls a request by. Opaque.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Cookie(pub u64);

/// The stream does not hold a request where one must begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a request begins with {0:#010x} instead of the NBD request magic: the client is broken or out of step")]
pub struct BadMagic(pub u32);

/// A request's header, not yet judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestHeader {
    flags: u16,
    kind: u16,
    /// The client's name for it.
    pub cookie: Cookie,
    offset: u64,
    len: u32,
}

/// What requests are judged against: the export as it is now, and what was negotiated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// The export's size.
    pub size_bytes: u64,
    /// Offsets and lengths are multiples of this.
    pub block_min_bytes: u32,
    /// Takes no writes.
    pub read_only: bool,
    /// Structured replies were negotiated.
    pub structured: bool,
    /// `base:allocation` was selected.
    pub base_allocation: bool,
}

/// A request that can be carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "offset, len and fua mean what they mean in the protocol")]
pub enum Command {
    /// With `whole`, the answer holds one content chunk.
    Read { offset: u64, len: u32, whole: bool },
    /// `len` bytes follow.
    Write { offset: u64, len: u32, fua: bool },
    /// The client is leaving. Not answered.
    Disconnect,
    /// Everything acknowledged becomes durable.
    Flush,
    /// The range is not needed any more.
    Trim { offset: u64, len: u32, fua: bool },
    /// The range reads as zeros; with `no_hole` its space stays. The device is always fast at it, so FAST_ZERO asks nothing more.
    WriteZeroes { offset: u64, len: u32, no_hole: bool, fua: bool },
    /// What is allocated; with `one`, one extent is enough.
    BlockStatus { offset: u64, len: u32, one: bool },
    /// To be answered with success, and nothing else: CACHE (there is no cache to fill), and empty ranges.
    Nothing,
}

/// Why a request is not carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The number the specification asks for.
    pub errno: Errno,
    /// The reason in words; sent where structured replies carry it.
    pub message: Cow<'static, str>,
}

impl Refusal {
    fn new(errno: Errno, message: impl Into<Cow<'static, str>>) -> Self {
        Self { errno, message: message.into() }
    }
}

impl RequestHeader {
    /// Bytes of a header.
    pub const BYTES: usize = 28;

    /// Reads a header.
    ///
    /// # Errors
    /// When it does not begin with the magic number: the stream is out of step, disconnect.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, BadMagic> {
        let u16_at = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) << 16 | u32::from(u16_at(at + 2));
        let u64_at = |at: usize| u64::from(u32_at(at)) << 32 | u64::from(u32_at(at + 4));
        match u32_at(0) {
            MAGIC => Ok(Self {
                flags: u16_at(4),
                kind: u16_at(6),
                cookie: Cookie(u64_at(8)),
                offset: u64_at(16),
                len: u32_at(24),
            }),
            other => Err(BadMagic(other)),
        }
    }

    /// Bytes that follow the header, whether or not the request is refused.
    #[must_use]
    pub fn payload_len(&self) -> u32 {
        if self.is_write() { self.len } else { 0 }
    }

    /// Whether payload follows.
    #[must_use]
    pub fn is_write(&self) -> bool {
        self.kind == WRITE
    }

    /// Whether errors must come as structured replies where those were negotiated.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.kind == READ
    }

    /// Judges the request.
    ///
    /// # Errors
    /// With what to answer instead.
    pub fn command(&self, shape: &Shape) -> Result<Command, Refusal> {
        let Self { offset, len, .. } = *self;
        self.check_flags(shape)?;
        let fua = self.flags & FLAG_FUA != 0;
        let writes = matches!(self.kind, WRITE | TRIM | WRITE_ZEROES);
        if writes && shape.read_only {
            return Err(Refusal::new(Errno::Perm, "the export is read-only"));
        }
        match self.kind {
            DISC => return Ok(Command::Disconnect),
            FLUSH => return Ok(Command::Flush),
            READ | WRITE | TRIM | CACHE | WRITE_ZEROES => self.check_range(shape)?,
            BLOCK_STATUS if !shape.base_allocation => {
                return Err(Refusal::new(Errno::Inval, "no metadata context was selected in the negotiation"));
            }
            BLOCK_STATUS if len == 0 => return Err(Refusal::new(Errno::Inval, "an empty range has no status")),
            BLOCK_STATUS => self.check_range(shape)?,
            other => return Err(Refusal::new(Errno::Inval, format!("command {other} is not known here"))),
        }
        Ok(match self.kind {
            _ if len == 0 => Command::Nothing,
            READ => Command::Read { offset, len, whole: self.flags & FLAG_DF != 0 },
            WRITE => Command::Write { offset, len, fua },
            TRIM => Command::Trim { offset, len, fua },
            WRITE_ZEROES => Command::WriteZeroes { offset, len, no_hole: self.flags & FLAG_NO_HOLE != 0, fua },
            BLOCK_STATUS => Command::BlockStatus { offset, len, one: self.flags & FLAG_REQ_ONE != 0 },
            _ => Command::Nothing,
        })
    }

    fn check_flags(&self, shape: &Shape) -> Result<(), Refusal> {
        // FUA is allowed on every command, also where it means nothing.
        let allowed = FLAG_FUA
            | match self.kind {
                READ if shape.structured => FLAG_DF,
                WRITE_ZEROES => FLAG_NO_HOLE | FLAG_FAST_ZERO,
                BLOCK_STATUS => FLAG_REQ_ONE,
                _ => 0,
            };
        match self.flags & !allowed {
            // A request to leave is one, whatever its flags.
            _ if self.kind == DISC => Ok(()),
            0 => Ok(()),
            odd => Err(Refusal::new(Errno::Inval, format!("flags {odd:#06x} do not belong to command {}", self.kind))),
        }
    }

    fn check_range(&self, shape: &Shape) -> Result<(), Refusal> {
        let Self { offset, len, kind, .. } = *self;
        let carries_payload = matches!(kind, READ | WRITE);
        if carries_payload && len > NBD_REQUEST_BYTES_MAX {
            let message = format!("{len} bytes in one request: at most {NBD_REQUEST_BYTES_MAX} are taken");
            return Err(Refusal::new(Errno::Inval, message));
        }
        let end = offset.checked_add(len.into()).filter(|end| *end <= shape.size_bytes);
        if end.is_none() {
            let errno = if matches!(kind, WRITE | WRITE_ZEROES) { Errno::NoSpc } else { Errno::Inval };
            let message = format!("{len} bytes at {offset} end beyond the export's {} bytes", shape.size_bytes);
            return Err(Refusal::new(errno, message));
        }
        let block = u64::from(shape.block_min_bytes);
        if !offset.is_multiple_of(block) || !u64::from(len).is_multiple_of(block) {
            let message = format!("{len} bytes at {offset} are not whole blocks of {block} bytes");
            return Err(Refusal::new(Errno::Inval, message));
        }
        Ok(())
    }
}
