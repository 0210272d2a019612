//! The extent table in a checkpoint, byte by byte.
//!
//! ```text
//! piece:  0  8  magic "TORUSXT1"         entry:  0  8  extent seq            28  1  members
//!         8  2  version (1)                      8  4  length, blocks        29  1  former members
//!        10  2  zero                            12  8  last vseq             30  1  bit i: member i is synced
//!        12  4  entries in this piece           20  8  digest                31  1  zero
//!        16  8  volume id                       28  …  (see right)           32  8  each member, then each former member
//!        24  8  volume size, blocks
//!        32  8  vseq of the checkpoint          flags, in the top byte of length: 1 log/checkpoint stream,
//!        40  …  entries                         2 sealed, 4 digest known, 8 degraded, 16 dead
//! ```
//!
//! The `i`th entry of all pieces is extent number `i` of the map's pieces.

use crate::format::{Digest, Stream, get_u16, get_u32, get_u64, put};
use crate::ids::{AgentId, ExtentSeq, VolumeId, Vseq};
use crate::log::table::{Entry, Holder, State};
use crate::meta::docs::Seal;
use smallvec::SmallVec;

const MAGIC: &[u8; 8] = b"TORUSXT1";
const VERSION: u16 = 1;
const HEADER: usize = 40;
const ENTRY: usize = 32;
const LENGTH_MASK: u32 = 0x00ff_ffff;

const CHECKPOINT: u32 = 1 << 24;
const SEALED: u32 = 2 << 24;
const DIGEST: u32 = 4 << 24;
const DEGRADED: u32 = 8 << 24;
const DEAD: u32 = 16 << 24;

/// Whose picture it is, and of when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Title {
    /// The volume.
    pub volume: VolumeId,
    /// Its size in blocks.
    pub size: u64,
    /// The last record it contains.
    pub vseq: Vseq,
}

