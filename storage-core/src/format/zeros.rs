//! Zeros that take no memory, and can be told from others without looking at them.

use super::Pieces;
use bytes::Bytes;

/// Where all zeros come from. It lies in `.bss`, so only what is sent is ever touched, and then it is one page cache-hot
/// page after another.
static ZEROS: [u8; ZEROS_PIECE] = [0; ZEROS_PIECE];
const ZEROS_PIECE: usize = 1 << 20;

/// Appends `len` zeros to `pieces`. They take no memory.
pub fn push_zeros(pieces: &mut Pieces, mut len: usize) {
    while len > 0 {
        let n = len.min(ZEROS_PIECE);
        pieces.push(Bytes::from_static(&ZEROS[..n]));
        len -= n;
    }
}

/// `len` zeros that take no memory.
#[must_use]
pub fn zeros(len: usize) -> Pieces {
    let mut pieces = Pieces::new();
    push_zeros(&mut pieces, len);
    pieces
}

/// Whether `bytes` came from [`zeros`]: told by its address, without a look at the bytes.
#[must_use]
pub fn is_zeros(bytes: &Bytes) -> bool {
    ZEROS.as_ptr_range().contains(&bytes.as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_known_by_their_address_even_when_sliced() {
        let pieces = zeros(ZEROS_PIECE + 4096);
        assert_eq!(pieces.iter().map(Bytes::len).collect::<Vec<_>>(), [ZEROS_PIECE, 4096]);
        assert!(pieces.iter().all(is_zeros));
        assert!(is_zeros(&pieces[1].slice(100..200)));
        assert!(!is_zeros(&Bytes::from(vec![0; 4096])));
    }
}
