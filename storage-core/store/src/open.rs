//! Finding, making, locking and measuring a disk: what is decided once, before the first I/O.
//!
//! 1. One process has a disk open. Files are locked (`flock`), block devices are claimed from the kernel (`O_EXCL`,
//!    which also refuses a device that is mounted), and both end with the process, however it ends.
//! 2. A disk is opened for direct I/O. A filesystem that refuses is an error that names the way out, and never a
//!    quiet change of mode: [`DiskOptions::buffered`] is somebody's decision.
//! 3. What an earlier process wrote is synced before it is read for the first time. A process that was killed may
//!    have left valid frames in a device's cache; from here on they are as durable as they look, and each commit has
//!    only its own writes to care for.
//! 4. A new file is written with zeros from end to end before it gets the name of a disk, so that one whose maker was
//!    killed is never taken for one. Space that is only reserved makes the first write to every place two to three
//!    times slower, because its commit waits for the filesystem's metadata (`docs/benchmarks/disk-commit.md`).

use crate::buffer::BufferPool;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags, SeekFrom, StatxFlags,
};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use torus_core::ids::{BLOCK_BYTES, BLOCK_SIZE};

/// Smallest disk: below it no agent could hold a single extent.
pub const DISK_BYTES_MIN: u64 = 16 << 20;
/// Bytes of each write that fills a new file.
const FILL_BYTES: usize = 1 << 20;
/// `FALLOC_FL_WRITE_ZEROES` (Linux 6.17): allocate and zero by the device's own means.
const WRITE_ZEROES: FallocateFlags = FallocateFlags::from_bits_retain(0x80);

/// How long to wait for a disk that is in use, and how long between two tries.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_WAIT_STEP: Duration = Duration::from_millis(50);

/// Who carries out the I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Engine {
    /// io_uring where the kernel allows it, else threads.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// Threads that block in `pwritev2` and `preadv`: for kernels and sandboxes that forbid io_uring.
    Threads,
}

/// How a disk is opened.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Go through the page cache instead of O_DIRECT. Every commit is synced all the same.
    pub buffered: bool,
    /// Who carries out the I/O.
    pub engine: Engine,
    /// Commit a single write by `RWF_DSYNC`, on block devices and filesystems that can be relied on to honour it, instead
    /// of by a write and an `fdatasync`. A little faster on an idle machine; on a busy one it waits for the kernel's own
    /// workers, whose turn nobody can hasten. Ignored by [`Engine::Threads`].
    pub write_through: bool,
    /// How long to wait for somebody else to let the disk go. A process that was killed holds it until the device has
    /// finished what was in flight, which is a moment after its parent has heard of its death.
    pub lock_wait_max: Duration,
    /// Where read buffers come from; share it with whatever receives what will be written.
    pub pool: BufferPool,
}

impl DiskOptions {
    /// Direct I/O, the best engine, some seconds of patience, buffers from `pool`.
    #[must_use]
    pub fn new(pool: BufferPool) -> Self {
        Self { buffered: false, engine: Engine::Auto, write_through: false, lock_wait_max: LOCK_WAIT, pool }
    }
}

/// How a new disk file gets its space.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Fill {
    /// Zeros everywhere, so that every write is an overwrite: takes as long as writing the whole disk once, unless the
    /// device can zero by itself.
    #[default]
    Zeros,
    /// Reserve only: instant, and the first write to every place is two to three times slower.
    Reserve,
}

