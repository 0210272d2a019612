//! The fixed head of every message: see the table in [`super`].

use super::wire::WireError;
use crate::format::{crc, get_u32, get_u64, put};
use crate::ids::{BLOCK_SIZE, RpcId};
use crate::limits::{TDP_BODY_BYTES_MAX, TDP_PAYLOAD_BYTES_MAX};

const MAGIC: &[u8; 4] = b"TDP1";
/// Bytes of a head.
pub(super) const HEAD_SIZE: usize = 32;
const CRC_AT: usize = HEAD_SIZE - 4;

/// What a head says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub kind: u8,
    pub body: u32,
    pub payload: u32,
    pub rpc: RpcId,
    pub body_crc: u32,
}

impl Head {
    pub fn encode(&self) -> [u8; HEAD_SIZE] {
        let mut out = [0; HEAD_SIZE];
        put(&mut out, 0, MAGIC);
        out[4] = self.kind;
        put(&mut out, 8, &self.body.to_le_bytes());
        put(&mut out, 12, &self.payload.to_le_bytes());
        put(&mut out, 16, &self.rpc.0.to_le_bytes());
        put(&mut out, 24, &self.body_crc.to_le_bytes());
        let sum = crc(&out[..CRC_AT]);
        put(&mut out, CRC_AT, &sum.to_le_bytes());
        out
    }

    /// The head in `bytes`, its lengths within bounds.
    pub fn decode(bytes: &[u8; HEAD_SIZE]) -> Result<Head, WireError> {
        if &bytes[..4] != MAGIC {
            return Err(WireError::NotTdp);
        }
        if crc(&bytes[..CRC_AT]) != get_u32(bytes, CRC_AT) {
            return Err(WireError::HeadChecksum);
        }
        let head = Head {
            kind: bytes[4],
            body: get_u32(bytes, 8),
            payload: get_u32(bytes, 12),
            rpc: RpcId(get_u64(bytes, 16)),
            body_crc: get_u32(bytes, 24),
        };
        head.within("body", head.body, TDP_BODY_BYTES_MAX)?;
        head.within("payload", head.payload, TDP_PAYLOAD_BYTES_MAX)?;
        if !(head.payload as usize).is_multiple_of(BLOCK_SIZE) {
            return Err(WireError::Malformed("a payload that is not whole blocks"));
        }
        Ok(head)
    }

    pub fn within(&self, what: &'static str, len: u32, max: usize) -> Result<(), WireError> {
        if len as usize > max { Err(WireError::TooLong { what, len, max: max as u32 }) } else { Ok(()) }
    }
}
