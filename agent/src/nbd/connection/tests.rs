use super::*;
use crate::device::testing::MemoryDevice;
use crate::device::{DeviceInfo, IoError, IoErrorKind, StatusExtent};
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::io::{DuplexStream, duplex};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use torus_core::format::Pieces;
use torus_core::nbd::reply;
use torus_core::nbd::{Cookie, Errno};

const SIZE: u64 = 64 << 20;

/// A device that begins a call at once and ends it when the test says so.
struct Gate {
    memory: MemoryDevice,
    waiting: RefCell<VecDeque<(&'static str, u64, oneshot::Sender<()>)>>,
    /// Calls pass without being held.
    open: bool,
}

impl Gate {
    fn new(open: bool) -> Rc<Self> {
        Rc::new(Self { memory: MemoryDevice::new(SIZE), waiting: RefCell::default(), open })
    }

    async fn pass(&self, what: &'static str, offset: u64) {
        if !self.open {
            let (release, released) = oneshot::channel();
            self.waiting.borrow_mut().push_back((what, offset, release));
            let _ = released.await;
        }
    }

    fn waiting(&self) -> Vec<(&'static str, u64)> {
        self.waiting.borrow().iter().map(|(what, offset, _)| (*what, *offset)).collect()
    }

    fn release(&self, offset: u64) {
        let mut waiting = self.waiting.borrow_mut();
        let at = waiting.iter().position(|w| w.1 == offset).expect("a call to that offset waits");
        let (_, _, release) = waiting.remove(at).expect("it was just found");
        release.send(()).expect("the call is still there");
    }
}

impl BlockDevice for Gate {
    fn info(&self) -> DeviceInfo {
        self.memory.info()
    }
    async fn read(&self, offset: u64, len: u32) -> Result<Pieces, IoError> {
        self.pass("read", offset).await;
        self.memory.read(offset, len).await
    }
    async fn write(&self, offset: u64, data: Pieces, fua: bool) -> Result<(), IoError> {
        self.pass("write", offset).await;
        self.memory.write(offset, data, fua).await
    }
    async fn flush(&self) -> Result<(), IoError> {
        self.pass("flush", 0).await;
        self.memory.flush().await
    }
    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoError> {
        self.memory.trim(offset, len, fua).await
    }
    async fn write_zeroes(&self, offset: u64, len: u64, no_hole: bool, fua: bool) -> Result<(), IoError> {
        self.memory.write_zeroes(offset, len, no_hole, fua).await
    }
    async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<StatusExtent>, IoError> {
        self.memory.block_status(offset, len).await
    }
}

struct Client {
    socket: DuplexStream,
    server: JoinHandle<Result<(), ConnectionError>>,
    stop: CancellationToken,
}

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const DF: u16 = 4;

fn request(flags: u16, kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_u32(0x2560_9513);
    bytes.put_u16(flags);
    bytes.put_u16(kind);
    bytes.put_u64(cookie);
    bytes.put_u64(offset);
    bytes.put_u32(len);
    bytes
}

impl Client {
    fn new<D: BlockDevice + 'static>(device: Rc<D>, structured: bool, room: usize) -> Self {
        let (socket, theirs) = duplex(room);
        let session = Session { export: "x".into(), structured, base_allocation: structured };
        let stop = CancellationToken::new();
        let server = spawn_local(transmit(
            theirs,
            device,
            session,
            BytesMut::new(),
            BufferPool::new(0),
            stop.clone().cancelled_owned(),
        ));
        Self { socket, server, stop }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    async fn expect(&mut self, want: &[u8]) {
        let mut got = vec![0; want.len()];
        timeout(Duration::from_secs(10), self.socket.read_exact(&mut got)).await.expect("no reply").unwrap();
        assert!(got == want, "got {:x?}, want {:x?}", &got[..want.len().min(64)], &want[..want.len().min(64)]);
    }

    /// The connection closes, with nothing more to read, in the way that `end` judges.
    async fn closes(mut self) -> Result<(), ConnectionError> {
        let mut rest = Vec::new();
        self.socket.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty(), "{rest:x?}");
        self.server.await.unwrap()
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { timeout(Duration::from_secs(60), test).await.expect("it hangs") });
}

/// Lets the server do all that it can.
async fn settle(until: impl Fn() -> bool) {
    while !until() {
        tokio::task::yield_now().await;
    }
}

#[test]
fn replies_come_in_the_order_in_which_the_device_answers() {
    run(async {
        let device = Gate::new(false);
        let mut client = Client::new(device.clone(), false, 1 << 20);
        for i in 0..3u64 {
            client.send(&request(0, READ, i, i * 4096, 4096)).await;
        }
        settle(|| device.waiting().len() == 3).await;
        for i in [2, 0, 1] {
            device.release(i * 4096);
            client.expect(&reply::simple(Cookie(i), None)).await;
            client.expect(&[0; 4096]).await;
        }
        client.send(&request(0, DISC, 9, 0, 0)).await;
        client.closes().await.unwrap();
    });
}

