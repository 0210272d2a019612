//! Opening and making disks: one process at a time, and a sentence for everything that can be in the way.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing there")]

use rustix::fs::{SeekFrom, seek};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use std::error::Error;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;
use torus_store::{BufferPool, Disk, DiskOptions, Fill, OpenError};

const DISK_BYTES: u64 = 16 << 20;

fn dir() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn new_disk(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("disk");
    Disk::create(&path, DISK_BYTES, Fill::Reserve, |_| {}).unwrap();
    path
}

/// Waits no longer than a kernel may need to let go of what was in flight.
fn impatient() -> DiskOptions {
    DiskOptions { lock_wait_max: Duration::from_secs(1), ..DiskOptions::new(BufferPool::new(0)) }
}

fn refusal(path: &Path) -> String {
    let error = Disk::open(path, &impatient()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("{path:?}")), "the disk is not named: {text}");
    if let Some(source) = error.source() {
        assert!(!text.contains(&source.to_string()), "the source is for whoever prints the chain: {text}");
    }
    text
}

#[test]
fn what_is_not_a_disk_is_refused_by_name() {
    let dir = dir();
    let at = |name: &str| dir.path().join(name);
    assert!(refusal(&at("nothing")).contains("no disk at"));
    assert!(refusal(&at("nothing/below")).contains("no disk at"));
    assert!(refusal(dir.path()).contains("is a directory"));
    assert!(refusal(Path::new("/dev/null")).contains("is a character device"));
    assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
    assert!(refusal(&at("pipe")).contains("is a pipe"), "and opening it did not wait for a writer");
    fs::write(at("small"), vec![0; 100_000]).unwrap();
    assert!(refusal(&at("small")).contains("has 98304 bytes"), "whole blocks count");
    symlink(at("loop"), at("loop")).unwrap();
    assert!(refusal(&at("loop")).contains("cannot look at disk"));
}

#[test]
fn a_disk_is_opened_by_one_at_a_time_and_through_any_name() {
    let dir = dir();
    let path = new_disk(&dir);
    let other = dir.path().join("other name");
    symlink(&path, &other).unwrap();
    let disk = Disk::open(&path, &impatient()).unwrap();
    for path in [&path, &other] {
        assert!(refusal(path).contains("is in use by another process"));
    }
    drop(disk);
    assert_eq!(Disk::open(&other, &impatient()).unwrap().bytes(), DISK_BYTES);
}

/// Copies of all descriptors of this process that are open on `path`, as a child has them between fork and exec.
fn copies(path: &Path) -> Vec<OwnedFd> {
    let path = path.canonicalize().unwrap();
    let this = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let all = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    let of_path = all.filter(|fd| fs::read_link(fd).is_ok_and(|target| target == path));
    let number = |fd: PathBuf| fd.file_name().unwrap().to_str().unwrap().parse().unwrap();
    of_path.map(|fd| pidfd_getfd(&this, number(fd), PidfdGetfdFlags::empty()).unwrap()).collect()
}

#[test]
fn a_child_that_has_not_run_its_program_yet_keeps_no_disk() {
    let dir = dir();
    let path = new_disk(&dir);
    let disk = Disk::open(&path, &impatient()).unwrap();
    let copies = copies(&path);
    assert_eq!(copies.len(), 1);
    drop(disk);
    let at_once = DiskOptions { lock_wait_max: Duration::ZERO, ..impatient() };
    assert_eq!(Disk::open(&path, &at_once).unwrap().bytes(), DISK_BYTES);
    drop(copies);
}

#[test]
fn opening_waits_a_little_for_who_is_about_to_let_go() {
    let dir = dir();
    let path = new_disk(&dir);
    let disk = Disk::open(&path, &impatient()).unwrap();
    let patient = DiskOptions { lock_wait_max: Duration::from_secs(60), ..impatient() };
    let next = std::thread::spawn(move || Disk::open(&path, &patient).map(|disk| disk.bytes()));
    std::thread::sleep(Duration::from_millis(1200));
    assert!(!next.is_finished());
    drop(disk);
    assert_eq!(next.join().unwrap().unwrap(), DISK_BYTES);
}

#[test]
fn a_device_is_opened_by_one_at_a_time() {
    let dir = dir();
    let path = new_disk(&dir);
    let made = Command::new("losetup").args(["--find", "--show"]).arg(&path).output();
    let Some(made) = made.ok().filter(|made| made.status.success()) else {
        eprintln!("skipped: no loop device can be had here");
        return;
    };
    let device = PathBuf::from(String::from_utf8(made.stdout).unwrap().trim());
    let disk = Disk::open(&device, &impatient());
    let second = disk.is_ok().then(|| refusal(&device));
    let bytes = disk.as_ref().map(Disk::bytes).ok();
    drop(disk);
    assert!(Command::new("losetup").arg("-d").arg(&device).status().unwrap().success());
    assert_eq!(bytes, Some(DISK_BYTES));
    assert!(second.unwrap().contains("is in use by another process or mounted"));
}

