//! Numbers and texts of a message body, little-endian and in fixed order.

use crate::ids::{Blocks, Epoch, ExtentId, ExtentSeq, VolumeId};
use crate::limits::{EXTENT_BLOCKS_MAX, TDP_TEXT_BYTES_MAX};
use crate::peer::FreeSpace;
use bytes::{BufMut, BytesMut};

/// Why a connection cannot go on: bytes that are not TDP, for the most part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A head without the magic.
    #[error("not a TDP message")]
    NotTdp,
    /// A head that was altered on its way.
    #[error("message head fails its checksum")]
    HeadChecksum,
    /// A body that was altered on its way.
    #[error("message body fails its checksum")]
    BodyChecksum,
    /// A kind that does not exist, or not at this point of the conversation.
    #[error("message of kind {0} does not belong here")]
    Kind(u8),
    /// More than the protocol allows.
    #[error("message with {len} bytes of {what}, where at most {max} are allowed")]
    TooLong {
        /// Body or payload.
        what: &'static str,
        /// What the head claims.
        len: u32,
        /// What is allowed.
        max: u32,
    },
    /// The peer's last word: it parts, and says why.
    #[error("the peer ended the conversation: {0}")]
    Refused(super::Refusal),
    /// A sound checksum over what is no message.
    #[error("message breaks the protocol: {0}")]
    Malformed(&'static str),
}

/// Reads a body from its start; every read is checked.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(WireError::Malformed("body ends early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub fn u8(&mut self) -> Result<u8, WireError> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    pub fn bool(&mut self) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Malformed("a flag that is neither 0 nor 1")),
        }
    }

    /// An id: never zero.
    pub fn id(&mut self) -> Result<u64, WireError> {
        match self.u64()? {
            0 => Err(WireError::Malformed("zero for an id")),
            id => Ok(id),
        }
    }

    pub fn epoch(&mut self) -> Result<Epoch, WireError> {
        self.u64().map(Epoch)
    }

    pub fn extent(&mut self) -> Result<ExtentId, WireError> {
        Ok(ExtentId { volume: VolumeId(self.id()?), seq: ExtentSeq(self.u64()?) })
    }

    /// A length or an offset in an extent.
    pub fn blocks(&mut self) -> Result<Blocks, WireError> {
        match self.u32()? {
            blocks if blocks > EXTENT_BLOCKS_MAX => Err(WireError::Malformed("a block beyond the largest extent")),
            blocks => Ok(blocks),
        }
    }

    /// A count of what follows.
    pub fn count(&mut self, max: usize) -> Result<usize, WireError> {
        match self.u32()? as usize {
            count if count > max => Err(WireError::Malformed("a list longer than allowed")),
            count => Ok(count),
        }
    }

    pub fn free(&mut self) -> Result<FreeSpace, WireError> {
        Ok(FreeSpace { free: self.u32()?, total: self.u32()? })
    }

    pub fn text(&mut self) -> Result<String, WireError> {
        let len = usize::from(self.u16()?);
        if len > TDP_TEXT_BYTES_MAX {
            return Err(WireError::Malformed("a text longer than allowed"));
        }
        let bytes = self.take(len)?;
        core::str::from_utf8(bytes).map(str::to_owned).map_err(|_| WireError::Malformed("a text that is not UTF-8"))
    }

    /// The body must end here.
    pub fn end(self) -> Result<(), WireError> {
        if self.0.is_empty() { Ok(()) } else { Err(WireError::Malformed("body is longer than its content")) }
    }
}

/// Appends an extent's 16 bytes.
pub(super) fn put_extent(out: &mut BytesMut, extent: ExtentId) {
    out.put_u64_le(extent.volume.0);
    out.put_u64_le(extent.seq.0);
}

/// Appends 8 bytes of free space.
pub(super) fn put_free(out: &mut BytesMut, free: FreeSpace) {
    out.put_u32_le(free.free);
    out.put_u32_le(free.total);
}

/// Appends a text, cut to [`TDP_TEXT_BYTES_MAX`] at a character's end.
pub(super) fn put_text(out: &mut BytesMut, text: &str) {
    let cut = &text[..text.floor_char_boundary(TDP_TEXT_BYTES_MAX)];
    out.put_u16_le(cut.len() as u16);
    out.put_slice(cut.as_bytes());
}

/// Refuses what breaks a rule of the protocol.
pub(super) fn ensure(holds: bool, rule: &'static str) -> Result<(), WireError> {
    if holds { Ok(()) } else { Err(WireError::Malformed(rule)) }
}
