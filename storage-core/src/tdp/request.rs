//! Requests: kinds 16 to 25. A body's fields stand in the order in which they are read here.
//!
//! ```text
//! 16 Create   extent 16, epoch 8, stream 1, class 1
//! 17 Append   extent 16, epoch 8, offset 4, early 1             payload: the frame
//! 18 Read     extent 16, epoch 8, offset 4, blocks 4
//! 19 Fence    volume 8, epoch 8, count 4, extent seqs 8 each
//! 20 Frames   extent 16, epoch 8, from 4
//! 21 Fill     extent 16, epoch 8, stream 1, copy 8, offset 4    payload: raw frames
//! 22 Seal     extent 16, epoch 8, length 4
//! 23 Delete   extent 16, epoch 8, copy 8
//! 24 Lease    volume 8, epoch 8
//! 25 List     volume 8, epoch 8, from extent seq 8
//! ```

use super::sealed::Sealed;
use super::wire::{Reader, WireError, ensure, put_extent};
use crate::format::{Frame, Pieces, Stream};
use crate::ids::{BLOCK_SIZE, ExtentSeq, VolumeId};
use crate::limits::{FENCE_EXTENTS_MAX, READ_BLOCKS_MAX};
use crate::peer::{Class, Request};
use bytes::{BufMut, Bytes, BytesMut};
use smallvec::smallvec;

const CREATE: u8 = 16;
const APPEND: u8 = 17;
const READ: u8 = 18;
const FENCE: u8 = 19;
const FRAMES: u8 = 20;
const FILL: u8 = 21;
const SEAL: u8 = 22;
const DELETE: u8 = 23;
const LEASE: u8 = 24;
const LIST: u8 = 25;

impl Sealed for Request {
    fn kind(&self) -> u8 {
        match self {
            Request::Create { .. } => CREATE,
            Request::Append { .. } => APPEND,
            Request::Read { .. } => READ,
            Request::Fence { .. } => FENCE,
            Request::Frames { .. } => FRAMES,
            Request::Fill { .. } => FILL,
            Request::Seal { .. } => SEAL,
            Request::Delete { .. } => DELETE,
            Request::Lease { .. } => LEASE,
            Request::List { .. } => LIST,
        }
    }

    fn put_body(&self, out: &mut BytesMut) {
        match self {
            Request::Create { extent, epoch, stream, class } => {
                put_extent(out, *extent);
                out.put_u64_le(epoch.0);
                out.put_u8(stream_code(*stream));
                out.put_u8(match class {
                    Class::Data => 0,
                    Class::Reserve => 1,
                });
            }
            Request::Append { extent, epoch, offset, frame: _, early } => {
                put_extent(out, *extent);
                out.put_u64_le(epoch.0);
                out.put_u32_le(*offset);
                out.put_u8(u8::from(*early));
            }
            Request::Read { extent, epoch, offset, blocks } => {
                put_extent(out, *extent);
                out.put_u64_le(epoch.0);
                out.put_u32_le(*offset);
                out.put_u32_le(*blocks);
            }
            Request::Fence { volume, epoch, extents } => {
                out.put_u64_le(volume.0);
                out.put_u64_le(epoch.0);
                out.put_u32_le(extents.len() as u32);
                extents.iter().for_each(|seq| out.put_u64_le(seq.0));
            }
            Request::Frames { extent, epoch, from } => {
                put_extent(out, *extent);
                out.put_u64_le(epoch.0);
                out.put_u32_le(*from);
            }
            Request::Fill { extent, epoch, stream, copy, offset, bytes: _ } => {
                put_extent(out, *extent);
                out.put_u64_le(epoch.0);
                out.put_u8(stream_code(*stream));
                out.put_u64_le(*copy);
                out.put_u32_le(*offset);
            }
            Request::Seal { extent, epoch, length } => {
                put_extent(out, *extent);
                out.put_u64_le(epoch.0);
                out.put_u32_le(*length);
            }
            Request::Delete { extent, epoch, copy } => {
                put_extent(out, *extent);
                out.put_u64_le(epoch.0);
                out.put_u64_le(*copy);
            }
            Request::Lease { volume, epoch } => {
                out.put_u64_le(volume.0);
                out.put_u64_le(epoch.0);
            }
            Request::List { volume, epoch, from } => {
                out.put_u64_le(volume.0);
                out.put_u64_le(epoch.0);
                out.put_u64_le(from.0);
            }
        }
    }