/// Bytes that are no piece of an extent table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a piece of an extent table: {0}")]
pub struct BadPiece(&'static str);

/// One piece with as many of `entries` as fit `bytes_max`; how many that were.
#[must_use]
pub fn encode(title: &Title, entries: &[Entry], bytes_max: usize) -> (Vec<u8>, usize) {
    let mut out = vec![0; HEADER];
    let mut count = 0;
    for entry in entries {
        let size = ENTRY + 8 * (entry.members.len() + entry.former.len());
        if out.len() + size > bytes_max {
            break;
        }
        encode_entry(entry, &mut out);
        count += 1;
    }
    put(&mut out, 0, MAGIC);
    put(&mut out, 8, &VERSION.to_le_bytes());
    put(&mut out, 12, &(count as u32).to_le_bytes());
    put(&mut out, 16, &title.volume.0.to_le_bytes());
    put(&mut out, 24, &title.size.to_le_bytes());
    put(&mut out, 32, &title.vseq.0.to_le_bytes());
    (out, count)
}

fn encode_entry(entry: &Entry, out: &mut Vec<u8>) {
    let seal = entry.seal().unwrap_or(Seal { length: 0, last: Vseq(0) });
    let mut flags = 0;
    for (flag, set) in [
        (CHECKPOINT, entry.stream == Stream::Checkpoint),
        (SEALED, entry.seal().is_some()),
        (DIGEST, entry.digest().is_some()),
        (DEGRADED, entry.degraded),
        (DEAD, entry.dead),
    ] {
        flags |= if set { flag } else { 0 };
    }
    let synced = entry.members.iter().enumerate().map(|(i, m)| u8::from(m.synced) << i).sum::<u8>();
    out.extend_from_slice(&entry.seq.0.to_le_bytes());
    out.extend_from_slice(&(seal.length | flags).to_le_bytes());
    out.extend_from_slice(&seal.last.0.to_le_bytes());
    out.extend_from_slice(&entry.digest().unwrap_or_default().0.to_le_bytes());
    out.extend_from_slice(&[entry.members.len() as u8, entry.former.len() as u8, synced, 0]);
    for agent in entry.members.iter().map(|m| m.agent).chain(entry.former.iter().copied()) {
        out.extend_from_slice(&agent.0.to_le_bytes());
    }
}

/// The title and the entries of a piece.
///
/// # Errors
/// When the bytes are no such piece.
pub fn decode(bytes: &[u8]) -> Result<(Title, Vec<Entry>), BadPiece> {
    if bytes.len() < HEADER || bytes[..8] != *MAGIC {
        return Err(BadPiece("no header"));
    }
    if get_u16(bytes, 8) != VERSION {
        return Err(BadPiece("another version"));
    }
    let title =
        Title { volume: VolumeId(get_u64(bytes, 16)), size: get_u64(bytes, 24), vseq: Vseq(get_u64(bytes, 32)) };
    let mut rest = &bytes[HEADER..];
    let mut entries = Vec::new();
    for _ in 0..get_u32(bytes, 12) {
        if rest.len() < ENTRY {
            return Err(BadPiece("cut short"));
        }
        let (members, former) = (usize::from(rest[28]), usize::from(rest[29]));
        let size = ENTRY + 8 * (members + former);
        if rest.len() < size || members > 8 {
            return Err(BadPiece("cut short"));
        }
        entries.push(decode_entry(&rest[..size], members));
        rest = &rest[size..];
    }
    Ok((title, entries))
}

fn decode_entry(bytes: &[u8], members: usize) -> Entry {
    let flags = get_u32(bytes, 8);
    let agents: Vec<AgentId> = bytes[ENTRY..].chunks_exact(8).map(|c| AgentId(get_u64(c, 0))).collect();
    let holders: SmallVec<[Holder; 3]> = agents[..members]
        .iter()
        .enumerate()
        .map(|(i, &agent)| Holder { agent, synced: bytes[30] >> i & 1 == 1 })
        .collect();
    let seal = Seal { length: flags & LENGTH_MASK, last: Vseq(get_u64(bytes, 12)) };
    let digest = (flags & DIGEST != 0).then(|| Digest(get_u64(bytes, 20)));
    Entry {
        seq: ExtentSeq(get_u64(bytes, 0)),
        stream: if flags & CHECKPOINT != 0 { Stream::Checkpoint } else { Stream::Log },
        members: holders,
        former: agents[members..].iter().copied().collect(),
        degraded: flags & DEGRADED != 0,
        state: if flags & SEALED != 0 { State::Sealed { seal, digest } } else { State::Open },
        live: 0,
        readers: 0,
        pinned: false,
        key: None,
        dead: flags & DEAD != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u64) -> Entry {
        let mut entry = Entry::open(ExtentSeq(n), Stream::Log, &[AgentId(1), AgentId(n + 2)], n.is_multiple_of(2));
        entry.members[1].synced = true;
        entry.former.push(AgentId(99));
        if n > 3 {
            let digest = (n > 5).then_some(Digest(n * 7));
            entry.state = State::Sealed { seal: Seal { length: n as u32, last: Vseq(n << 40) }, digest };
            entry.dead = n == 8;
        }
        entry
    }

    #[test]
    fn tables_read_back_what_they_say_in_pieces() {
        let entries: Vec<Entry> = (1..10).map(entry).collect();
        let title = Title { volume: VolumeId(5), size: 1 << 20, vseq: Vseq(77) };
        let mut read = Vec::new();
        let mut rest = &entries[..];
        let mut pieces = 0;
        while !rest.is_empty() {
            let (bytes, count) = encode(&title, rest, 200);
            let (got, some) = decode(&bytes).unwrap();
            assert_eq!(got, title);
            read.extend(some);
            rest = &rest[count..];
            pieces += 1;
        }
        assert!(pieces > 1);
        assert_eq!(format!("{read:?}"), format!("{entries:?}"));
    }

    #[test]
    fn bytes_that_are_no_table_are_refused() {
        let title = Title { volume: VolumeId(5), size: 1, vseq: Vseq(1) };
        let (bytes, _) = encode(&title, &[entry(4)], 4096);
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_err(), "{cut}");
        }
        let mut hostile = bytes.clone();
        hostile[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(decode(&hostile).is_err());
    }
}
