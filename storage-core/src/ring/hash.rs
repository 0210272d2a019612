//! The numbers behind placement: xxh3 with fixed seeds, and a logarithm made of integers.

use crate::ids::AgentId;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What a number is drawn for. Each has its own seed, or one draw would follow from another: a `map` that gives a range
/// of keys to its fallback must not give it a range of the fallback's circle.
#[derive(Clone, Copy)]
#[repr(u64)]
pub(super) enum Draw {
    Key = 0x546f_7275_7301,
    Rendezvous = 0x546f_7275_7302,
    KetamaKey = 0x546f_7275_7303,
    KetamaPoint = 0x546f_7275_7304,
    Mod = 0x546f_7275_7305,
}

/// 64 even bits from some numbers.
pub(super) fn draw(what: Draw, numbers: &[u64]) -> u64 {
    let mut bytes = [0; 16];
    debug_assert!(numbers.len() <= 2);
    for (slot, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        slot.copy_from_slice(&number.to_le_bytes());
    }
    xxh3_64_with_seed(&bytes[..numbers.len() * 8], what as u64)
}

/// A key's hash.
pub(super) fn key(numbers: &[u64]) -> u64 {
    draw(Draw::Key, numbers)
}

/// One number for each pair of a key and an agent.
pub(super) fn rendezvous(key: u64, agent: AgentId) -> u64 {
    draw(Draw::Rendezvous, &[key, agent.0])
}

/// Bits after the point in [`neg_log2`].
const FRACTION_BITS: u32 = 48;

/// -log₂(`h` / 2⁶⁴) in units of 2⁻⁴⁸: above 0 and at most 64 of them. 0 counts as 1.
///
/// Made of shifts and multiplications: `f64::ln` is whatever the platform's libm makes of it, and where two machines
/// round differently they would look for the same extent in different places. By the binary method: squaring a number
/// between 1 and 2 doubles its logarithm, and whether the square reaches 2 is the next bit. What is cut off at each
/// step doubles with the later ones and stays below the last bits of the result; it is cut off alike everywhere.
pub(super) fn neg_log2(h: u64) -> u64 {
    let h = h.max(1);
    let zeros = h.leading_zeros();
    let mut log = u64::from(63 - zeros);
    let mut mantissa = h << zeros;
    for _ in 0..FRACTION_BITS {
        let square = (u128::from(mantissa) * u128::from(mantissa)) >> 63;
        let carry = square >> 64 != 0;
        mantissa = (square >> u32::from(carry)) as u64;
        log = log << 1 | u64::from(carry);
    }
    (64 << FRACTION_BITS) - log
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_one() {
        for h in [1, 2, 3, 10, 12345, 1 << 40, (1 << 40) + 1, u64::MAX / 3, u64::MAX / 2, u64::MAX - 1] {
            let exact = 64.0 - (h as f64).log2();
            let ours = neg_log2(h) as f64 / (1u64 << FRACTION_BITS) as f64;
            assert!((exact - ours).abs() < 1e-9, "{h}: {ours} for {exact}");
        }
        assert_eq!(neg_log2(1), 64 << FRACTION_BITS);
        assert_eq!(neg_log2(0), neg_log2(1));
        assert_eq!(neg_log2(1 << 63), 1 << FRACTION_BITS);
        assert!(neg_log2(u64::MAX) > 0);
    }

    #[test]
    fn a_larger_number_never_has_a_larger_one() {
        let mut h = 0x9e37_79b9_7f4a_7c15u64;
        for _ in 0..2000 {
            h = h.wrapping_mul(6364136223846793005).wrapping_add(1);
            assert!(neg_log2(h.max(1)) <= neg_log2(h.max(1) - 1));
        }
    }
}