#[test]
fn payloads_arrive_whole_however_they_are_cut() {
    run(async {
        let device = Gate::new(true);
        let mut client = Client::new(device.clone(), false, 1 << 20);
        let data: Vec<u8> = (0..3 << 20).map(|i| (i / 4096 % 251) as u8).collect();
        let mut stream = Vec::new();
        let mut offset = 0;
        // From payloads that wait in the receive buffer to those with a buffer of their own.
        for (i, blocks) in [1, 2, 15, 16, 17, 64, 100, 256, 1, 200].into_iter().enumerate() {
            let len = blocks * 4096;
            stream.extend(request(0, WRITE, i as u64, offset as u64, len as u32));
            stream.extend(&data[offset..offset + len]);
            offset += len;
        }
        let mut cuts = [1, 27, 28, 29, 4096, 70_000, 300_000].into_iter().cycle();
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let n = cuts.next().unwrap().min(rest.len());
            client.send(&rest[..n]).await;
            tokio::task::yield_now().await;
            rest = &rest[n..];
        }
        for i in 0..10 {
            client.expect(&reply::simple(Cookie(i), None)).await;
        }
        client.send(&request(0, READ, 99, 0, offset as u32)).await;
        client.expect(&reply::simple(Cookie(99), None)).await;
        client.expect(&data[..offset]).await;
    });
}

#[test]
fn zeros_go_out_as_holes_unless_one_chunk_is_asked_for() {
    run(async {
        let device = Gate::new(true);
        device.memory.write(2 * 4096, [Bytes::from(vec![7; 8192])].into_iter().collect(), false).await.unwrap();
        let mut client = Client::new(device, true, 1 << 20);
        client.send(&request(0, READ, 1, 0, 6 * 4096)).await;
        client.expect(&reply::hole(Cookie(1), 0, 8192, false)).await;
        client.expect(&reply::data(Cookie(1), 8192, 8192, false)).await;
        client.expect(&[7; 8192]).await;
        client.expect(&reply::hole(Cookie(1), 4 * 4096, 8192, true)).await;

        client.send(&request(DF, READ, 2, 4096, 2 * 4096)).await;
        client.expect(&reply::data(Cookie(2), 4096, 8192, true)).await;
        client.expect(&[[0; 4096], [7; 4096]].concat()).await;

        client.send(&request(0, READ, 3, 0, 0)).await;
        client.expect(&reply::none(Cookie(3))).await;
    });
}

#[test]
fn errors_carry_their_reason_and_the_stream_goes_on() {
    run(async {
        let device = Gate::new(true);
        for structured in [true, false] {
            let mut client = Client::new(device.clone(), structured, 1 << 20);
            let expected = |cookie, errno, message: &str| {
                let mut bytes = BytesMut::new();
                match structured {
                    true => reply::error(Cookie(cookie), errno, message, &mut bytes),
                    false => bytes.put_slice(&reply::simple(Cookie(cookie), Some(errno))),
                }
                bytes
            };
            for (i, (kind, errno)) in [
                (IoErrorKind::NoSpace, Errno::NoSpc),
                (IoErrorKind::Io, Errno::Io),
                (IoErrorKind::Corrupt, Errno::Io),
                (IoErrorKind::Fenced, Errno::Shutdown),
                (IoErrorKind::ShuttingDown, Errno::Shutdown),
                (IoErrorKind::Invalid, Errno::Inval),
                (IoErrorKind::ReadOnly, Errno::Perm),
                (IoErrorKind::NotSupported, Errno::NotSup),
            ]
            .into_iter()
            .enumerate()
            {
                device.memory.fail_next(IoError::new(kind, "the pool is out of order"));
                client.send(&request(0, if i % 2 == 0 { FLUSH } else { READ }, i as u64, 0, 4096)).await;
                client.expect(&expected(i as u64, errno, "the pool is out of order")).await;
            }
            // A refused write's payload is skipped, however long it says it is.
            client.send(&request(0, WRITE, 77, 0, 65 << 20)).await;
            client.send(&vec![1; 65 << 20]).await;
            let too_long = "68157440 bytes in one request: at most 67108864 are taken";
            client.expect(&expected(77, Errno::Inval, too_long)).await;
            client.send(&request(0, TRIM, 78, 0, 4096)).await;
            client.expect(&reply::simple(Cookie(78), None)).await;
        }
    });
}

#[test]
fn stopping_answers_what_was_taken_and_takes_nothing_more() {
    run(async {
        let device = Gate::new(false);
        let mut client = Client::new(device.clone(), false, 1 << 20);
        client.send(&request(0, WRITE, 1, 0, 4096)).await;
        client.send(&[5; 4096]).await;
        settle(|| device.waiting().len() == 1).await;
        client.stop.cancel();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        client.send(&request(0, READ, 2, 4096, 4096)).await;
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(device.waiting(), [("write", 0)], "a request came in after the stop");
        device.release(0);
        client.expect(&reply::simple(Cookie(1), None)).await;
        client.closes().await.unwrap();
    });
}

