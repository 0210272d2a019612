//! What every disk does, whoever carries out its I/O and whatever it lies on.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing there")]

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use torus_core::member::{DiskEvent, DiskOp, DiskReader, DiskWrite};
use torus_store::{BufferPool, Disk, DiskOptions, Engine, Fill};

const BLOCK: usize = 4096;
const DISK_BYTES: u64 = 16 << 20;

/// Where a disk lies, and what has to be taken down after it.
struct Place {
    name: &'static str,
    path: PathBuf,
    buffered: bool,
    looped: bool,
    _dir: TempDir,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.looped {
            let _ = Command::new("losetup").arg("-d").arg(&self.path).status();
        }
    }
}

fn file(name: &'static str, buffered: bool) -> Place {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk");
    Disk::create(&path, DISK_BYTES, Fill::Zeros, |_| {}).unwrap();
    Place { name, path, buffered, looped: false, _dir: dir }
}

/// A loop device over a file, where this process may make one.
fn device() -> Option<Place> {
    let mut place = file("loop device", false);
    let made = Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(&place.path).output().ok()?;
    if !made.status.success() {
        eprintln!("no loop device to be had here: {}", String::from_utf8_lossy(&made.stderr).trim());
        return None;
    }
    place.path = String::from_utf8(made.stdout).unwrap().trim().into();
    place.looped = true;
    Some(place)
}

/// Runs `test` on a disk of each kind that can be had here.
fn everywhere(test: impl Fn(&mut Disk, &Path)) {
    let places = [Some(file("file, direct", false)), Some(file("file, buffered", true)), device()];
    for place in places.iter().flatten() {
        for (engine, write_through) in [(Engine::Uring, false), (Engine::Uring, true), (Engine::Threads, false)] {
            eprintln!("{} by {engine:?}, written through: {write_through}", place.name);
            let options = DiskOptions { buffered: place.buffered, engine, write_through, ..options() };
            let mut disk = Disk::open(&place.path, &options).unwrap();
            assert_eq!((disk.bytes(), disk.engine()), (DISK_BYTES, engine));
            test(&mut disk, &place.path);
        }
    }
}

fn options() -> DiskOptions {
    DiskOptions::new(BufferPool::new(1 << 20))
}

fn pattern(blocks: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..blocks * BLOCK).map(|_| next()).collect()
}

fn aligned(pool: &BufferPool, blocks: usize, seed: u64) -> Bytes {
    let mut buffer = pool.take(blocks * BLOCK);
    buffer.copy_from_slice(&pattern(blocks, seed));
    buffer.freeze()
}

/// Whole blocks at an odd address.
fn crooked(blocks: usize, seed: u64) -> Bytes {
    let mut odd = vec![0; 2 * BLOCK];
    odd.extend(pattern(blocks, seed));
    odd.extend([0; BLOCK]);
    let start = odd.as_ptr().align_offset(BLOCK) + 1;
    odd.copy_within(2 * BLOCK..2 * BLOCK + blocks * BLOCK, start);
    Bytes::from(odd).slice(start..start + blocks * BLOCK)
}

fn write(offset: u64, pieces: impl IntoIterator<Item = Bytes>) -> DiskWrite {
    DiskWrite { offset, pieces: pieces.into_iter().collect() }
}

/// The events of everything in flight.
fn finish(disk: &mut Disk) -> Vec<DiskEvent> {
    let mut events = Vec::new();
    disk.completions(&mut events);
    while disk.outstanding() > 0 {
        disk.wait().unwrap();
        disk.completions(&mut events);
    }
    events
}

fn read(disk: &mut Disk, offset: u64, len: usize) -> Bytes {
    disk.submit(DiskOp::Read { id: 77, offset, len });
    match finish(disk).pop() {
        Some(DiskEvent::Read { id: 77, result }) => result.unwrap(),
        other => panic!("not the answer to a read: {other:?}"),
    }
}

