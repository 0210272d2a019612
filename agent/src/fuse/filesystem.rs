//! The filesystem as the kernel sees it: a directory and a file. Everything that needs the device becomes a [`Job`].

use bytes::Bytes;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, WriteFlags,
};
use nix::libc;
use std::ffi::OsStr;
use std::io;
use std::time::{Duration, UNIX_EPOCH};
use tokio::sync::mpsc;
use torus_core::ids::BLOCK_SIZE;
use torus_core::limits::{FUSE_IN_FLIGHT_REQUESTS_MAX, FUSE_REQUEST_BYTES_MAX};

/// The file.
const FILE: INodeNo = INodeNo(2);
/// Names and sizes are asked for every time: a volume grows.
const NOT_CACHED: Duration = Duration::ZERO;

/// What the device is asked to do. A reply that is dropped tells the kernel EIO.
pub(super) enum Job {
    Read { offset: u64, len: u32, reply: ReplyData },
    Write { offset: u64, data: Bytes, reply: ReplyWrite },
    Flush { reply: ReplyEmpty },
    Trim { offset: u64, len: u64, reply: ReplyEmpty },
    Zero { offset: u64, len: u64, no_hole: bool, reply: ReplyEmpty },
    Look(LookReply),
}

/// Who wants to know what the file looks like.
pub(super) enum LookReply {
    Entry(ReplyEntry),
    Attr(ReplyAttr),
}

impl LookReply {
    /// The file has `size_bytes`.
    pub(super) fn answer(self, size_bytes: u64, read_only: bool) {
        let file = attributes(FILE, FileType::RegularFile, if read_only { 0o400 } else { 0o600 }, size_bytes);
        match self {
            Self::Entry(reply) => reply.entry(&NOT_CACHED, &file, Generation(0)),
            Self::Attr(reply) => reply.attr(&NOT_CACHED, &file),
        }
    }
}

/// A directory with one file.
pub(super) struct OneFile {
    pub(super) name: String,
    pub(super) read_only: bool,
    pub(super) jobs: mpsc::Sender<Job>,
}

impl OneFile {
    /// Waits for room in the queue: on the FUSE thread, which has nothing else to do. A device that is gone drops the
    /// job, which answers it.
    fn ask(&self, job: Job) {
        let _ = self.jobs.blocking_send(job);
    }
}

impl Filesystem for OneFile {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        config.set_max_write(FUSE_REQUEST_BYTES_MAX).expect("fuser takes 16 MiB");
        config.set_max_background(FUSE_IN_FLIGHT_REQUESTS_MAX).expect("fuser takes any number but 0");
        // Without it, a loop device has one request under way at a time. Every kernel since 3.10 has it.
        if config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).is_err() {
            tracing::warn!("this kernel's FUSE has no asynchronous direct I/O: the device is going to be slow");
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match parent == INodeNo::ROOT && name == OsStr::new(&self.name) {
            true => self.ask(Job::Look(LookReply::Entry(reply))),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match inode {
            FILE => self.ask(Job::Look(LookReply::Attr(reply))),
            _ => reply.attr(&NOT_CACHED, &attributes(INodeNo::ROOT, FileType::Directory, 0o500, 0)),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if offset == 0 {
            // One entry always fits.
            let _full = reply.add(FILE, 1, FileType::RegularFile, &self.name);
        }
        reply.ok();
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if inode != FILE {
            return reply.error(Errno::EISDIR);
        }
        if self.read_only && flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        // Without a flush on close: a process that is being killed would wait for itself to answer it.
        let how = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(0), how);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        len: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.ask(Job::Read { offset, len, reply });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.ask(Job::Write { offset, data: Bytes::copy_from_slice(data), reply });
    }

    /// Closing a file promises nothing.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    /// There are none; the kernel asks once.
    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.ask(Job::Flush { reply });
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, len: u64, mode: i32, reply: ReplyEmpty) {
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            libc::FALLOC_FL_PUNCH_HOLE => self.ask(Job::Trim { offset, len, reply }),
            libc::FALLOC_FL_ZERO_RANGE => self.ask(Job::Zero { offset, len, no_hole: true, reply }),
            _ => reply.error(Errno::EOPNOTSUPP),
        }
    }

    /// The unit in which a loop device offers discards is the block size told here.
    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 1, 0, BLOCK_SIZE as u32, 255, BLOCK_SIZE as u32);
    }
}

fn attributes(ino: INodeNo, kind: FileType, perm: u16, size: u64) -> FileAttr {
    let time = UNIX_EPOCH;
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    FileAttr {
        ino,
        size,
        blocks: size / 512,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm,
        nlink: 1,
        uid,
        gid,
        rdev: 0,
        blksize: BLOCK_SIZE as u32,
        flags: 0,
    }
}