#[test]
fn a_client_that_goes_leaves_its_requests_running() {
    run(async {
        let device = Gate::new(false);
        let mut client = Client::new(device.clone(), false, 1 << 20);
        client.send(&request(0, WRITE, 1, 8192, 4096)).await;
        client.send(&[5; 4096]).await;
        settle(|| device.waiting().len() == 1).await;
        let Client { socket, server, .. } = client;
        drop(socket);
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(!server.is_finished());
        device.release(8192);
        server.await.unwrap().unwrap_err();
        let read = device.memory.read(8192, 4096).await.unwrap();
        assert_eq!(read[0][..], [5; 4096]);
    });
}

#[test]
fn a_stream_that_breaks_off_or_is_garbage_is_reported() {
    run(async {
        let device = Gate::new(true);
        let mut client = Client::new(device.clone(), false, 1 << 20);
        client.send(&request(0, WRITE, 1, 0, 4096)).await;
        client.send(&[1; 100]).await;
        client.socket.shutdown().await.unwrap();
        assert!(matches!(client.closes().await, Err(ConnectionError::Socket(_))));
        assert_eq!(
            device.memory.block_status(0, 4096).await.unwrap()[0],
            StatusExtent { len: 4096, hole: true, zero: true }
        );

        let mut client = Client::new(device.clone(), false, 1 << 20);
        client.send(&request(0, READ, 1, 0, 4096)).await;
        client.send(&[0xee; 4096]).await;
        client.expect(&reply::simple(Cookie(1), None)).await;
        client.expect(&[0; 4096]).await;
        assert!(matches!(client.closes().await, Err(ConnectionError::OutOfStep(BadMagic(0xeeee_eeee)))));

        let mut client = Client::new(device, false, 1 << 20);
        client.socket.shutdown().await.unwrap();
        client.closes().await.unwrap();
    });
}

#[test]
fn at_the_bound_of_requests_the_socket_is_left_alone() {
    run(async {
        let device = Gate::new(false);
        let mut client = Client::new(device.clone(), false, 16 << 20);
        let sent = 3 * NBD_IN_FLIGHT_REQUESTS_MAX as u64;
        for i in 0..sent {
            client.send(&request(0, READ, i, i * 4096, 4096)).await;
        }
        settle(|| device.waiting().len() == NBD_IN_FLIGHT_REQUESTS_MAX).await;
        for i in 0..sent {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            assert!(device.waiting().len() <= NBD_IN_FLIGHT_REQUESTS_MAX);
            settle(|| !device.waiting().is_empty()).await;
            device.release(i * 4096);
            client.expect(&reply::simple(Cookie(i), None)).await;
            client.expect(&[0; 4096]).await;
        }
    });
}

#[test]
fn at_the_bound_of_bytes_the_socket_is_left_alone() {
    run(async {
        let device = Gate::new(false);
        let len = 8 << 20;
        // A client that asks and asks, and does not read a thing.
        let mut client = Client::new(device.clone(), false, 64 << 10);
        for i in 0..20u64 {
            client.send(&request(0, READ, i, 0, len)).await;
        }
        // What is not payload counts a little, so one less than fit by payload alone.
        let most = NBD_IN_FLIGHT_BYTES_MAX / len as usize - 1;
        settle(|| device.waiting().len() == most).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(device.waiting().len(), most);
        // Answered, but not read by the client: that does not make room either.
        for _ in 0..most {
            device.release(0);
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(device.waiting().len(), 0, "more was taken before a reply was out");
        for i in 0..20u64 {
            while !device.waiting().is_empty() {
                device.release(0);
            }
            client.expect(&reply::simple(Cookie(i), None)).await;
            let mut left = len as usize;
            let mut buffer = vec![0; 1 << 20];
            while left > 0 {
                while !device.waiting().is_empty() {
                    device.release(0);
                }
                left -= client.socket.read(&mut buffer[..left.min(1 << 20)]).await.unwrap();
            }
        }
    });
}

#[test]
fn what_waited_while_its_client_left_is_never_done() {
    run(async {
        let device = Gate::new(false);
        let (mut socket, theirs) = UnixStream::pair().unwrap();
        let session = Session { export: "x".into(), structured: false, base_allocation: false };
        let server = spawn_local(transmit(
            theirs,
            device.clone(),
            session,
            BytesMut::new(),
            BufferPool::new(0),
            std::future::pending(),
        ));
        // To the bound, and one write beyond it.
        for i in 0..NBD_IN_FLIGHT_REQUESTS_MAX as u64 {
            socket.write_all(&request(0, READ, i, 0, 4096)).await.unwrap();
        }
        settle(|| device.waiting().len() == NBD_IN_FLIGHT_REQUESTS_MAX).await;
        socket.write_all(&request(0, WRITE, 999, 1 << 20, 4096)).await.unwrap();
        socket.write_all(&[9; 4096]).await.unwrap();
        drop(socket);
        // The client is back elsewhere, and by now owns that block.
        tokio::time::sleep(Duration::from_millis(10)).await;
        for _ in 0..NBD_IN_FLIGHT_REQUESTS_MAX {
            device.release(0);
            tokio::task::yield_now().await;
        }
        assert!(matches!(server.await.unwrap(), Err(ConnectionError::Socket(_))));
        assert!(device.waiting().is_empty(), "{:?}", device.waiting());
    });
}
