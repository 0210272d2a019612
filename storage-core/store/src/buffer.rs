//! Aligned memory, pooled.
//!
//! O_DIRECT wants memory that begins at a multiple of the device's block; an allocator gives that only if asked, and
//! zeroes or faults in the pages of a big buffer every time. So buffers begin at a 4 KiB boundary, come from a
//! [`BufferPool`], turn into [`Bytes`] without a copy, and find their way home when the last `Bytes` over them is
//! dropped, on whatever thread that happens.
//!
//! 1. A buffer's memory is initialised at all times. Its *content* is whatever its last user left: who takes one fills
//!    it, and cuts it ([`AlignedBuf::truncate`]) to what was filled, before anyone else may see it.
//! 2. A pool keeps at most `idle_bytes_max` for later. What is in use is not bounded here but by whoever asks: every
//!    taker has a limit of its own on requests in flight.
//!
//! There is no unsafe code here: `zerocopy` proves that a block is plain bytes.

use bytes::Bytes;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use torus_core::ids::BLOCK_SIZE;
use torus_core::limits::FRAME_BLOCKS_MAX;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// A block of memory, and the reason why buffers are aligned.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Block([u8; BLOCK_SIZE]);

const _: () = assert!(size_of::<Block>() == BLOCK_SIZE && align_of::<Block>() == BLOCK_SIZE);

/// Blocks of the buffers that a pool keeps: powers of two, and one that just holds the largest frame.
const CLASSES: [usize; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, FRAME_BLOCKS_MAX as usize];

/// A store of aligned buffers, shared by cloning.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

struct Shared {
    idle: Mutex<Idle>,
    idle_bytes_max: usize,
    in_use_bytes: AtomicUsize,
}

#[derive(Default)]
struct Idle {
    bytes: usize,
    classes: [Vec<Vec<Block>>; CLASSES.len()],
}

impl Shared {
    fn idle(&self) -> MutexGuard<'_, Idle> {
        // Lists of free memory are whole whatever a panicking thread was doing.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BufferPool {
    /// A pool that keeps up to `idle_bytes_max` bytes of returned buffers. It allocates nothing before the first
    /// [`take`](Self::take).
    #[must_use]
    pub fn new(idle_bytes_max: usize) -> Self {
        let shared = Shared { idle: Mutex::default(), idle_bytes_max, in_use_bytes: AtomicUsize::new(0) };
        Self { shared: Arc::new(shared) }
    }

    /// A buffer of `len` bytes with unspecified content (see the module's rule 1). Larger than the largest frame, it
    /// is allocated for this once and not kept.
    #[must_use]
    pub fn take(&self, len: usize) -> AlignedBuf {
        let want = len.div_ceil(BLOCK_SIZE);
        let class = CLASSES.iter().position(|&blocks| blocks >= want);
        let kept = class.and_then(|class| {
            let mut idle = self.shared.idle();
            let memory = idle.classes[class].pop()?;
            idle.bytes -= memory.len() * BLOCK_SIZE;
            Some(memory)
        });
        let memory = kept.unwrap_or_else(|| {
            let blocks = class.map_or(want, |class| CLASSES[class]);
            Block::new_vec_zeroed(blocks).expect("memory for a buffer: the allocator aborts without")
        });
        self.shared.in_use_bytes.fetch_add(memory.len() * BLOCK_SIZE, Ordering::Relaxed);
        AlignedBuf { memory, len, home: Arc::clone(&self.shared) }
    }

    /// Bytes of buffers taken and not yet returned, for limits and metrics.
    #[must_use]
    pub fn in_use_bytes(&self) -> usize {
        self.shared.in_use_bytes.load(Ordering::Relaxed)
    }

    /// Bytes kept for later.
    #[must_use]
    pub fn idle_bytes(&self) -> usize {
        self.shared.idle().bytes
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (in_use, idle) = (self.in_use_bytes(), self.idle_bytes());
        f.debug_struct("BufferPool").field("in_use_bytes", &in_use).field("idle_bytes", &idle).finish_non_exhaustive()
    }
}

/// A buffer that begins at a 4 KiB boundary and goes back to its pool when dropped.
pub struct AlignedBuf {
    /// Never grows or shrinks.
    memory: Vec<Block>,
    len: usize,
    home: Arc<Shared>,
}

impl AlignedBuf {
    /// Bytes it could hold; at least what was asked for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.memory.len() * BLOCK_SIZE
    }

    /// Cuts it to its first `len` bytes; longer than it is changes nothing.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Its content for sharing, without a copy. The memory returns to the pool when the last clone or slice is dropped.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory.as_bytes()[..self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory.as_mut_bytes()[..self.len]
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for AlignedBuf {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl From<AlignedBuf> for Bytes {
    fn from(buffer: AlignedBuf) -> Bytes {
        buffer.freeze()
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} of {} bytes)", self.len, self.capacity())
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        let bytes = memory.len() * BLOCK_SIZE;
        self.home.in_use_bytes.fetch_sub(bytes, Ordering::Relaxed);
        let Some(class) = CLASSES.iter().position(|&blocks| blocks == memory.len()) else { return };
        let mut idle = self.home.idle();
        if idle.bytes + bytes <= self.home.idle_bytes_max {
            idle.bytes += bytes;
            idle.classes[class].push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_as_long_as_asked() {
        let pool = BufferPool::new(0);
        for len in [0, 1, 4096, 4097, 8192, 257 * 4096, 300 * 4096] {
            let buffer = pool.take(len);
            assert_eq!(buffer.len(), len);
            assert!(buffer.capacity() >= len);
            assert_eq!(buffer.as_ptr() as usize % 4096, 0);
        }
        assert_eq!(pool.take(257 * 4096).capacity(), 257 * 4096, "the largest frame fits its class exactly");
    }

    #[test]
    fn memory_returns_with_the_last_slice_and_is_used_again() {
        let pool = BufferPool::new(1 << 20);
        let mut buffer = pool.take(8192);
        buffer[..3].copy_from_slice(b"abc");
        let place = buffer.as_ptr();
        let bytes = buffer.freeze();
        assert_eq!(bytes.as_ptr(), place, "no copy");
        let slice = bytes.slice(..3);
        drop(bytes);
        assert_eq!((pool.in_use_bytes(), pool.idle_bytes()), (8192, 0));
        std::thread::spawn(move || assert_eq!(slice, "abc")).join().unwrap();
        assert_eq!((pool.in_use_bytes(), pool.idle_bytes()), (0, 8192));
        let again = pool.take(5000);
        assert_eq!((again.as_ptr(), again.len(), pool.idle_bytes()), (place, 5000, 0));
    }

    #[test]
    fn no_more_is_kept_than_allowed() {
        let pool = BufferPool::new(3 * 4096);
        let taken: Vec<_> = (0..5).map(|_| pool.take(4096)).collect();
        assert_eq!(pool.in_use_bytes(), 5 * 4096);
        drop(taken);
        assert_eq!((pool.in_use_bytes(), pool.idle_bytes()), (0, 3 * 4096));
        drop(pool.take(400 * 4096));
        assert_eq!(pool.idle_bytes(), 3 * 4096, "a buffer of no class is not kept");
    }

    #[test]
    fn a_cut_buffer_shows_only_what_was_filled() {
        let pool = BufferPool::new(0);
        let mut buffer = pool.take(4096);
        buffer.truncate(10);
        buffer.truncate(4000);
        assert_eq!(buffer.freeze().len(), 10);
    }
}
