//! What was written where, and what a read must therefore give.
//!
//! Every block's content is made from its address and a generation, so that a block that lands in the wrong place, an
//! old one, or one of another run cannot pass for the right one.

use torus_core::ids::BLOCK_SIZE;

/// The generation that every block of the volume has.
#[derive(Clone, Debug)]
pub struct Ledger {
    run: u64,
    generations: Vec<u32>,
}

/// A block that is not what was written.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("block {block} is wrong: {what}")]
pub struct Wrong {
    /// Its number.
    block: u64,
    /// What it holds instead.
    what: &'static str,
}

impl Ledger {
    /// For a volume of `blocks` that was never written. `run`: a number that no other run has.
    pub fn new(run: u64, blocks: usize) -> Self {
        Self { run, generations: vec![0; blocks] }
    }

    /// The next content of `count` blocks from `first` on; call [`Ledger::written`] when it is acknowledged.
    pub fn next(&self, first: u64, count: usize) -> Vec<u8> {
        let mut data = vec![0; count * BLOCK_SIZE];
        for (block, content) in (first..).zip(data.chunks_exact_mut(BLOCK_SIZE)) {
            fill(content, self.seed(block, self.generation(block) + 1));
        }
        data
    }

    /// What [`Ledger::next`] gave for these blocks is acknowledged.
    pub fn written(&mut self, first: u64, count: usize) {
        for generation in &mut self.generations[usize_of(first)..][..count] {
            *generation += 1;
        }
    }

    /// Checks what was read from `first` on.
    pub fn check(&self, first: u64, data: &[u8]) -> Result<(), Wrong> {
        let mut expected = [0; BLOCK_SIZE];
        for (block, content) in (first..).zip(data.chunks_exact(BLOCK_SIZE)) {
            let generation = self.generation(block);
            expected.fill(0);
            if generation > 0 {
                fill(&mut expected, self.seed(block, generation));
            }
            if content != expected {
                return Err(Wrong { block, what: self.diagnosis(block, content) });
            }
        }
        Ok(())
    }

    fn diagnosis(&self, block: u64, content: &[u8]) -> &'static str {
        if content.iter().all(|byte| *byte == 0) {
            return "zeros";
        }
        let is = |generation| {
            let mut expected = [0; BLOCK_SIZE];
            fill(&mut expected, self.seed(block, generation));
            content == expected
        };
        if (1..self.generation(block)).any(is) { "an older write" } else { "bytes that were never written there" }
    }

    fn generation(&self, block: u64) -> u32 {
        self.generations[usize_of(block)]
    }

    fn seed(&self, block: u64, generation: u32) -> u64 {
        mix(self.run ^ mix(block << 32 ^ u64::from(generation)))
    }
}

fn usize_of(block: u64) -> usize {
    usize::try_from(block).expect("the demo's volumes fit in memory's address space")
}

fn fill(content: &mut [u8], seed: u64) {
    let mut state = seed;
    for word in content.chunks_exact_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&mix(state).to_le_bytes());
    }
}

/// The finalizer of splitmix64: all bits of the result depend on all bits of `x`.
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_right_and_everything_else_is_named() {
        let mut ledger = Ledger::new(7, 16);
        assert_eq!(ledger.check(3, &[0; 2 * BLOCK_SIZE]), Ok(()));
        let first = ledger.next(3, 2);
        ledger.written(3, 2);
        assert_eq!(ledger.check(3, &first), Ok(()));
        let second = ledger.next(3, 1);
        ledger.written(3, 1);
        assert_eq!(ledger.check(3, &second), Ok(()));
        let wrong = |ledger: &Ledger, block, data: &[u8]| ledger.check(block, data).unwrap_err().what;
        assert_eq!(wrong(&ledger, 3, &first), "an older write");
        assert_eq!(wrong(&ledger, 3, &[0; BLOCK_SIZE]), "zeros");
        assert_eq!(wrong(&ledger, 4, &second), "bytes that were never written there");
        assert_eq!(ledger.check(3, &[&second[..], &second].concat()).unwrap_err().block, 4);
        assert_eq!(wrong(&Ledger { run: 8, ..ledger.clone() }, 3, &second), "bytes that were never written there");
    }
}
