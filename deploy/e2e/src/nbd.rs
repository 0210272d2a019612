//! A small NBD client that does one thing at a time: an observer that owes nothing to the server it looks at.
//!
//! Fixed newstyle, simple replies, a unix socket. For depth, use several.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const SERVER_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The server answered with an error number.
    #[error("the server answered with error {0}")]
    Answered(u32),
    /// The connection ended, or nothing came in time; the request may have been carried out.
    #[error("no answer from the server")]
    Unanswered(#[source] io::Error),
}

impl From<io::Error> for NbdError {
    fn from(error: io::Error) -> Self {
        Self::Unanswered(error)
    }
}

/// A connection to one export.
#[derive(Debug)]
pub struct Nbd {
    stream: BufReader<UnixStream>,
    cookie: u64,
}

impl Nbd {
    /// Connects to `export` of the server at `socket`. A request that is not answered within `patience` fails.
    pub fn connect(socket: &Path, export: &str, patience: Duration) -> io::Result<Nbd> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let mut nbd = Nbd { stream: BufReader::with_capacity(128 << 10, stream), cookie: 0 };
        nbd.negotiate(export)?;
        Ok(nbd)
    }

    /// Writes `data` at byte `offset`.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), NbdError> {
        self.send(WRITE, offset, data.len(), data)?;
        self.answer(&mut [])
    }

    /// Reads bytes from `offset` on.
    pub fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<(), NbdError> {
        self.send(READ, offset, into.len(), &[])?;
        self.answer(into)
    }

    /// Makes all that was acknowledged durable.
    pub fn flush(&mut self) -> Result<(), NbdError> {
        self.send(FLUSH, 0, 0, &[])?;
        self.answer(&mut [])
    }

    /// Asks for a write, and leaves the answer for [`Nbd::answer`].
    pub fn ask_write(&mut self, offset: u64, data: &[u8]) -> Result<(), NbdError> {
        self.send(WRITE, offset, data.len(), data)
    }

    /// Asks for a read of `length` bytes, and leaves the answer for [`Nbd::answer`].
    pub fn ask_read(&mut self, offset: u64, length: usize) -> Result<(), NbdError> {
        self.send(READ, offset, length, &[])
    }

    fn send(&mut self, kind: u16, offset: u64, length: usize, payload: &[u8]) -> Result<(), NbdError> {
        self.cookie += 1;
        let mut request = Vec::with_capacity(28 + payload.len());
        request.extend(REQUEST_MAGIC.to_be_bytes());
        request.extend(0u16.to_be_bytes());
        request.extend(kind.to_be_bytes());
        request.extend(self.cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(u32::try_from(length).map_err(io::Error::other)?.to_be_bytes());
        request.extend(payload);
        Ok(self.stream.get_mut().write_all(&request)?)
    }

    /// Waits for the answer to what was asked last. `into` is as long as what was to be read.
    pub fn answer(&mut self, into: &mut [u8]) -> Result<(), NbdError> {
        let mut head = [0; 16];
        self.stream.read_exact(&mut head)?;
        let [magic, error] = [0, 4].map(|at| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
        if magic != REPLY_MAGIC || head[8..] != self.cookie.to_be_bytes() {
            return Err(nonsense("an answer to another question").into());
        }
        if error != 0 {
            return Err(NbdError::Answered(error));
        }
        Ok(self.stream.read_exact(into)?)
    }

    fn negotiate(&mut self, export: &str) -> io::Result<()> {
        if self.u64()? != SERVER_MAGIC || self.u64()? != OPTION_MAGIC {
            return Err(nonsense("no NBD greeting"));
        }
        let mut server_flags = [0; 2];
        self.stream.read_exact(&mut server_flags)?;
        let name = u32::try_from(export.len()).map_err(io::Error::other)?;
        let mut hello = Vec::new();
        hello.extend(FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes());
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend(OPTION_GO.to_be_bytes());
        hello.extend((name + 6).to_be_bytes());
        hello.extend(name.to_be_bytes());
        hello.extend(export.as_bytes());
        hello.extend(0u16.to_be_bytes());
        self.stream.get_mut().write_all(&hello)?;
        loop {
            let (magic, _option, kind, length) = (self.u64()?, self.u32()?, self.u32()?, self.u32()?);
            if magic != OPTION_REPLY_MAGIC || length > 4096 {
                return Err(nonsense("no answer to an option"));
            }
            let mut data = vec![0; length as usize];
            self.stream.read_exact(&mut data)?;
            match kind {
                REPLY_ACK => return Ok(()),
                REPLY_INFO => {}
                _ => return Err(nonsense(&format!("it refuses {export:?}: {}", String::from_utf8_lossy(&data)))),
            }
        }
    }

    fn u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.stream.read_exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn u64(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.stream.read_exact(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }
}

fn nonsense(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not what an NBD server says: {what}"))
}
