//! FUSE's messages, as far as a filesystem with one file needs them: bytes in, bytes out.
//!
//! Spoken here and not by the `fuser` crate, which cannot go on with a connection that another process has greeted. What that
//! crate does is mounting and greeting ([`super::mounted`]).
//!
//! All numbers are in the machine's own order. A request has a header of 40 bytes and a body:
//!
//! | offset | bytes | |
//! |---:|---:|---|
//! | 0 | 4 | length of all of it |
//! | 4 | 4 | opcode |
//! | 8 | 8 | number, to be repeated in the answer |
//! | 16 | 8 | inode |
//! | 24 | 16 | who asks |
//!
//! An answer has 16 bytes before its body: length, negated error number, number of the request. One whose number is 0 is a notice
//! to the kernel, whose kind stands in the place of the error number.

use bytes::{BufMut, BytesMut};

/// Bytes of a request before its body.
pub const HEADER_BYTES: usize = 40;
/// Bytes of an answer before its body.
pub const ANSWER_BYTES: usize = 16;
/// The directory.
pub const ROOT: u64 = 1;
/// The file.
pub const FILE: u64 = 2;

/// `FOPEN_DIRECT_IO | FOPEN_NOFLUSH | FOPEN_PARALLEL_DIRECT_WRITES`: not cached, many writes at once, and no flush on close,
/// as a process that is being killed would wait for itself to answer it.
const OPEN_FLAGS: u32 = 1 | 1 << 5 | 1 << 6;
/// Has the kernel ask again for everything that was taken and not answered (Linux 6.9).
const NOTIFY_RESEND: i32 = 7;

