//! A stand-in device: sparse memory. For tests and measurements of front ends alone; it keeps nothing and replicates
//! nothing, so no product code may reach for it.
//!
//! It copies what is written into place and what is read out of it, as `nbdkit memory` does, so that the two differ by
//! the front end alone.

use super::{BlockDevice, DeviceInfo, IoError, IoErrorKind, StatusExtent, push_extent, push_zeros};
use bytes::BytesMut;
use std::cell::{Cell, RefCell};
use torus_core::format::Pieces;
use torus_core::ids::{BLOCK_BYTES, BLOCK_SIZE};

/// Most extents that one [`BlockDevice::block_status`] answers with.
const STATUS_EXTENTS_MAX: usize = 1024;

/// What is known of one block.
#[derive(Clone, Default)]
enum Block {
    #[default]
    Hole,
    /// Zeros that keep their space.
    Zeros,
    Data(Box<[u8]>),
}

impl Block {
    fn data(&self) -> Option<&[u8]> {
        match self {
            Block::Data(bytes) => Some(bytes),
            Block::Hole | Block::Zeros => None,
        }
    }
}

/// A device of 4 KiB blocks in memory. A block that was never written takes no payload memory.
pub struct MemoryDevice {
    blocks: RefCell<Vec<Block>>,
    read_only: Cell<bool>,
    fail_next: RefCell<Option<IoError>>,
    flushes: Cell<u64>,
    durable_writes: Cell<u64>,
}

impl MemoryDevice {
    /// A device of `size_bytes`, all holes.
    ///
    /// # Panics
    /// When `size_bytes` is not a multiple of 4096.
    #[must_use]
    pub fn new(size_bytes: u64) -> Self {
        assert_eq!(size_bytes % BLOCK_BYTES, 0, "a device is made of whole blocks");
        Self {
            blocks: RefCell::new(vec![Block::Hole; (size_bytes / BLOCK_BYTES) as usize]),
            read_only: Cell::new(false),
            fail_next: RefCell::new(None),
            flushes: Cell::new(0),
            durable_writes: Cell::new(0),
        }
    }

    /// The same, taking no writes from now on.
    #[must_use]
    pub fn read_only(self) -> Self {
        self.read_only.set(true);
        self
    }

    /// Grows the device online.
    ///
    /// # Panics
    /// When `size_bytes` is less than now, or not a multiple of 4096.
    pub fn grow(&self, size_bytes: u64) {
        let blocks = (size_bytes / BLOCK_BYTES) as usize;
        let mut have = self.blocks.borrow_mut();
        assert!(blocks >= have.len() && size_bytes.is_multiple_of(BLOCK_BYTES), "a device only grows, by whole blocks");
        have.resize(blocks, Block::Hole);
    }

    /// Makes the next call answer `error`.
    pub fn fail_next(&self, error: IoError) {
        *self.fail_next.borrow_mut() = Some(error);
    }

    /// Flushes so far.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.flushes.get()
    }

    /// Writes, trims and zeroes with `fua` so far.
    #[must_use]
    pub fn durable_writes(&self) -> u64 {
        self.durable_writes.get()
    }

    fn check(&self, offset: u64, len: u64, writes: bool) -> Result<std::ops::Range<usize>, IoError> {
        if let Some(error) = self.fail_next.take() {
            return Err(error);
        }
        if writes && self.read_only.get() {
            return Err(IoError::new(IoErrorKind::ReadOnly, "memory device is read-only"));
        }
        let size = self.info().size_bytes;
        let whole = offset.is_multiple_of(BLOCK_BYTES) && len.is_multiple_of(BLOCK_BYTES) && len > 0;
        match offset.checked_add(len) {
            Some(end) if whole && end <= size => Ok((offset / BLOCK_BYTES) as usize..(end / BLOCK_BYTES) as usize),
            _ => Err(IoError::new(
                IoErrorKind::Invalid,
                format!("{len} bytes at {offset} are not whole blocks inside a memory device of {size} bytes"),
            )),
        }
    }

    fn fill(&self, offset: u64, len: u64, fua: bool, with: &Block) -> Result<(), IoError> {
        let range = self.check(offset, len, true)?;
        self.blocks.borrow_mut()[range].fill(with.clone());
        self.durable_writes.set(self.durable_writes.get() + u64::from(fua));
        Ok(())
    }
}

impl BlockDevice for MemoryDevice {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            size_bytes: self.blocks.borrow().len() as u64 * BLOCK_BYTES,
            block_bytes: BLOCK_SIZE as u32,
            read_only: self.read_only.get(),
        }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Pieces, IoError> {
        let range = self.check(offset, len.into(), false)?;
        let mut pieces = Pieces::new();
        let blocks = self.blocks.borrow();
        for run in blocks[range].chunk_by(|a, b| a.data().is_some() == b.data().is_some()) {
            let len = run.len() * BLOCK_SIZE;
            if run[0].data().is_none() {
                push_zeros(&mut pieces, len);
                continue;
            }
            let mut bytes = BytesMut::with_capacity(len);
            run.iter().filter_map(Block::data).for_each(|data| bytes.extend_from_slice(data));
            pieces.push(bytes.freeze());
        }
        Ok(pieces)
    }

    async fn write(&self, offset: u64, data: Pieces, fua: bool) -> Result<(), IoError> {
        let range = self.check(offset, data.iter().map(|p| p.len() as u64).sum(), true)?;
        assert!(data.iter().all(|p| p.len().is_multiple_of(BLOCK_SIZE)), "each piece is made of whole blocks");
        let mut blocks = self.blocks.borrow_mut();
        let chunks = data.iter().flat_map(|piece| piece.chunks_exact(BLOCK_SIZE));
        for (block, bytes) in blocks[range].iter_mut().zip(chunks) {
            match block {
                Block::Data(data) => data.copy_from_slice(bytes),
                Block::Hole | Block::Zeros => *block = Block::Data(bytes.into()),
            }
        }
        self.durable_writes.set(self.durable_writes.get() + u64::from(fua));
        Ok(())
    }

    async fn flush(&self) -> Result<(), IoError> {
        if let Some(error) = self.fail_next.take() {
            return Err(error);
        }
        self.flushes.set(self.flushes.get() + 1);
        Ok(())
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoError> {
        self.fill(offset, len, fua, &Block::Hole)
    }

    async fn write_zeroes(&self, offset: u64, len: u64, no_hole: bool, fua: bool) -> Result<(), IoError> {
        self.fill(offset, len, fua, if no_hole { &Block::Zeros } else { &Block::Hole })
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<StatusExtent>, IoError> {
        let range = self.check(offset, len, false)?;
        let mut extents = Vec::new();
        for block in &self.blocks.borrow()[range] {
            let (hole, zero) = (matches!(block, Block::Hole), block.data().is_none());
            push_extent(&mut extents, StatusExtent { len: BLOCK_BYTES, hole, zero });
            if extents.len() > STATUS_EXTENTS_MAX {
                extents.pop();
                break;
            }
        }
        Ok(extents)
    }
}