/// Why a disk cannot be opened or made.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields of an error are described by its own line; `path` is the disk's")]
pub enum OpenError {
    /// Nothing there.
    #[error("no disk at {path:?}: correct the path, or create the file first")]
    Missing { path: PathBuf },
    /// Nowhere to make it.
    #[error("cannot make disk {path:?}: its directory does not exist; correct the path, or make the directory first")]
    NoDirectory { path: PathBuf },
    /// Something else there.
    #[error("{path:?} is {kind}: a disk is a regular file or a block device")]
    NotADisk { path: PathBuf, kind: &'static str },
    /// Not enough room for anything.
    #[error("disk {path:?} has {bytes} bytes: the smallest usable disk has {}", DISK_BYTES_MIN)]
    TooSmall { path: PathBuf, bytes: u64 },
    /// The device addresses larger blocks than the format does.
    #[error("disk {path:?} has sectors of {sector_bytes} bytes: at most {} can be used", BLOCK_SIZE)]
    SectorTooLarge { path: PathBuf, sector_bytes: u32 },
    /// Permissions.
    #[error("not allowed to open disk {path:?} for reading and writing: mend its owner or mode, or run as its owner")]
    Denied { path: PathBuf, source: io::Error },
    /// Someone has it.
    #[error("disk {path:?} is in use by another process or mounted: stop that agent, or unmount it, and try again")]
    InUse { path: PathBuf },
    /// The filesystem has no direct I/O.
    #[error("the filesystem of disk {path:?} refuses direct I/O: move the disk, or open it with buffered I/O")]
    NoDirectIo { path: PathBuf },
    /// A new file was asked for.
    #[error("{path:?} exists already: nothing is overwritten; remove it first, or open it as it is")]
    Exists { path: PathBuf },
    /// The filesystem is full.
    #[error("no room for a disk of {bytes} bytes at {path:?}: choose a smaller size or another filesystem")]
    NoSpace { path: PathBuf, bytes: u64 },
    /// Anything else.
    #[error("cannot {doing} disk {path:?}")]
    Io { path: PathBuf, doing: &'static str, source: io::Error },
}

/// A file or device that this process has locked. The lock goes with it: a child that was started meanwhile has a copy of the
/// descriptor until it runs its program, and must not keep the disk from whoever opens it next.
#[derive(Debug)]
pub(crate) struct Locked(File);

impl Locked {
    fn new(path: &Path, file: File) -> Result<Self, OpenError> {
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|e| classify(path, "lock", e))?;
        Ok(Self(file))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // What is closed is unlocked too, if later.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

impl Deref for Locked {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl AsFd for Locked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An open, locked file or device, with what has to be known to do I/O on it.
#[derive(Debug)]
pub(crate) struct Target {
    pub file: Locked,
    pub path: PathBuf,
    /// Usable size: whole blocks.
    pub bytes: u64,
    /// What the address of memory must be a multiple of.
    pub memory_align: usize,
    /// `RWF_DSYNC` can be relied on, and is wanted.
    pub write_through: bool,
    pub pool: BufferPool,
}

/// Opens and locks `path`, and makes durable what an earlier process may have left in caches.
pub(crate) fn open(path: &Path, options: &DiskOptions) -> Result<Target, OpenError> {
    let started = Instant::now();
    let (file, kind) = loop {
        match open_and_lock(path, options.buffered) {
            Err(OpenError::InUse { .. }) if started.elapsed() < options.lock_wait_max => {
                std::thread::sleep(LOCK_WAIT_STEP);
            }
            other => break other?,
        }
    };
    let bytes = match kind {
        FileType::BlockDevice => {
            let sector_bytes = rustix::fs::ioctl_blksszget(&file).map_err(|e| classify(path, "ask the size of", e))?;
            if sector_bytes as usize > BLOCK_SIZE {
                return Err(OpenError::SectorTooLarge { path: path.into(), sector_bytes });
            }
            rustix::fs::seek(&file, SeekFrom::End(0)).map_err(|e| classify(path, "ask the size of", e))?
        }
        _ => rustix::fs::fstat(&file).map_err(|e| classify(path, "look at", e))?.st_size.unsigned_abs(),
    };
    let bytes = bytes / BLOCK_BYTES * BLOCK_BYTES;
    if bytes < DISK_BYTES_MIN {
        return Err(OpenError::TooSmall { path: path.into(), bytes });
    }
    rustix::fs::fdatasync(&file).map_err(|e| classify(path, "sync", e))?;
    let memory_align = if options.buffered { 1 } else { memory_align(&file) };
    let reliable = kind == FileType::BlockDevice || has_write_through(&file);
    let write_through = options.write_through && reliable;
    Ok(Target { file, path: path.into(), bytes, memory_align, write_through, pool: options.pool.clone() })
}

fn open_and_lock(path: &Path, buffered: bool) -> Result<(Locked, FileType), OpenError> {
    // Looked at before it is opened: opening a pipe would block, and opening some devices does something.
    let seen = rustix::fs::stat(path).map_err(|e| classify(path, "look at", e))?;
    let mut flags = OFlags::RDWR | OFlags::CLOEXEC;
    flags.set(OFlags::EXCL, disk_kind(path, seen.st_mode)? == FileType::BlockDevice);
    flags.set(OFlags::DIRECT, !buffered);
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::INVAL) if !buffered => return Err(OpenError::NoDirectIo { path: path.into() }),
        Err(error) => return Err(classify(path, "open", error)),
    };
    let opened = rustix::fs::fstat(&file).map_err(|e| classify(path, "look at", e))?;
    let kind = disk_kind(path, opened.st_mode)?;
    Ok((Locked::new(path, file)?, kind))
}

/// Whether the filesystem is known to sync a direct write that carries `RWF_DSYNC`. Not all do: FUSE, and with it
/// virtiofs, passes the wish on to a server that may never look at it, and calls the write done.
fn has_write_through(file: &File) -> bool {
    const EXT4: i64 = 0xef53;
    const XFS: i64 = 0x5846_5342;
    const BTRFS: i64 = 0x9123_683e;
    rustix::fs::fstatfs(file).is_ok_and(|fs| [EXT4, XFS, BTRFS].contains(&fs.f_type))
}

/// The alignment that direct I/O needs of memory, where the kernel says it; ours where not.
fn memory_align(file: &File) -> usize {
    match rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(known) if known.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && known.stx_dio_mem_align.is_power_of_two() => {
            (known.stx_dio_mem_align as usize).min(BLOCK_SIZE)
        }
        _ => BLOCK_SIZE,
    }
}

fn disk_kind(path: &Path, mode: u32) -> Result<FileType, OpenError> {
    let kind = match FileType::from_raw_mode(mode) {
        kind @ (FileType::RegularFile | FileType::BlockDevice) => return Ok(kind),
        FileType::Directory => "a directory",
        FileType::CharacterDevice => "a character device",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        _ => "neither",
    };
    Err(OpenError::NotADisk { path: path.into(), kind })
}

fn classify(path: &Path, doing: &'static str, error: Errno) -> OpenError {
    let path = path.to_path_buf();
    match error {
        Errno::NOENT | Errno::NOTDIR | Errno::NXIO | Errno::NODEV => OpenError::Missing { path },
        Errno::ACCESS | Errno::PERM | Errno::ROFS => OpenError::Denied { path, source: error.into() },
        Errno::BUSY | Errno::WOULDBLOCK => OpenError::InUse { path },
        Errno::EXIST => OpenError::Exists { path },
        _ => OpenError::Io { path, doing, source: error.into() },
    }
}

/// Makes the file `path`, of `bytes` bytes rounded down to whole blocks, and syncs it and its name. `progress` is told
/// the bytes done so far. Until it is finished it has another name; one that cannot be finished is removed again.
///
/// # Errors
/// [`OpenError::Exists`] for anything at `path`, [`OpenError::NoSpace`], [`OpenError::TooSmall`], and the rest.
pub fn create(path: &Path, bytes: u64, fill: Fill, progress: &mut dyn FnMut(u64)) -> Result<(), OpenError> {
    let bytes = bytes / BLOCK_BYTES * BLOCK_BYTES;
    if bytes < DISK_BYTES_MIN {
        return Err(OpenError::TooSmall { path: path.into(), bytes });
    }
    if path.symlink_metadata().is_ok() {
        return Err(OpenError::Exists { path: path.into() });
    }
    let unfinished = unfinished_name(path);
    let file = make_unfinished(path, &unfinished)?;
    let made = allocate(path, &file, bytes, fill, progress).and_then(|()| give_name(path, &unfinished));
    if made.is_err() {
        // Best effort: the first error is the one worth telling.
        let _ = rustix::fs::unlink(&unfinished);
    }
    made
}

/// What a disk file is called until it is finished.
fn unfinished_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".unfinished");
    name.into()
}