    fn payload(&self) -> Pieces {
        match self {
            Request::Append { frame, .. } => {
                core::iter::once(&frame.header).chain(&frame.payload).map(Bytes::clone).collect()
            }
            Request::Fill { bytes, .. } => bytes.clone(),
            _ => Pieces::new(),
        }
    }

    fn take_body(kind: u8, body: &[u8], payload: usize) -> Result<Request, WireError> {
        let mut body = Reader(body);
        ensure((payload > 0) == matches!(kind, APPEND | FILL), "a payload is missing, or there is one too many")?;
        let request = match kind {
            CREATE => Request::Create {
                extent: body.extent()?,
                epoch: body.epoch()?,
                stream: take_stream(&mut body)?,
                class: match body.u8()? {
                    0 => Class::Data,
                    1 => Class::Reserve,
                    _ => return Err(WireError::Malformed("unknown class")),
                },
            },
            APPEND => Request::Append {
                extent: body.extent()?,
                epoch: body.epoch()?,
                offset: body.blocks()?,
                frame: Frame { header: Bytes::new(), payload: Pieces::new() },
                early: body.bool()?,
            },
            READ => {
                let (extent, epoch, offset, blocks) = (body.extent()?, body.epoch()?, body.blocks()?, body.u32()?);
                ensure((1..=READ_BLOCKS_MAX).contains(&blocks), "a read of no blocks, or of too many")?;
                Request::Read { extent, epoch, offset, blocks }
            }
            FENCE => {
                let (volume, epoch) = (VolumeId(body.id()?), body.epoch()?);
                let extents: Result<Vec<_>, _> =
                    (0..body.count(FENCE_EXTENTS_MAX)?).map(|_| body.u64().map(ExtentSeq)).collect();
                Request::Fence { volume, epoch, extents: extents? }
            }
            FRAMES => Request::Frames { extent: body.extent()?, epoch: body.epoch()?, from: body.blocks()? },
            FILL => Request::Fill {
                extent: body.extent()?,
                epoch: body.epoch()?,
                stream: take_stream(&mut body)?,
                copy: body.u64()?,
                offset: body.blocks()?,
                bytes: Pieces::new(),
            },
            SEAL => Request::Seal { extent: body.extent()?, epoch: body.epoch()?, length: body.blocks()? },
            DELETE => Request::Delete { extent: body.extent()?, epoch: body.epoch()?, copy: body.u64()? },
            LEASE => Request::Lease { volume: VolumeId(body.id()?), epoch: body.epoch()? },
            LIST => Request::List { volume: VolumeId(body.id()?), epoch: body.epoch()?, from: ExtentSeq(body.u64()?) },
            other => return Err(WireError::Kind(other)),
        };
        body.end()?;
        Ok(request)
    }

    fn attach(&mut self, payload: Bytes) {
        match self {
            Request::Append { frame, .. } => {
                frame.header = payload.slice(..BLOCK_SIZE);
                if payload.len() > BLOCK_SIZE {
                    frame.payload = smallvec![payload.slice(BLOCK_SIZE..)];
                }
            }
            Request::Fill { bytes, .. } => *bytes = smallvec![payload],
            other => unreachable!("a request of kind {} was taken with a payload", other.kind()),
        }
    }
}

fn stream_code(stream: Stream) -> u8 {
    match stream {
        Stream::Log => 0,
        Stream::Checkpoint => 1,
    }
}

fn take_stream(body: &mut Reader<'_>) -> Result<Stream, WireError> {
    match body.u8()? {
        0 => Ok(Stream::Log),
        1 => Ok(Stream::Checkpoint),
        _ => Err(WireError::Malformed("unknown stream")),
    }
}
