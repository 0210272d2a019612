//! Responses: kinds 64 to 74. A body's fields stand in the order in which they are read here.
//!
//! ```text
//! 64 Created    free slots 4, all slots 4
//! 65 Received   length 4
//! 66 Appended   length 4
//! 67 Data       CRC32C of each block, 4 each                  payload: the blocks
//! 68 Fenced     lease in nanoseconds 8, count 4, copies: extent seq 8, state 1 (0 never, 1 unknown,
//!               2 open: length 4, LAC 8, damaged 1; 3 sealed: length 4, digest 8)
//! 69 Frames     end 1                                         payload: header blocks
//! 70 Sealed     length 4, digest 8
//! 71 Deleted    free slots 4, all slots 4
//! 72 Leased     (empty)
//! 73 Rejected   reason 1, then: 0 fenced: epoch 8; 1 no such extent; 2 closed: length 4; 3 wrong offset: length 4;
//!               4 bad bytes: text; 5 past end: length 4; 6 damaged: block 4; 7 no space: free 4, total 4;
//!               8 disk failed: text; 9 too many volumes: how many 8.   A text is its length 2, then UTF-8.
//! 74 Listed     end 1, hidden 1, count 4, extent seqs 8 each
//! ```

use super::sealed::Sealed;
use super::wire::{Reader, WireError, ensure, put_free, put_text};
use crate::format::{Digest, Pieces};
use crate::ids::{BLOCK_SIZE, ExtentSeq, Vseq};
use crate::limits::{FENCE_EXTENTS_MAX, FRAMES_HEADERS_MAX, LIST_EXTENTS_MAX, READ_BLOCKS_MAX};
use crate::peer::{Copy, Rejection, Response};
use crate::time::Duration;
use bytes::{BufMut, Bytes, BytesMut};
use smallvec::{SmallVec, smallvec};

const CREATED: u8 = 64;
const RECEIVED: u8 = 65;
const APPENDED: u8 = 66;
const DATA: u8 = 67;
const FENCED: u8 = 68;
const FRAMES: u8 = 69;
const SEALED: u8 = 70;
const DELETED: u8 = 71;
const LEASED: u8 = 72;
const REJECTED: u8 = 73;
const LISTED: u8 = 74;

impl Sealed for Response {
    fn kind(&self) -> u8 {
        match self {
            Response::Created { .. } => CREATED,
            Response::Received { .. } => RECEIVED,
            Response::Appended { .. } => APPENDED,
            Response::Data { .. } => DATA,
            Response::Fenced { .. } => FENCED,
            Response::Frames { .. } => FRAMES,
            Response::Sealed { .. } => SEALED,
            Response::Deleted { .. } => DELETED,
            Response::Leased => LEASED,
            Response::Listed { .. } => LISTED,
            Response::Rejected(_) => REJECTED,
        }
    }

    fn put_body(&self, out: &mut BytesMut) {
        match self {
            Response::Created { free } | Response::Deleted { free } => put_free(out, *free),
            Response::Received { length } | Response::Appended { length } => out.put_u32_le(*length),
            Response::Data { crcs, bytes } => {
                assert_eq!(crcs.len() * BLOCK_SIZE, bytes.len(), "data without a checksum for each block");
                crcs.iter().for_each(|crc| out.put_u32_le(*crc));
            }
            Response::Fenced { lease, extents } => {
                out.put_u64_le(u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX));
                out.put_u32_le(extents.len() as u32);
                extents.iter().for_each(|(seq, copy)| put_copy(out, *seq, *copy));
            }
            Response::Frames { headers, end } => {
                assert!(headers.len() <= FRAMES_HEADERS_MAX, "{} frame headers in one answer", headers.len());
                assert!(headers.iter().all(|h| h.len() == BLOCK_SIZE), "a frame header that is not a block");
                out.put_u8(u8::from(*end));
            }
            Response::Sealed { length, digest } => {
                out.put_u32_le(*length);
                out.put_u64_le(digest.0);
            }
            Response::Leased => {}
            Response::Listed { extents, end, hidden } => {
                out.put_u8(u8::from(*end));
                out.put_u8(u8::from(*hidden));
                out.put_u32_le(extents.len() as u32);
                extents.iter().for_each(|seq| out.put_u64_le(seq.0));
            }
            Response::Rejected(rejection) => put_rejection(out, rejection),
        }
    }

    fn payload(&self) -> Pieces {
        match self {
            Response::Data { bytes, .. } => smallvec![bytes.clone()],
            Response::Frames { headers, .. } => headers.iter().cloned().collect(),
            _ => Pieces::new(),
        }
    }

    fn take_body(kind: u8, body: &[u8], payload: usize) -> Result<Response, WireError> {
        let mut body = Reader(body);
        let blocks = payload / BLOCK_SIZE;
        ensure(payload == 0 || matches!(kind, DATA | FRAMES), "a payload that does not belong here")?;
        let response = match kind {
            CREATED => Response::Created { free: body.free()? },
            RECEIVED => Response::Received { length: body.blocks()? },
            APPENDED => Response::Appended { length: body.blocks()? },
            DATA => {
                ensure((1..=READ_BLOCKS_MAX as usize).contains(&blocks), "data of no blocks, or of too many")?;
                let crcs: Result<SmallVec<_>, _> = (0..blocks).map(|_| body.u32()).collect();
                Response::Data { crcs: crcs?, bytes: Bytes::new() }
            }
            FENCED => {
                let lease = Duration::from_nanos(body.u64()?);
                let extents: Result<Vec<_>, _> =
                    (0..body.count(FENCE_EXTENTS_MAX)?).map(|_| take_copy(&mut body)).collect();
                Response::Fenced { lease, extents: extents? }
            }
            FRAMES => {
                ensure(blocks <= FRAMES_HEADERS_MAX, "too many frame headers")?;
                Response::Frames { headers: Vec::new(), end: body.bool()? }
            }
            SEALED => Response::Sealed { length: body.blocks()?, digest: Digest(body.u64()?) },
            DELETED => Response::Deleted { free: body.free()? },
            LEASED => Response::Leased,
            LISTED => {
                let (end, hidden) = (body.bool()?, body.bool()?);
                let extents: Result<Vec<_>, _> =
                    (0..body.count(LIST_EXTENTS_MAX)?).map(|_| body.u64().map(ExtentSeq)).collect();
                Response::Listed { extents: extents?, end, hidden }
            }
            REJECTED => Response::Rejected(take_rejection(&mut body)?),
            other => return Err(WireError::Kind(other)),
        };
        body.end()?;
        Ok(response)
    }

    fn attach(&mut self, payload: Bytes) {
        match self {
            Response::Data { bytes, .. } => *bytes = payload,
            Response::Frames { headers, .. } => {
                *headers =
                    (0..payload.len()).step_by(BLOCK_SIZE).map(|at| payload.slice(at..at + BLOCK_SIZE)).collect();
            }
            other => unreachable!("a response of kind {} was taken with a payload", other.kind()),
        }
    }
}

