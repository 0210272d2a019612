//! A device that fails: what cannot be written or synced is reported as such, and a sync is really asked for.
//!
//! The device is an nbdkit server that keeps a file, counts flushes and fails on demand, seen as a file through FUSE
//! and as a block device through a loop over that file. Where those cannot be had (not root, no FUSE, no nbdkit), the
//! tests say so and check nothing.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing there")]

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use torus_core::member::{DiskError, DiskEvent, DiskOp, DiskWrite};
use torus_store::{BufferPool, Disk, DiskOptions, Engine, Fill};

const BLOCK: usize = 4096;
const DISK_BYTES: u64 = 16 << 20;

/// Takes its parts down in the order of its fields.
struct BadDevice {
    looped: Option<Loop>,
    _mounted: Mounted,
    _server: Server,
    dir: TempDir,
}

struct Loop(PathBuf);
struct Mounted(PathBuf, Child);
struct Server(Child);

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
        let _ = self.1.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Asked, not killed: a killed one leaves its plugin's scripts in the system's temporary directory. It has a while.
        let asked = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        let ended = asked.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok())
            && (0..500).any(|_| {
                std::thread::sleep(Duration::from_millis(10));
                !matches!(self.0.try_wait(), Ok(None))
            });
        if !ended {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

impl BadDevice {
    /// `None` where it cannot be had.
    fn new(looped: bool) -> Option<Self> {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let at = |name: &str| dir.path().join(name);
        Disk::create(at("data"), DISK_BYTES, Fill::Zeros, |_| {}).unwrap();
        fs::create_dir(at("mnt")).unwrap();
        let d = dir.path().display();
        let fail = |file: &str| format!("if [ -e {d}/{file} ]; then echo EIO as asked >&2; exit 1; fi");
        let server = Command::new("nbdkit")
            .args(["--foreground", "--unix"])
            .arg(at("sock"))
            .arg("eval")
            .arg(format!("get_size=echo {DISK_BYTES}"))
            .arg(format!(
                "pread={}; dd if={d}/data iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none",
                fail("R")
            ))
            .arg("can_write=exit 0")
            .arg(format!("pwrite={}; dd of={d}/data oflag=seek_bytes seek=$4 conv=notrunc status=none", fail("W")))
            .arg("can_flush=exit 0")
            .arg(format!("flush=echo >> {d}/flushes; {}; exit 0", fail("F")))
            .stderr(Stdio::null())
            .spawn();
        let server = Server(or_say("nbdkit", server)?);
        until("the server's socket", || at("sock").exists());
        let uri = format!("nbd+unix:///?socket={}", at("sock").display());
        let mounted = Command::new("nbdfuse").arg(at("mnt/disk")).arg(uri).stderr(Stdio::null()).spawn();
        let mut mounted = Mounted(at("mnt"), or_say("nbdfuse", mounted)?);
        until("the mount", || at("mnt/disk").exists() || mounted.1.try_wait().unwrap().is_some());
        if !at("mnt/disk").exists() {
            eprintln!("skipped: nothing can be mounted through FUSE here");
            return None;
        }
        let looped = if looped { Some(make_loop(&at("mnt/disk"))?) } else { None };
        Some(Self { looped, _mounted: mounted, _server: server, dir })
    }

    fn path(&self) -> PathBuf {
        self.looped.as_ref().map_or_else(|| self.dir.path().join("mnt/disk"), |looped| looped.0.clone())
    }

    fn fail(&self, what: &str) {
        fs::write(self.dir.path().join(what), "").unwrap();
    }

    fn mend(&self, what: &str) {
        fs::remove_file(self.dir.path().join(what)).unwrap();
    }

    fn flushes(&self) -> u64 {
        fs::metadata(self.dir.path().join("flushes")).map_or(0, |file| file.len())
    }
}

fn or_say(tool: &str, made: std::io::Result<Child>) -> Option<Child> {
    made.inspect_err(|error| eprintln!("skipped: {tool} cannot be run here: {error}")).ok()
}

fn make_loop(file: &Path) -> Option<Loop> {
    let made = Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(file).output();
    match made {
        Ok(made) if made.status.success() => Some(Loop(String::from_utf8(made.stdout).unwrap().trim().into())),
        _ => {
            eprintln!("skipped: no loop device can be had here");
            None
        }
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn everywhere(test: impl Fn(&mut Disk, &BadDevice)) {
    for looped in [false, true] {
        let kinds = [(Engine::Uring, false), (Engine::Uring, true), (Engine::Threads, false)];
        for (nth, (engine, write_through)) in kinds.into_iter().enumerate() {
            let Some(device) = BadDevice::new(looped) else {
                assert_eq!(nth, 0, "there was such a device a moment ago");
                return;
            };
            eprintln!("{} by {engine:?}, written through: {write_through}", device.path().display());
            let options = DiskOptions { engine, write_through, ..DiskOptions::new(BufferPool::new(1 << 20)) };
            let mut disk = Disk::open(device.path(), &options).unwrap();
            test(&mut disk, &device);
            drop(disk);
        }
    }
}

fn one(disk: &mut Disk, op: DiskOp) -> DiskEvent {
    disk.submit(op);
    let mut events = Vec::new();
    while events.is_empty() {
        disk.wait().unwrap();
        disk.completions(&mut events);
    }
    assert_eq!((events.len(), disk.outstanding()), (1, 0));
    events.remove(0)
}

/// Commits `byte` at the blocks `at`.
fn commit(disk: &mut Disk, at: &[u64], byte: u8) -> Result<(), DiskError> {
    let write = |block: &u64| DiskWrite {
        offset: block * BLOCK as u64,
        pieces: std::iter::once(Bytes::from(vec![byte; BLOCK])).collect(),
    };
    match one(disk, DiskOp::Commit { id: 9, writes: at.iter().map(write).collect() }) {
        DiskEvent::Committed { id: 9, result } => result,
        other => panic!("not the answer to a commit: {other:?}"),
    }
}

fn read(disk: &mut Disk, block: u64) -> Result<Bytes, DiskError> {
    match one(disk, DiskOp::Read { id: 9, offset: block * BLOCK as u64, len: BLOCK }) {
        DiskEvent::Read { id: 9, result } => result,
        other => panic!("not the answer to a read: {other:?}"),
    }
}

#[test]
fn every_commit_flushes_the_device_before_it_is_reported() {
    everywhere(|disk, device| {
        for at in [&[1][..], &[2, 5, 9], &[]] {
            let before = device.flushes();
            commit(disk, at, 7).unwrap();
            assert!(device.flushes() > before, "a commit of {} places asked for no flush", at.len());
        }
        assert_eq!(read(disk, 5).unwrap(), vec![7; BLOCK]);
    });
}

#[test]
fn opening_flushes_what_an_earlier_process_left() {
    everywhere(|_, device| assert!(device.flushes() > 0));
}

#[test]
fn a_write_that_fails_fails_its_commit() {
    everywhere(|disk, device| {
        let path = disk.path().to_owned();
        device.fail("W");
        for at in [&[3][..], &[4, 8, 12]] {
            let error = commit(disk, at, 1).unwrap_err();
            assert!(error.text.starts_with(&format!("write {} at ", path.display())), "{error}");
            assert!(error.text.ends_with(": Input/output error"), "{error}");
        }
        device.mend("W");
        commit(disk, &[3], 2).unwrap();
        assert_eq!(read(disk, 3).unwrap(), vec![2; BLOCK]);
        assert_eq!(read(disk, 4).unwrap(), vec![0; BLOCK], "a write that failed is not tried again");
    });
}

#[test]
fn a_sync_that_fails_fails_its_commit() {
    everywhere(|disk, device| {
        device.fail("F");
        for at in [&[3][..], &[4, 8, 12], &[]] {
            let error = commit(disk, at, 1).unwrap_err();
            assert!(error.text.ends_with(": Input/output error"), "{error}");
        }
        device.mend("F");
        commit(disk, &[3], 2).unwrap();
    });
}

#[test]
fn a_read_that_fails_is_an_error_and_no_bytes() {
    everywhere(|disk, device| {
        device.fail("R");
        let error = read(disk, 3).unwrap_err();
        assert_eq!(error.text, format!("read {} at {}: Input/output error", disk.path().display(), 3 * BLOCK));
        device.mend("R");
        assert_eq!(read(disk, 3).unwrap(), vec![0; BLOCK]);
    });
}
