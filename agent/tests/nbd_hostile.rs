//! Clients that mean harm. Each gets an error by the specification or a closed connection, the memory of the process
//! stays within what the limits say, and somebody else's I/O on the same server goes on meanwhile.
//!
//! One test, because it watches the memory of its whole process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "nbd/server.rs"]
mod server;

use bytes::Bytes;
use futures::executor::block_on;
use server::TestServer;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use torus_agent::device::BlockDevice;
use torus_core::limits::{NBD_CONNECTIONS_MAX, NBD_IN_FLIGHT_BYTES_MAX, NBD_REQUEST_BYTES_MAX};

const SIZE: u64 = 64 << 20;
const ONE: &[(&str, u64, bool)] = &[("db-0", SIZE, false)];

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;

const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

/// A client made of bytes.
struct Raw(UnixStream);

impl Raw {
    /// Connects and reads the greeting.
    fn connect(server: &TestServer) -> Self {
        let socket = UnixStream::connect(server.socket()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut raw = Self(socket);
        assert_eq!(raw.read(18), b"NBDMAGICIHAVEOPT\0\x03");
        raw
    }

    /// Goes straight to the transmission phase.
    fn export(server: &TestServer) -> Self {
        let mut raw = Self::connect(server);
        raw.write(&[&3u32.to_be_bytes()[..], b"IHAVEOPT", &1u32.to_be_bytes(), &4u32.to_be_bytes(), b"db-0"].concat());
        assert_eq!(raw.read(10)[..8], SIZE.to_be_bytes());
        raw
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    fn read(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn request(&mut self, flags: u16, kind: u16, cookie: u64, offset: u64, len: u32) {
        self.write(&request(flags, kind, cookie, offset, len));
    }

    /// The error number of the next simple reply, which answers `cookie`.
    fn reply(&mut self, cookie: u64) -> u32 {
        let reply = self.read(16);
        assert_eq!(reply[..4], 0x6744_6698u32.to_be_bytes());
        assert_eq!(reply[8..], cookie.to_be_bytes());
        u32::from_be_bytes(reply[4..8].try_into().unwrap())
    }

    /// The server closes, whatever it still says before.
    fn closes(mut self) {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "it is still open"),
        }
    }

    /// Writes as much of `bytes` as the server takes within a moment; gives how much. The server may close.
    fn flood(&mut self, bytes: &[u8], most: usize) -> usize {
        self.0.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut sent = 0;
        while sent < most {
            match self.0.write(&bytes[..bytes.len().min(most - sent)]) {
                Ok(n) => sent += n,
                Err(_) => break,
            }
        }
        sent
    }
}

fn request(flags: u16, kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let parts = [&0x2560_9513u32.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes(), &cookie.to_be_bytes()];
    [parts.concat(), offset.to_be_bytes().to_vec(), len.to_be_bytes().to_vec()].concat()
}

/// What the process holds in memory, in bytes.
fn memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Noise that is the same in every run.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// An honest client on the last megabyte of the device, until it is told to stop.
fn bystander(server: &TestServer, stop: Arc<AtomicBool>, slowest_ms: Arc<AtomicU64>) -> std::thread::JoinHandle<u64> {
    let mut raw = Raw::export(server);
    std::thread::spawn(move || {
        let mut rounds = 0u64;
        while !stop.load(Ordering::Relaxed) {
            let data = noise(rounds + 1, 4096);
            let offset = SIZE - 4096 * (1 + rounds % 256);
            let begun = Instant::now();
            raw.request(0, WRITE, rounds, offset, 4096);
            raw.write(&data);
            assert_eq!(raw.reply(rounds), 0);
            raw.request(0, READ, rounds, offset, 4096);
            assert_eq!(raw.reply(rounds), 0);
            assert!(raw.read(4096) == data, "another's bytes");
            slowest_ms.fetch_max(begun.elapsed().as_millis() as u64, Ordering::Relaxed);
            rounds += 1;
        }
        raw.request(0, DISC, 0, 0, 0);
        raw.closes();
        rounds
    })
}

#[test]
fn hostile_clients_hurt_themselves_alone() {
    let server = TestServer::new(ONE);
    // Filled first, so that what grows later is not the device.
    server.device(0, |device| {
        let all = [Bytes::from(vec![1; SIZE as usize])].into_iter().collect();
        block_on(device.write(0, all, false)).unwrap();
    });

    let (stop, slowest_ms) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let honest = bystander(&server, stop.clone(), slowest_ms.clone());
    let before = memory_bytes();
    let grown = || memory_bytes().saturating_sub(before);

    garbage_in_the_negotiation(&server);
    absurd_options(&server);
    garbage_for_requests(&server);
    absurd_ranges(&server);
    one_byte_at_a_time(&server);
    let small = grown();
    assert!(small < 64 << 20, "{small} bytes for garbage");

    lengths_that_are_lies(&server, &grown);
    payload_that_nobody_wants(&server);
    asking_without_listening(&server, &grown);
    too_many_connections(&server);

    stop.store(true, Ordering::Relaxed);
    let rounds = honest.join().unwrap();
    let slowest_ms = slowest_ms.load(Ordering::Relaxed);
    assert!(
        rounds > 100 && slowest_ms < 5_000,
        "the honest client did {rounds} rounds, the slowest in {slowest_ms} ms"
    );
}

fn garbage_in_the_negotiation(server: &TestServer) {
    for first in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"SSH-2.0-x\r\n", b"\x16\x03\x01\x02\x00", &[0xff; 4]] {
        let mut raw = Raw::connect(server);
        raw.flood(&first.repeat(100), 4096);
        raw.closes();
    }
    for seed in 0..50 {
        let mut raw = Raw::connect(server);
        raw.write(&3u32.to_be_bytes());
        raw.flood(&noise(seed, 10_000), 10_000);
        raw.closes();
        let mut tcp = TcpStream::connect(server.address).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // It may be closed before all is written, which is as well.
        let _ = tcp.write_all(&noise(seed, 10_000));
        match tcp.read_to_end(&mut Vec::new()) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "it is still open"),
        }
    }
    for option in 0..13u32 {
        // An option that begins well and goes on with noise.
        let mut raw = Raw::connect(server);
        raw.write(&3u32.to_be_bytes());
        raw.write(b"IHAVEOPT");
        raw.write(&option.to_be_bytes());
        raw.write(&300u32.to_be_bytes());
        raw.flood(&noise(option.into(), 10_000), 10_000);
        raw.closes();
    }
}

