//! Block specs, the first Torus's way to say how blocks are kept: `crc,r=2`.
//!
//! Words, separated by commas, from the disk up: `base` (blocks are stored) and `crc` (blocks are checked) are always so
//! here and are taken as said; `r=N` (also `rep=N`, `replication=N`) asks for N copies.

use std::str::FromStr;
use torus_core::limits::REPLICAS_MAX;

/// What a block spec asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct BlockSpec {
    /// Copies, if it says.
    pub replicas: Option<u8>,
}

/// A text that is no block spec.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadBlockSpec {
    /// A word that means nothing.
    #[error("{0:?} is not a part of a block spec: expected crc, base or r=N, such as crc,r=2")]
    Word(String),
    /// Too few copies, too many, or no number.
    #[error("{0:?} is not a number of copies: expected 1 to {REPLICAS_MAX}")]
    Replicas(String),
    /// Two answers to one question.
    #[error("a block spec says once how many copies there are")]
    Twice,
}

impl FromStr for BlockSpec {
    type Err = BadBlockSpec;

    fn from_str(text: &str) -> Result<Self, BadBlockSpec> {
        let mut spec = Self::default();
        for word in text.split(',').map(str::trim) {
            match word.split_once('=') {
                None if word == "crc" || word == "base" => {}
                Some(("r" | "rep" | "replication", number)) => {
                    if spec.replicas.replace(replicas(number)?).is_some() {
                        return Err(BadBlockSpec::Twice);
                    }
                }
                _ => return Err(BadBlockSpec::Word(word.chars().take(40).collect())),
            }
        }
        Ok(spec)
    }
}

/// A number of copies.
pub fn replicas(text: &str) -> Result<u8, BadBlockSpec> {
    let number = text.parse::<u8>().ok().filter(|n| (1..=REPLICAS_MAX).contains(&usize::from(*n)));
    number.ok_or_else(|| BadBlockSpec::Replicas(text.chars().take(40).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_first_torus_took_is_taken() {
        for (text, replicas) in [("crc", None), ("crc,base", None), ("crc,r=2", Some(2)), ("rep=3,crc,base", Some(3))] {
            assert_eq!(text.parse(), Ok(BlockSpec { replicas }), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused_with_its_reason() {
        for (text, word) in [
            ("", "expected crc"),
            ("crc,", "expected crc"),
            ("rs=4", "expected crc"),
            ("crc=1", "expected crc"),
            ("r=0", "1 to 7"),
            ("r=8", "1 to 7"),
            ("r=-1", "1 to 7"),
            ("r=two", "1 to 7"),
            ("r=2,rep=3", "once"),
        ] {
            let error = text.parse::<BlockSpec>().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