fn readable(disk: &Disk) -> bool {
    let mut fds = [PollFd::new(disk, PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

#[test]
fn what_is_committed_is_there_for_this_process_and_the_next() {
    everywhere(|disk, path| {
        let pool = disk.pool().clone();
        let (a, b, c) = (aligned(&pool, 2, 1), crooked(3, 2), aligned(&pool, 300, 3));
        let writes = vec![
            write(8 << 20, [c.clone()]),
            write(0, [a.clone(), b.clone()]),
            write(5 * BLOCK as u64, [a.clone()]),
            write(DISK_BYTES - BLOCK as u64, [crooked(1, 4)]),
        ];
        disk.submit(DiskOp::Commit { id: 1, writes });
        assert_eq!(finish(disk), [DiskEvent::Committed { id: 1, result: Ok(()) }]);
        let head = [&a[..], &b, &a].concat();
        assert_eq!(read(disk, 0, 7 * BLOCK), head);
        assert_eq!(read(disk, 8 << 20, 300 * BLOCK), c);
        assert_eq!(read(disk, DISK_BYTES - BLOCK as u64, BLOCK), pattern(1, 4));
        let on_disk = fs::read(path).unwrap();
        assert_eq!(on_disk.len() as u64, DISK_BYTES, "a disk never grows");
        assert_eq!(on_disk[..7 * BLOCK], head);
    });
}

#[test]
fn a_commit_of_one_place_and_one_of_nothing_are_commits_too() {
    everywhere(|disk, _| {
        for id in 0..20 {
            let bytes = crooked(2, id);
            disk.submit(DiskOp::Commit { id, writes: vec![write(id * 2 * BLOCK as u64, [bytes])] });
            assert_eq!(finish(disk), [DiskEvent::Committed { id, result: Ok(()) }]);
        }
        disk.submit(DiskOp::Commit { id: 20, writes: vec![] });
        assert_eq!(finish(disk), [DiskEvent::Committed { id: 20, result: Ok(()) }]);
        for id in 0..20 {
            assert_eq!(read(disk, id * 2 * BLOCK as u64, 2 * BLOCK), pattern(2, id));
        }
    });
}

#[test]
fn what_is_performed_is_done_when_it_is_told() {
    everywhere(|disk, path| {
        let pool = disk.pool().clone();
        // Beside something that is on its way, which it leaves alone.
        disk.submit(DiskOp::Commit { id: 1, writes: vec![write(8 << 20, [aligned(&pool, 4, 1)])] });
        let writes = vec![write(0, [crooked(1, 2), aligned(&pool, 2, 3)]), write(9 * BLOCK as u64, [crooked(1, 4)])];
        assert_eq!(disk.perform(DiskOp::Commit { id: 2, writes }), DiskEvent::Committed { id: 2, result: Ok(()) });
        let on_disk = fs::read(path).unwrap();
        assert_eq!(on_disk[..3 * BLOCK], [pattern(1, 2), pattern(2, 3)].concat());
        let read = disk.perform(DiskOp::Read { id: 3, offset: 9 * BLOCK as u64, len: BLOCK });
        assert_eq!(read, DiskEvent::Read { id: 3, result: Ok(pattern(1, 4).into()) });
        drop(read);
        assert_eq!(finish(disk), [DiskEvent::Committed { id: 1, result: Ok(()) }]);
        assert_eq!(pool.in_use_bytes(), 0);
    });
}

#[test]
fn the_descriptor_tells_when_there_is_something_and_is_quiet_when_not() {
    everywhere(|disk, _| {
        assert!(!readable(disk));
        disk.submit(DiskOp::Commit { id: 1, writes: vec![write(0, [crooked(1, 1)])] });
        disk.wait().unwrap();
        assert!(readable(disk), "it stays readable until the events are collected");
        finish(disk);
        // A write and the sync linked to it raise it once each. The kernel shows a completion before it raises the
        // descriptor for it (it does so late once in about a thousand times here), so one of the two may still come.
        let mut events = Vec::new();
        let mut raised = 1;
        while readable(disk) {
            raised += 1;
            assert!(raised <= 2, "it is readable for nothing");
            disk.completions(&mut events);
        }
        disk.completions(&mut events);
        assert_eq!(events, []);
    });
}

#[test]
fn far_more_operations_than_fit_into_the_kernel_each_get_their_own_answer() {
    everywhere(|disk, _| {
        let count = 1500u64;
        let blocks = DISK_BYTES / BLOCK as u64;
        let writes = (0..blocks).map(|n| write(n * BLOCK as u64, [Bytes::from(vec![n as u8; BLOCK])])).collect();
        disk.submit(DiskOp::Commit { id: 0, writes });
        assert_eq!(finish(disk), [DiskEvent::Committed { id: 0, result: Ok(()) }]);
        let place = |id: u64| id * 37 % blocks;
        disk.submit_all((0..count).map(|id| DiskOp::Read { id, offset: place(id) * BLOCK as u64, len: BLOCK }));
        let scattered = (0..400).map(|n| write(n * 2 * BLOCK as u64, [Bytes::from(vec![(n * 2) as u8; BLOCK])]));
        disk.submit(DiskOp::Commit { id: count, writes: scattered.collect() });
        let single = |id: u64| DiskOp::Commit {
            id,
            writes: vec![write((id * 2 % blocks) * BLOCK as u64, [Bytes::from(vec![(id * 2 % blocks) as u8; BLOCK])])],
        };
        disk.submit_all((count + 1..=2 * count).map(single));
        let mut seen = vec![false; count as usize];
        let mut committed = 0;
        for event in finish(disk) {
            match event {
                DiskEvent::Read { id, result } => {
                    assert!(!std::mem::replace(&mut seen[id as usize], true), "read {id} was answered twice");
                    assert_eq!(result.unwrap(), vec![place(id) as u8; BLOCK], "read {id}");
                }
                DiskEvent::Committed { id, result } => {
                    assert!((count..=2 * count).contains(&id) && result.is_ok(), "{id}: {result:?}");
                    committed += 1;
                }
            }
        }
        assert!(seen.iter().all(|&seen| seen) && committed == count + 1);
    });
}

#[test]
fn memory_is_given_back() {
    everywhere(|disk, _| {
        let pool = disk.pool().clone();
        disk.submit(DiskOp::Commit { id: 1, writes: vec![write(0, [crooked(4, 1), aligned(&pool, 3, 2)])] });
        let events = finish(disk);
        assert_eq!((events.len(), pool.in_use_bytes()), (1, 0), "a commit keeps nothing");
        let bytes = read(disk, 0, 4 * BLOCK);
        assert_eq!(pool.in_use_bytes(), 4 * BLOCK);
        drop(bytes);
        assert_eq!(pool.in_use_bytes(), 0);
    });
}

#[test]
fn a_disk_that_became_shorter_gives_errors_and_not_fewer_bytes() {
    for engine in [Engine::Uring, Engine::Threads] {
        let place = file("file", false);
        let mut disk = Disk::open(&place.path, &DiskOptions { engine, ..options() }).unwrap();
        fs::OpenOptions::new().write(true).open(&place.path).unwrap().set_len(6 * BLOCK as u64).unwrap();
        for (offset, done) in [(4 * BLOCK as u64, 2 * BLOCK), (8 * BLOCK as u64, 0)] {
            let op = DiskOp::Read { id: 1, offset, len: 4 * BLOCK };
            let performed = disk.perform(op.clone());
            assert!(matches!(&performed, DiskEvent::Read { id: 1, result: Err(_) }), "{performed:?}");
            disk.submit(op);
            let Some(DiskEvent::Read { id: 1, result: Err(error) }) = finish(&mut disk).pop() else {
                panic!("the read at {offset} should have failed")
            };
            let text = format!("read {} at {offset}: ended after {done} of {} bytes", place.path.display(), 4 * BLOCK);
            assert_eq!(error.text, text);
        }
    }
}

#[test]
fn closing_waits_for_everything_and_lets_the_next_one_in() {
    for engine in [Engine::Uring, Engine::Threads] {
        let place = file("file", false);
        let mut disk = Disk::open(&place.path, &DiskOptions { engine, ..options() }).unwrap();
        disk.submit(DiskOp::Commit {
            id: 1,
            writes: vec![write(0, [crooked(64, 9)]), write(4 << 20, [crooked(9, 2)])],
        });
        disk.submit_all((0..300).map(|id| DiskOp::Read { id, offset: 8 << 20, len: BLOCK }));
        let mut events = Vec::new();
        disk.close(&mut events).unwrap();
        assert_eq!(events.len(), 301);
        assert!(events.contains(&DiskEvent::Committed { id: 1, result: Ok(()) }));
        let mut disk = Disk::open(&place.path, &DiskOptions { engine, ..options() }).unwrap();
        assert_eq!(read(&mut disk, 4 << 20, 9 * BLOCK), pattern(9, 2));
    }
}

#[test]
fn dropping_a_busy_disk_is_safe_and_frees_it() {
    for engine in [Engine::Uring, Engine::Threads] {
        let place = file("file", false);
        let pool = BufferPool::new(1 << 20);
        for _ in 0..20 {
            let options = DiskOptions { engine, ..DiskOptions::new(pool.clone()) };
            let mut disk = Disk::open(&place.path, &options).unwrap();
            disk.submit(DiskOp::Commit { id: 1, writes: (0..50).map(|n| write(n << 16, [crooked(4, n)])).collect() });
            disk.submit_all((0..400).map(|id| DiskOp::Read { id, offset: id << 14, len: 4 * BLOCK }));
            drop(disk);
            assert_eq!(pool.in_use_bytes(), 0, "the kernel has nothing of ours any more");
        }
    }
}

#[test]
fn a_disk_opened_on_one_thread_serves_another() {
    for engine in [Engine::Uring, Engine::Threads] {
        let place = file("file", false);
        let mut disk = Disk::open(&place.path, &DiskOptions { engine, ..options() }).unwrap();
        disk.submit(DiskOp::Commit { id: 1, writes: vec![write(0, [crooked(2, 5)])] });
        finish(&mut disk);
        let bytes = std::thread::spawn(move || read(&mut disk, 0, 2 * BLOCK)).join().unwrap();
        assert_eq!(bytes, pattern(2, 5));
    }
}

#[test]
fn a_scan_reads_what_is_there_in_any_order() {
    everywhere(|disk, _| {
        let blocks = DISK_BYTES / BLOCK as u64;
        let writes =
            (0..blocks).map(|n| write(n * BLOCK as u64, [Bytes::from(vec![(n % 251) as u8; BLOCK])])).collect();
        disk.submit(DiskOp::Commit { id: 0, writes });
        finish(disk);
        let mut scan = disk.scan();
        assert_eq!(scan.size(), DISK_BYTES);
        // A stride to the end of the disk, then back, the same again, and strides that break off.
        let strided = (0..blocks).step_by(16);
        let order =
            strided.clone().chain([3]).chain(strided).chain([9, 10, 11, 12, 500, 13, 14, 15, 16, 2, 1, 0, 0, 0]);
        for block in order {
            let bytes = scan.read(block * BLOCK as u64, BLOCK).unwrap();
            assert!(bytes.iter().all(|&byte| byte == (block % 251) as u8) && bytes.len() == BLOCK, "block {block}");
        }
        let long = scan.read(0, 1 << 20).unwrap();
        assert!(long.chunks(BLOCK).enumerate().all(|(n, block)| block[0] == (n % 251) as u8));
        for (offset, len) in
            [(DISK_BYTES, BLOCK), (DISK_BYTES - BLOCK as u64, 2 * BLOCK), (1, BLOCK), (0, 7), (u64::MAX, 1)]
        {
            assert!(scan.read(offset, len).is_err());
        }
        drop(scan);
        assert_eq!(disk.outstanding(), 0, "a scan leaves nothing behind");
        assert_eq!(read(disk, 0, BLOCK), vec![0; BLOCK]);
    });
}