/// A new, locked file. One that a maker left behind when it was killed is removed first; that of a maker who lives is
/// locked, and an error.
fn make_unfinished(path: &Path, unfinished: &Path) -> Result<Locked, OpenError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let make = || rustix::fs::open(unfinished, flags, Mode::RUSR | Mode::WUSR).map(File::from);
    let file = match make() {
        Err(Errno::EXIST) => {
            let left = File::open(unfinished);
            let left = left.map_err(|source| OpenError::Io { path: path.into(), doing: "make", source })?;
            let _left = Locked::new(path, left)?;
            rustix::fs::unlink(unfinished).map_err(|e| classify(path, "make", e))?;
            make()
        }
        made => made,
    };
    let file = file.map_err(|error| match error {
        Errno::NOENT => OpenError::NoDirectory { path: path.into() },
        error => classify(path, "make", error),
    })?;
    Locked::new(path, file)
}

/// Turns the finished file into the disk, durably, unless something has appeared in its place.
fn give_name(path: &Path, unfinished: &Path) -> Result<(), OpenError> {
    let named = match rustix::fs::renameat_with(CWD, unfinished, CWD, path, RenameFlags::NOREPLACE) {
        // Some network filesystems know only the plain kind.
        Err(Errno::INVAL) if path.symlink_metadata().is_err() => rustix::fs::rename(unfinished, path),
        Err(Errno::INVAL) => Err(Errno::EXIST),
        named => named,
    };
    named.map_err(|e| classify(path, "name", e))?;
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(parent).and_then(|dir| dir.sync_all());
    synced.map_err(|source| OpenError::Io { path: path.into(), doing: "sync the directory of", source })
}

fn allocate(path: &Path, file: &File, bytes: u64, fill: Fill, progress: &mut dyn FnMut(u64)) -> Result<(), OpenError> {
    let full = |error: io::Error, doing| match Errno::from_io_error(&error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => OpenError::NoSpace { path: path.into(), bytes },
        _ => OpenError::Io { path: path.into(), doing, source: error },
    };
    // Space first, all of it: a disk that does not fit is refused at once, and not after an hour of zeros.
    rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes).map_err(|e| full(e.into(), "reserve space for"))?;
    if fill == Fill::Zeros && rustix::fs::fallocate(file, WRITE_ZEROES, 0, bytes).is_err() {
        let zeros = BufferPool::new(0).take(FILL_BYTES);
        // Around the page cache where that is possible; where it is not, the sync below does the same work.
        let _ = rustix::fs::fcntl_getfl(file).and_then(|now| rustix::fs::fcntl_setfl(file, now | OFlags::DIRECT));
        let mut done = 0;
        while done < bytes {
            let part = FILL_BYTES.min((bytes - done) as usize);
            file.write_all_at(&zeros[..part], done).map_err(|e| full(e, "fill"))?;
            done += part as u64;
            progress(done);
        }
    }
    file.sync_all().map_err(|e| full(e, "sync"))?;
    progress(bytes);
    Ok(())
}
