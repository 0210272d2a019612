//! Payloads are received into aligned memory, so that a disk can take them as they are.

use bytes::Bytes;
use torus_core::tdp::Memory;
use torus_store::{AlignedBuf, BufferPool};

/// A [`BufferPool`] as TDP's [`Memory`].
#[derive(Clone, Debug)]
pub struct Aligned(pub BufferPool);

impl Memory for Aligned {
    type Buffer = AlignedBuf;

    fn take(&mut self, len: usize) -> AlignedBuf {
        self.0.take(len)
    }

    fn freeze(&mut self, mut buffer: AlignedBuf, len: usize) -> Bytes {
        buffer.truncate(len);
        buffer.freeze()
    }
}