fn absurd_options(server: &TestServer) {
    let mut raw = Raw::connect(server);
    raw.write(&3u32.to_be_bytes());
    for _ in 0..3 {
        raw.write(&[&b"IHAVEOPT"[..], &7u32.to_be_bytes(), &(256u32 << 20).to_be_bytes()].concat());
        raw.0.set_write_timeout(None).unwrap();
        let chunk = vec![0; 1 << 20];
        for _ in 0..256 {
            raw.write(&chunk);
        }
        let reply = raw.read(20);
        assert_eq!(reply[12..16], 0x8000_0009u32.to_be_bytes(), "too big");
        let len = u32::from_be_bytes(reply[16..].try_into().unwrap());
        raw.read(len as usize);
    }
}

fn garbage_for_requests(server: &TestServer) {
    for seed in 0..50 {
        let mut raw = Raw::export(server);
        raw.flood(&noise(seed, 100_000), 100_000);
        raw.closes();
    }
    // Good magic, and noise for the rest of the header.
    let mut raw = Raw::export(server);
    for seed in 0..200u64 {
        let mut bytes = request(0, 0, seed, 0, 0);
        bytes[4..8].copy_from_slice(&noise(seed, 4));
        bytes[16..].copy_from_slice(&noise(seed + 1000, 12));
        // Not a write, whose payload would have to follow, nor a farewell.
        bytes[6] |= 0x80;
        raw.write(&bytes);
        assert_eq!(raw.reply(seed), EINVAL);
    }
}

fn absurd_ranges(server: &TestServer) {
    let mut raw = Raw::export(server);
    for (cookie, (kind, offset, len, want)) in [
        (READ, u64::MAX, 1, EINVAL),
        (READ, u64::MAX - 4095, 4096, EINVAL),
        (READ, SIZE - 1, 2, EINVAL),
        (READ, 0, NBD_REQUEST_BYTES_MAX + 1, EINVAL),
        (READ, 0, u32::MAX, EINVAL),
        (4, 1 << 63, u32::MAX, EINVAL),
        (6, u64::MAX, u32::MAX, ENOSPC),
        (7, 0, 4096, EINVAL),
    ]
    .into_iter()
    .enumerate()
    {
        raw.request(0, kind, cookie as u64, offset, len);
        assert_eq!(raw.reply(cookie as u64), want, "{kind} {offset} {len}");
    }
    raw.request(0, WRITE, 9, u64::MAX - 511, 512);
    raw.write(&[0; 512]);
    assert_eq!(raw.reply(9), ENOSPC);
    // And the stream is in step.
    raw.request(0, READ, 10, 0, 1);
    assert_eq!((raw.reply(10), raw.read(1)), (0, vec![1]));
}