#[test]
fn a_filesystem_without_direct_io_is_an_error_that_names_the_way_out() {
    let dir = dir();
    // ramfs has none; tmpfs had none until Linux 6.6.
    let mounted = Command::new("mount").args(["-t", "ramfs", "none"]).arg(dir.path()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no ramfs can be mounted here");
        return;
    }
    let path = dir.path().join("disk");
    let file = File::create(&path).and_then(|file| file.set_len(DISK_BYTES));
    let refused = Disk::open(&path, &impatient()).map(drop);
    let buffered = Disk::open(&path, &DiskOptions { buffered: true, ..impatient() });
    let notes = buffered.map(|disk| disk.notes().to_vec());
    assert!(Command::new("umount").arg(dir.path()).status().unwrap().success());
    file.unwrap();
    assert!(matches!(refused, Err(OpenError::NoDirectIo { .. })), "{refused:?}");
    assert!(refused.unwrap_err().to_string().ends_with("move the disk, or open it with buffered I/O"));
    assert!(notes.unwrap()[0].contains("buffered I/O, as asked for"));
}

#[test]
fn a_new_disk_has_all_its_space_and_says_how_far_it_is() {
    let dir = dir();
    let path = dir.path().join("disk");
    let mut seen = Vec::new();
    Disk::create(&path, DISK_BYTES + 5000, Fill::Zeros, |done| seen.push(done)).unwrap();
    assert!(seen.is_sorted() && seen.last() == Some(&(DISK_BYTES + 4096)), "{seen:?}");
    let file = File::open(&path).unwrap();
    let hole = seek(&file, SeekFrom::Hole(0)).unwrap();
    assert_eq!(hole, DISK_BYTES + 4096, "nothing in it is unwritten");
    assert!(fs::read(&path).unwrap().iter().all(|&byte| byte == 0));
}

#[test]
fn nothing_is_ever_overwritten_by_a_new_disk() {
    let dir = dir();
    let path = dir.path().join("disk");
    fs::write(&path, "precious").unwrap();
    let error = Disk::create(&path, DISK_BYTES, Fill::Zeros, |_| {}).unwrap_err();
    assert!(matches!(error, OpenError::Exists { .. }), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    let dangling = dir.path().join("link");
    symlink(dir.path().join("elsewhere"), &dangling).unwrap();
    let error = Disk::create(&dangling, DISK_BYTES, Fill::Zeros, |_| {}).unwrap_err();
    assert!(matches!(error, OpenError::Exists { .. }), "{error}");
}

#[test]
fn a_disk_is_never_seen_half_made() {
    let dir = dir();
    let path = dir.path().join("disk");
    let unfinished = dir.path().join("disk.unfinished");
    fs::write(&unfinished, "left behind by a maker that was killed").unwrap();
    let mut seen = 0;
    Disk::create(&path, DISK_BYTES, Fill::Zeros, |_| {
        seen += 1;
        assert!(!path.exists() && unfinished.exists());
        let error = Disk::create(&path, DISK_BYTES, Fill::Zeros, |_| {}).unwrap_err();
        assert!(matches!(error, OpenError::InUse { .. }), "a second maker keeps away: {error:?}");
    })
    .unwrap();
    assert!(seen > 0 && path.exists() && !unfinished.exists());
    assert!(fs::read(&path).unwrap().iter().all(|&byte| byte == 0));

    let other = dir.path().join("other");
    let error =
        Disk::create(&other, DISK_BYTES, Fill::Reserve, |_| fs::write(&other, "precious").unwrap()).unwrap_err();
    assert!(matches!(error, OpenError::Exists { .. }), "{error:?}");
    assert_eq!(fs::read_to_string(&other).unwrap(), "precious");
    assert!(!dir.path().join("other.unfinished").exists());
}

#[test]
fn a_disk_that_does_not_fit_is_refused_at_once_and_leaves_nothing() {
    let dir = dir();
    let path = dir.path().join("disk");
    let error = Disk::create(&path, 1 << 52, Fill::Zeros, |_| {}).unwrap_err();
    assert!(matches!(error, OpenError::NoSpace { .. }), "{error:?}");
    assert!(!path.exists());
    let error = Disk::create(&path, 4096, Fill::Zeros, |_| {}).unwrap_err();
    assert!(matches!(error, OpenError::TooSmall { .. }), "{error:?}");
    assert!(!path.exists());
    let error = Disk::create(dir.path().join("none/disk"), DISK_BYTES, Fill::Zeros, |_| {}).unwrap_err();
    assert!(matches!(error, OpenError::NoDirectory { .. }), "{error:?}");
}
