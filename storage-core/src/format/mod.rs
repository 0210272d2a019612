//! Bytes on disk. Every format is versioned, little-endian, self-describing and checksummed; `docs/FORMAT.md` shows the
//! same byte tables, and `testdata/` holds golden images that are only ever added to.

pub mod disk;
pub mod frame;
pub mod slot;
pub mod zeros;

pub use frame::{Frame, FrameError, FrameHeader, Record, Stream};

/// Bytes in pieces, in order. One piece for what was received or built whole, more where a frame packs several writes.
pub type Pieces = smallvec::SmallVec<[bytes::Bytes; 2]>;

/// CRC32C (Castagnoli, RFC 3720 §12.1) of `bytes`, the checksum of every format and message here.
#[must_use]
pub fn crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// What an extent's whole content comes to: a chain over its frames' header blocks, which carry the checksums of their
/// payload. Equal digests at equal lengths mean equal bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Digest(pub u64);

impl Digest {
    /// The digest after one more frame, given that frame's header block.
    #[must_use]
    pub fn then(self, header_block: &[u8]) -> Digest {
        Digest(xxhash_rust::xxh3::xxh3_64_with_seed(header_block, self.0))
    }
}

/// Reads the `N` bytes at `at`; the caller has checked the length.
pub(crate) fn get<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(get(bytes, at))
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(get(bytes, at))
}

pub(crate) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(get(bytes, at))
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}
