//! A small NBD client: the demo's eyes are those of any other program.
//!
//! Fixed newstyle, simple replies, a unix socket, many requests in flight. One task writes requests, one reads replies;
//! a request whose connection ends is answered with [`Broken`], never left waiting.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};

const SERVER_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const FIXED_NEWSTYLE_NO_ZEROES: u32 = 3;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
/// Option replies longer than this are not from an NBD server.
const OPTION_REPLY_BYTES_MAX: u32 = 4096;
/// Requests that wait to be sent.
const QUEUE_MAX: usize = 128;

/// Why a request was not carried out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NbdError {
    /// The server answered with an error number.
    #[error("the server answered with error {0}")]
    Answered(u32),
    /// The connection ended; the request may have been carried out.
    #[error("the connection to the server ended")]
    Broken,
}

type Answer = Result<Vec<u8>, NbdError>;

/// Requests without an answer yet, by cookie; `None` once the connection has ended.
type Pending = Arc<Mutex<Option<BTreeMap<u64, Waiting>>>>;

struct Waiting {
    read_bytes: u32,
    answer: oneshot::Sender<Answer>,
}

/// A connection to one export.
#[derive(Clone)]
pub struct Client {
    size_bytes: u64,
    queue: mpsc::Sender<Vec<u8>>,
    pending: Pending,
    cookies: Arc<Mutex<u64>>,
}

impl Client {
    /// Connects to `export` of the server at `socket`.
    pub async fn connect(socket: &Path, export: &str) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket).await?;
        let size_bytes = negotiate(&mut stream, export).await?;
        let (reader, writer) = stream.into_split();
        let (queue, requests) = mpsc::channel(QUEUE_MAX);
        let pending: Pending = Arc::new(Mutex::new(Some(BTreeMap::new())));
        tokio::spawn(send(writer, requests));
        let waiting = Arc::clone(&pending);
        tokio::spawn(async move {
            // However it ends, whoever still waits has to be told; dropping the senders does that.
            let _ended = receive(reader, &waiting).await;
            lock(&waiting).take();
        });
        Ok(Self { size_bytes, queue, pending, cookies: Arc::default() })
    }

    /// The export's size.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Writes `data` at `offset`.
    pub async fn write(&self, offset: u64, data: &[u8]) -> Result<(), NbdError> {
        let length = u32::try_from(data.len()).expect("the demo writes at most some MiB at once");
        self.ask(WRITE, offset, length, data).await.map(|_| ())
    }

    /// Reads `length` bytes at `offset`.
    pub async fn read(&self, offset: u64, length: u32) -> Result<Vec<u8>, NbdError> {
        self.ask(READ, offset, length, &[]).await
    }

    /// Makes all that was acknowledged durable.
    pub async fn flush(&self) -> Result<(), NbdError> {
        self.ask(FLUSH, 0, 0, &[]).await.map(|_| ())
    }

    async fn ask(&self, kind: u16, offset: u64, length: u32, payload: &[u8]) -> Answer {
        let cookie = {
            let mut last = lock(&self.cookies);
            *last += 1;
            *last
        };
        let mut request = Vec::with_capacity(28 + payload.len());
        request.extend(REQUEST_MAGIC.to_be_bytes());
        request.extend(0u16.to_be_bytes());
        request.extend(kind.to_be_bytes());
        request.extend(cookie.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        request.extend(payload);
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting { read_bytes: if kind == READ { length } else { 0 }, answer };
        match &mut *lock(&self.pending) {
            Some(pending) => pending.insert(cookie, waiting),
            None => return Err(NbdError::Broken),
        };
        self.queue.send(request).await.map_err(|_| NbdError::Broken)?;
        answered.await.unwrap_or(Err(NbdError::Broken))
    }
}

/// The content; a holder that panicked left nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn send(mut writer: OwnedWriteHalf, mut requests: mpsc::Receiver<Vec<u8>>) {
    while let Some(request) = requests.recv().await {
        if writer.write_all(&request).await.is_err() {
            // The reader sees the same end and tells who waits.
            return;
        }
    }
}

async fn receive(reader: OwnedReadHalf, pending: &Pending) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 18, reader);
    loop {
        let (magic, error, cookie) = (reader.read_u32().await?, reader.read_u32().await?, reader.read_u64().await?);
        let waiting = lock(pending).as_mut().and_then(|pending| pending.remove(&cookie));
        let Some(waiting) = waiting.filter(|_| magic == REPLY_MAGIC) else {
            return Err(nonsense("an answer to no question"));
        };
        let answer = if error == 0 {
            let mut data = vec![0; waiting.read_bytes as usize];
            reader.read_exact(&mut data).await?;
            Ok(data)
        } else {
            Err(NbdError::Answered(error))
        };
        // Who asked may have stopped waiting.
        let _ = waiting.answer.send(answer);
    }
}

/// Settles on `export`; its size.
async fn negotiate(stream: &mut UnixStream, export: &str) -> io::Result<u64> {
    if stream.read_u64().await? != SERVER_MAGIC || stream.read_u64().await? != OPTION_MAGIC {
        return Err(nonsense("no NBD greeting"));
    }
    let _server_flags = stream.read_u16().await?;
    let name = u32::try_from(export.len()).map_err(|_| nonsense("an endless export name"))?;
    let mut hello = Vec::new();
    hello.extend(FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes());
    hello.extend(OPTION_MAGIC.to_be_bytes());
    hello.extend(OPTION_GO.to_be_bytes());
    hello.extend((name + 6).to_be_bytes());
    hello.extend(name.to_be_bytes());
    hello.extend(export.as_bytes());
    hello.extend(0u16.to_be_bytes());
    stream.write_all(&hello).await?;
    let mut size = None;
    loop {
        let (magic, _option) = (stream.read_u64().await?, stream.read_u32().await?);
        let (kind, length) = (stream.read_u32().await?, stream.read_u32().await?);
        if magic != OPTION_REPLY_MAGIC || length > OPTION_REPLY_BYTES_MAX {
            return Err(nonsense("no option reply"));
        }
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data).await?;
        match kind {
            REPLY_ACK => return size.ok_or_else(|| nonsense("no size")),
            REPLY_INFO if data.starts_with(&INFO_EXPORT.to_be_bytes()) => {
                let bytes = data.get(2..10).and_then(|bytes| bytes.try_into().ok());
                size = Some(u64::from_be_bytes(bytes.ok_or_else(|| nonsense("half an export"))?));
            }
            REPLY_INFO => {}
            _ => {
                let why = String::from_utf8_lossy(&data).into_owned();
                return Err(io::Error::other(format!("the server refuses export {export:?}: {why}")));
            }
        }
    }
}

fn nonsense(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the server speaks no NBD: {what}"))
}