/// What the kernel asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request<'a> {
    /// What is called this in that directory.
    Lookup { parent: u64, name: &'a [u8] },
    /// What it looks like.
    Look { inode: u64 },
    /// To open it, with the flags of open(2).
    Open { inode: u64, flags: u32 },
    /// To open the directory.
    OpenDirectory,
    /// Its entries.
    ReadDirectory { offset: u64 },
    /// Bytes.
    Read { offset: u64, len: u32 },
    /// To take bytes.
    Write { offset: u64, data: &'a [u8] },
    /// To make durable what was taken.
    Flush,
    /// `fallocate`.
    Space { mode: u32, offset: u64, len: u64 },
    /// How much room there is.
    Room,
    /// To know that something is over: nothing is to be done.
    Over,
    /// Nothing: no answer either.
    Forget,
    /// To end.
    End,
    /// Something that a filesystem with one file has not.
    Other,
}

/// Reads one request and its number; `None` where the bytes are none.
pub fn read(bytes: &[u8]) -> Option<(u64, Request<'_>)> {
    let opcode = u32_at(bytes, 4)?;
    let number = u64_at(bytes, 8)?;
    let inode = u64_at(bytes, 16)?;
    let body = bytes.get(HEADER_BYTES..)?;
    if usize::try_from(u32_at(bytes, 0)?).ok()? != bytes.len() {
        return None;
    }
    let request = match opcode {
        1 => Request::Lookup { parent: inode, name: body.split(|byte| *byte == 0).next()? },
        2 | 42 => Request::Forget,
        3 => Request::Look { inode },
        14 => Request::Open { inode, flags: u32_at(body, 0)? },
        15 => Request::Read { offset: u64_at(body, 8)?, len: u32_at(body, 16)? },
        16 => {
            let len = usize::try_from(u32_at(body, 16)?).ok()?;
            Request::Write { offset: u64_at(body, 8)?, data: body.get(40..)?.get(..len)? }
        }
        17 => Request::Room,
        18 | 29 => Request::Over,
        20 => Request::Flush,
        27 => Request::OpenDirectory,
        28 => Request::ReadDirectory { offset: u64_at(body, 8)? },
        38 => Request::End,
        43 => Request::Space { offset: u64_at(body, 8)?, len: u64_at(body, 16)?, mode: u32_at(body, 24)? },
        _ => Request::Other,
    };
    Some((number, request))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// What stands before the body of an answer.
pub fn answer(number: u64, error: i32, body_bytes: usize) -> [u8; ANSWER_BYTES] {
    let mut header = [0; ANSWER_BYTES];
    // No body is longer than a request.
    let len = u32::try_from(ANSWER_BYTES + body_bytes).unwrap_or(u32::MAX);
    header[..4].copy_from_slice(&len.to_ne_bytes());
    header[4..8].copy_from_slice(&(-error).to_ne_bytes());
    header[8..].copy_from_slice(&number.to_ne_bytes());
    header
}

/// Asks for everything again that was taken and not answered.
pub fn resend() -> [u8; ANSWER_BYTES] {
    answer(0, -NOTIFY_RESEND, 0)
}

/// What the file or the directory looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// [`ROOT`] or [`FILE`].
    pub inode: u64,
    /// Bytes in it.
    pub size: u64,
    /// Type and permissions.
    pub mode: u32,
    /// Whose it is: user and group.
    pub owner: (u32, u32),
    /// In which units it is best read.
    pub block_bytes: u32,
}

impl Attributes {
    fn put(self, body: &mut BytesMut) {
        body.put_u64_ne(self.inode);
        body.put_u64_ne(self.size);
        body.put_u64_ne(self.size / 512);
        // Times of last access, change and change of attributes: none.
        body.put_bytes(0, 3 * 8 + 3 * 4);
        body.put_u32_ne(self.mode);
        body.put_u32_ne(1);
        body.put_u32_ne(self.owner.0);
        body.put_u32_ne(self.owner.1);
        body.put_u32_ne(0);
        body.put_u32_ne(self.block_bytes);
        body.put_u32_ne(0);
    }
}

/// The body that answers [`Request::Lookup`]. Nothing may be remembered of it: a volume grows.
pub fn entry(attributes: Attributes) -> BytesMut {
    let mut body = BytesMut::with_capacity(128);
    body.put_u64_ne(attributes.inode);
    // Generation, and for how long names and attributes hold.
    body.put_bytes(0, 8 + 2 * 8 + 2 * 4);
    attributes.put(&mut body);
    body
}

/// The body that answers [`Request::Look`].
pub fn look(attributes: Attributes) -> BytesMut {
    let mut body = BytesMut::with_capacity(104);
    body.put_bytes(0, 16);
    attributes.put(&mut body);
    body
}

/// The body that answers [`Request::Open`].
pub fn opened() -> BytesMut {
    open(OPEN_FLAGS)
}

/// The body that answers [`Request::OpenDirectory`].
pub fn opened_directory() -> BytesMut {
    open(0)
}

fn open(flags: u32) -> BytesMut {
    let mut body = BytesMut::with_capacity(16);
    body.put_u64_ne(0);
    body.put_u32_ne(flags);
    body.put_u32_ne(0);
    body
}

/// The body that answers [`Request::ReadDirectory`] with the one entry there is.
pub fn listing(name: &str) -> BytesMut {
    let mut body = BytesMut::with_capacity(64);
    body.put_u64_ne(FILE);
    body.put_u64_ne(1);
    body.put_u32_ne(u32::try_from(name.len()).unwrap_or(u32::MAX));
    // A regular file.
    body.put_u32_ne(8);
    body.put_slice(name.as_bytes());
    body.put_bytes(0, name.len().next_multiple_of(8) - name.len());
    body
}

/// The body that answers [`Request::Write`].
pub fn written(len: u32) -> BytesMut {
    let mut body = BytesMut::with_capacity(8);
    body.put_u32_ne(len);
    body.put_u32_ne(0);
    body
}

/// The body that answers [`Request::Room`]. The unit in which a loop device offers discards is the block size told here.
pub fn room(block_bytes: u32) -> BytesMut {
    let mut body = BytesMut::with_capacity(80);
    body.put_bytes(0, 4 * 8);
    body.put_u64_ne(1);
    body.put_u32_ne(block_bytes);
    body.put_u32_ne(255);
    body.put_u32_ne(block_bytes);
    body.put_bytes(0, 7 * 4);
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(opcode: u32, inode: u64, body: &[u8]) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        bytes.put_u32_ne((HEADER_BYTES + body.len()) as u32);
        bytes.put_u32_ne(opcode);
        bytes.put_u64_ne(77);
        bytes.put_u64_ne(inode);
        bytes.put_bytes(0, 16);
        bytes.put_slice(body);
        bytes.to_vec()
    }

    #[test]
    fn requests_are_read() {
        let read = |bytes: &[u8]| super::read(bytes).map(|(number, request)| (number, format!("{request:?}")));
        let is = |request: Request<'_>| Some((77, format!("{request:?}")));
        assert_eq!(read(&request(1, ROOT, b"volume\0")), is(Request::Lookup { parent: ROOT, name: b"volume" }));
        assert_eq!(read(&request(3, FILE, &[0; 16])), is(Request::Look { inode: FILE }));
        let mut body = BytesMut::new();
        body.put_u64_ne(0);
        body.put_u64_ne(8192);
        body.put_u32_ne(3);
        body.put_bytes(0, 20);
        assert_eq!(read(&request(15, FILE, &body)), is(Request::Read { offset: 8192, len: 3 }));
        let whole = [&body[..], b"abc"].concat();
        assert_eq!(read(&request(16, FILE, &whole)), is(Request::Write { offset: 8192, data: b"abc" }));
        assert_eq!(read(&request(16, FILE, &whole[..42])), None, "cut short");
        assert_eq!(read(&request(4711, FILE, &[])), is(Request::Other));
        let mut lying = request(38, 0, &[]);
        lying[0] += 1;
        assert_eq!(read(&lying), None);
    }

    #[test]
    fn bodies_have_the_lengths_that_the_kernel_wants() {
        let attributes = Attributes { inode: FILE, size: 4096, mode: 0o100_600, owner: (0, 0), block_bytes: 4096 };
        assert_eq!(look(attributes).len(), 104);
        assert_eq!(entry(attributes).len(), 128);
        assert_eq!((opened().len(), written(1).len(), room(4096).len()), (16, 8, 80));
        assert_eq!(listing("volume").len(), 32);
        assert_eq!(answer(1, 5, 3)[..8], [19u32.to_ne_bytes(), (-5i32).to_ne_bytes()].concat()[..]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), opcode in 0u32..60) {
            let _ = read(&bytes);
            let _ = read(&request(opcode, FILE, &bytes));
        }
    }
}