fn put_copy(out: &mut BytesMut, seq: ExtentSeq, copy: Copy) {
    out.put_u64_le(seq.0);
    match copy {
        Copy::Never => out.put_u8(0),
        Copy::Unknown => out.put_u8(1),
        Copy::Open { length, lac, damaged } => {
            out.put_u8(2);
            out.put_u32_le(length);
            out.put_u64_le(lac.0);
            out.put_u8(u8::from(damaged));
        }
        Copy::Sealed { length, digest } => {
            out.put_u8(3);
            out.put_u32_le(length);
            out.put_u64_le(digest.0);
        }
    }
}

fn take_copy(body: &mut Reader<'_>) -> Result<(ExtentSeq, Copy), WireError> {
    let seq = ExtentSeq(body.u64()?);
    let copy = match body.u8()? {
        0 => Copy::Never,
        1 => Copy::Unknown,
        2 => Copy::Open { length: body.blocks()?, lac: Vseq(body.u64()?), damaged: body.bool()? },
        3 => Copy::Sealed { length: body.blocks()?, digest: Digest(body.u64()?) },
        _ => return Err(WireError::Malformed("unknown state of a copy")),
    };
    Ok((seq, copy))
}

fn put_rejection(out: &mut BytesMut, rejection: &Rejection) {
    match rejection {
        Rejection::Fenced { epoch } => {
            out.put_u8(0);
            out.put_u64_le(epoch.0);
        }
        Rejection::NoSuchExtent => out.put_u8(1),
        Rejection::Closed { length } => {
            out.put_u8(2);
            out.put_u32_le(*length);
        }
        Rejection::WrongOffset { length } => {
            out.put_u8(3);
            out.put_u32_le(*length);
        }
        Rejection::BadBytes(why) => {
            out.put_u8(4);
            put_text(out, why);
        }
        Rejection::PastEnd { length } => {
            out.put_u8(5);
            out.put_u32_le(*length);
        }
        Rejection::Damaged { block } => {
            out.put_u8(6);
            out.put_u32_le(*block);
        }
        Rejection::NoSpace { free } => {
            out.put_u8(7);
            put_free(out, *free);
        }
        Rejection::DiskFailed(why) => {
            out.put_u8(8);
            put_text(out, why);
        }
        Rejection::TooManyVolumes(count) => {
            out.put_u8(9);
            out.put_u64_le(*count as u64);
        }
        Rejection::NewerCopy { copy } => {
            out.put_u8(10);
            out.put_u64_le(*copy);
        }
    }
}

fn take_rejection(body: &mut Reader<'_>) -> Result<Rejection, WireError> {
    Ok(match body.u8()? {
        0 => Rejection::Fenced { epoch: body.epoch()? },
        1 => Rejection::NoSuchExtent,
        2 => Rejection::Closed { length: body.blocks()? },
        3 => Rejection::WrongOffset { length: body.blocks()? },
        4 => Rejection::BadBytes(body.text()?),
        5 => Rejection::PastEnd { length: body.blocks()? },
        6 => Rejection::Damaged { block: body.blocks()? },
        7 => Rejection::NoSpace { free: body.free()? },
        8 => Rejection::DiskFailed(body.text()?),
        9 => Rejection::TooManyVolumes(usize::try_from(body.u64()?).unwrap_or(usize::MAX)),
        10 => Rejection::NewerCopy { copy: body.u64()? },
        _ => return Err(WireError::Malformed("unknown rejection")),
    })
}
