//! Newtypes for identities, positions and counts. One integer type for everything is how offsets get added to epochs.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Bytes in a block: the unit of addressing, of checksums and of alignment on disk.
pub const BLOCK_SIZE: usize = 4096;
/// [`BLOCK_SIZE`] for arithmetic on byte counts.
pub const BLOCK_BYTES: u64 = BLOCK_SIZE as u64;

/// A text that is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}: expected 1 to 16 hexadecimal digits, not all zero")]
pub struct ParseIdError {
    what: &'static str,
    text: String,
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        ///
        /// Shown, parsed and stored as 16 hexadecimal digits. Zero is not an id.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:x})"), self.0)
            }
        }
        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let error = || ParseIdError { what: $what, text: text.chars().take(64).collect() };
                if text.is_empty() || text.len() > 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(error());
                }
                match u64::from_str_radix(text, 16) {
                    Ok(0) | Err(_) => Err(error()),
                    Ok(value) => Ok(Self(value)),
                }
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_id!(
    /// A Torus cluster: drawn at `init`, carried by every disk, checked at every handshake.
    ClusterId,
    "a cluster id"
);
hex_id!(
    /// An agent. Bound to its disks, never to an address.
    AgentId,
    "an agent id"
);
hex_id!(
    /// One disk of an agent.
    DiskId,
    "a disk id"
);
hex_id!(
    /// A volume. Drawn at random and never reused.
    VolumeId,
    "a volume id"
);

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The number after this one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

number!(
    /// A volume's ownership number, raised by compare-and-swap at every open. 0: never opened.
    Epoch
);
number!(
    /// A record's place in the one order of its volume. The first record is 1; 0 means "before all records".
    Vseq
);
number!(
    /// One run of an agent process over its disk, counted up on the disk at every start. The first run is 1.
    Incarnation
);
number!(
    /// A block address inside a volume, in blocks of [`BLOCK_SIZE`].
    Lba
);
number!(
    /// A request to one agent, numbered by the owner that sends it; its answers carry the same number.
    RpcId
);
number!(
    /// Counts the changes of a cluster's ring. The first is 1.
    RingVersion
);

/// An extent: the unit of placement. Never reused, because its number carries the epoch that drew it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExtentId {
    /// The volume whose log it is part of.
    pub volume: VolumeId,
    /// Its number: see [`ExtentSeq`].
    pub seq: ExtentSeq,
}

impl fmt::Display for ExtentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.volume, self.seq)
    }
}
impl fmt::Debug for ExtentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self)
    }
}

/// An extent's number inside its volume: the epoch that registered it in the high 32 bits, a count in the low 32.
/// Two owners can therefore never draw the same one. An owner that writes 1 GB/s uses up its numbers in half a year of the
/// smallest extents, in nine years of those of the default size; in half of that at the least where it passes some over.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExtentSeq(pub u64);

impl ExtentSeq {
    const COUNT_BITS: u32 = 32;
    /// Above the count of any extent.
    pub const COUNT_MAX: u64 = 1 << Self::COUNT_BITS;

    /// The `count`th extent that the owner of `epoch` draws; `None` when that epoch has used up its 4 billion.
    #[must_use]
    pub fn new(epoch: Epoch, count: u64) -> Option<Self> {
        (count < Self::COUNT_MAX && epoch.0 >> (u64::BITS - Self::COUNT_BITS) == 0)
            .then_some(Self(epoch.0 << Self::COUNT_BITS | count))
    }

    /// The epoch whose owner drew it.
    #[must_use]
    pub fn epoch(self) -> Epoch {
        Epoch(self.0 >> Self::COUNT_BITS)
    }

    /// Its number among those its epoch drew.
    #[must_use]
    pub fn count(self) -> u64 {
        self.0 & (Self::COUNT_MAX - 1)
    }
}

impl fmt::Display for ExtentSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch(), self.count())
    }
}
impl fmt::Debug for ExtentSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch(), self.count())
    }
}

/// A length or an offset inside an extent's data area, in blocks of [`BLOCK_SIZE`]; at most
/// [`limits::EXTENT_BLOCKS_MAX`](crate::limits::EXTENT_BLOCKS_MAX).
pub type Blocks = u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_what_they_print() {
        let id = AgentId(0x1f);
        assert_eq!(id.to_string(), "000000000000001f");
        assert_eq!("1f".parse::<AgentId>().unwrap(), id);
        assert_eq!(serde_json::from_str::<AgentId>(&serde_json::to_string(&id).unwrap()).unwrap(), id);
    }

    #[test]
    fn what_is_not_an_id_is_refused_with_a_sentence() {
        for bad in ["", "0", "xyz", "-1", "+1", "11112222333344445"] {
            let error = bad.parse::<VolumeId>().unwrap_err().to_string();
            assert!(error.contains("is not a volume id"), "{error}");
        }
    }

    #[test]
    fn extent_numbers_of_different_epochs_never_meet() {
        let a = ExtentSeq::new(Epoch(7), 0xffff_ffff).unwrap();
        let b = ExtentSeq::new(Epoch(8), 0).unwrap();
        assert!(a < b);
        assert_eq!((a.epoch(), a.count()), (Epoch(7), 0xffff_ffff));
        assert_eq!(ExtentSeq::new(Epoch(7), 1 << 32), None);
        assert_eq!(ExtentSeq::new(Epoch(1 << 32), 0), None);
        assert_eq!(a.to_string(), "7.4294967295");
    }
}