fn one_byte_at_a_time(server: &TestServer) {
    let mut raw = Raw::connect(server);
    let hello = [&3u32.to_be_bytes()[..], b"IHAVEOPT", &1u32.to_be_bytes(), &4u32.to_be_bytes(), b"db-0"].concat();
    for byte in hello {
        raw.write(&[byte]);
    }
    raw.read(10);
    for byte in [request(0, WRITE, 1, 100, 3), b"abc".to_vec(), request(0, READ, 2, 99, 5)].concat() {
        raw.write(&[byte]);
    }
    assert_eq!(raw.reply(1), 0);
    assert_eq!((raw.reply(2), raw.read(5)), (0, b"\x01abc\x01".to_vec()));
}

/// Every connection promises the largest write and sends next to nothing of it.
fn lengths_that_are_lies(server: &TestServer, grown: &impl Fn() -> u64) {
    let mut liars: Vec<_> = (0..60).map(|_| Raw::export(server)).collect();
    for raw in &mut liars {
        raw.request(0, WRITE, 1, 0, NBD_REQUEST_BYTES_MAX);
        raw.write(&[0; 100_000]);
    }
    // Whatever was sent is taken in by now: an honest answer on each of as many new connections says so.
    let mut honest = Raw::export(server);
    honest.request(0, READ, 1, 0, 1);
    assert_eq!(honest.reply(1), 0);
    let grown = grown();
    assert!(grown < 128 << 20, "{grown} bytes for 60 promises of 64 MiB");
}

fn payload_that_nobody_wants(server: &TestServer) {
    let mut raw = Raw::export(server);
    raw.request(0, WRITE, 1, 0, 1 << 30);
    let chunk = vec![0; 1 << 20];
    for _ in 0..1 << 10 {
        raw.write(&chunk);
    }
    assert_eq!(raw.reply(1), EINVAL);
    // Half of it, and gone.
    raw.request(0, WRITE, 2, 0, u32::MAX);
    raw.flood(&chunk, 64 << 20);
}

/// Asks for more and more, and reads no answer.
fn asking_without_listening(server: &TestServer, grown: &impl Fn() -> u64) {
    let mut deaf: Vec<_> = (0..4).map(|_| Raw::export(server)).collect();
    let ask = request(0, READ, 1, 0, NBD_REQUEST_BYTES_MAX).repeat(1000);
    for raw in &mut deaf {
        let sent = raw.flood(&ask, 64 << 20);
        assert!(sent < 8 << 20, "{sent} bytes of requests were taken in");
    }
    let bound = deaf.len() as u64 * NBD_IN_FLIGHT_BYTES_MAX as u64 + (64 << 20);
    let grown = grown();
    assert!(grown < bound, "{grown} bytes for four clients that do not listen, at most {bound} wanted");
    // Small ones: the count is bounded too.
    let mut raw = Raw::export(server);
    let sent = raw.flood(&request(0, READ, 1, 0, 1).repeat(10_000), 64 << 20);
    assert!(sent < 16 << 20, "{sent} bytes of small requests were taken in");
    // And refusals, which cost no I/O.
    let mut raw = Raw::export(server);
    let sent = raw.flood(&request(0, 99, 1, 0, 1).repeat(10_000), 64 << 20);
    assert!(sent < 16 << 20, "{sent} bytes of nonsense were taken in");
}

fn too_many_connections(server: &TestServer) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut held = Vec::new();
    let turned_away = loop {
        let mut socket = UnixStream::connect(server.socket()).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut greeting = [0; 18];
        match socket.read_exact(&mut greeting) {
            Ok(()) => held.push(socket),
            Err(_) => break held.len(),
        }
        assert!(held.len() <= NBD_CONNECTIONS_MAX, "no bound on connections");
    };
    assert!(turned_away > NBD_CONNECTIONS_MAX / 2, "turned away after {turned_away}");
    drop(held);
    // Their places are free again.
    loop {
        let mut socket = UnixStream::connect(server.socket()).unwrap();
        if socket.read_exact(&mut [0; 18]).is_ok() {
            break;
        }
        assert!(Instant::now() < deadline, "still turned away");
    }
}
