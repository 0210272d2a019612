//! The filesystem as the kernel sees it: a directory and a file. Everything that needs the device becomes a [`Job`].
//!
//! What the two are called and numbered outlives a process: the next one goes on with the same connection.

use super::session::Answer;
use super::wire::{self, Attributes, FILE, ROOT, Request};
use bytes::Bytes;
use nix::errno::Errno;
use nix::libc;
use tokio::sync::mpsc;
use torus_core::ids::BLOCK_SIZE;

/// What the device is asked to do. An answer that is dropped tells the kernel EIO.
pub(super) enum Job {
    Read { offset: u64, len: u32, answer: Answer },
    Write { offset: u64, data: Bytes, answer: Answer },
    Flush { answer: Answer },
    Trim { offset: u64, len: u64, answer: Answer },
    Zero { offset: u64, len: u64, no_hole: bool, answer: Answer },
    Look(Look, Answer),
}

/// What somebody wants to know of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Look {
    Entry,
    Attributes,
}

impl Look {
    /// The file has `size_bytes`.
    pub(super) fn answer(self, size_bytes: u64, read_only: bool, answer: Answer) {
        let mode = libc::S_IFREG | if read_only { 0o400 } else { 0o600 };
        let file = attributes(FILE, mode, size_bytes);
        match self {
            Self::Entry => answer.data(&[&wire::entry(file)]),
            Self::Attributes => answer.data(&[&wire::look(file)]),
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
    /// Sees to one request, on the thread that reads them.
    pub(super) fn see_to(&self, request: Request<'_>, answer: Answer) {
        match request {
            Request::Lookup { parent: ROOT, name } if name == self.name.as_bytes() => {
                self.ask(Job::Look(Look::Entry, answer));
            }
            Request::Lookup { .. } => answer.error(Errno::ENOENT),
            Request::Look { inode: FILE } => self.ask(Job::Look(Look::Attributes, answer)),
            Request::Look { .. } => answer.data(&[&wire::look(attributes(ROOT, libc::S_IFDIR | 0o500, 0))]),
            Request::Open { inode: FILE, flags } => match self.read_only && flags & O_ACCMODE != O_RDONLY {
                true => answer.error(Errno::EROFS),
                false => answer.data(&[&wire::opened()]),
            },
            Request::Open { .. } => answer.error(Errno::EISDIR),
            Request::OpenDirectory => answer.data(&[&wire::opened_directory()]),
            Request::ReadDirectory { offset: 0 } => answer.data(&[&wire::listing(&self.name)]),
            Request::ReadDirectory { .. } | Request::Over => answer.done(),
            Request::Read { offset, len } => self.ask(Job::Read { offset, len, answer }),
            Request::Write { offset, data } => {
                self.ask(Job::Write { offset, data: Bytes::copy_from_slice(data), answer });
            }
            Request::Flush => self.ask(Job::Flush { answer }),
            Request::Space { mode, offset, len } => match mode & !KEEP_SIZE {
                PUNCH_HOLE => self.ask(Job::Trim { offset, len, answer }),
                ZERO_RANGE => self.ask(Job::Zero { offset, len, no_hole: true, answer }),
                _ => answer.error(Errno::EOPNOTSUPP),
            },
            Request::Room => answer.data(&[&wire::room(BLOCK_SIZE as u32)]),
            // Told once, it does not ask again: no flush on close, no extended attributes, no interrupts.
            Request::Other | Request::Forget | Request::End => answer.error(Errno::ENOSYS),
        }
    }

    /// Waits for room in the queue: on the FUSE thread, which has nothing else to do. A device that is gone drops the
    /// job, which answers it.
    fn ask(&self, job: Job) {
        let _ = self.jobs.blocking_send(job);
    }
}

const O_ACCMODE: u32 = libc::O_ACCMODE as u32;
const O_RDONLY: u32 = libc::O_RDONLY as u32;
const KEEP_SIZE: u32 = libc::FALLOC_FL_KEEP_SIZE as u32;
const PUNCH_HOLE: u32 = libc::FALLOC_FL_PUNCH_HOLE as u32;
const ZERO_RANGE: u32 = libc::FALLOC_FL_ZERO_RANGE as u32;

fn attributes(inode: u64, mode: u32, size: u64) -> Attributes {
    let owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    Attributes { inode, size, mode, owner, block_bytes: BLOCK_SIZE as u32 }
}
