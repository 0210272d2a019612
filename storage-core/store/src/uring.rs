//! Disk operations by io_uring: the thread that serves the sockets also serves the disk, with no hop between threads.
//!
//! A commit of one segment is a write with an `fdatasync` linked to it: one call, one wake-up, and the sync begins when
//! the write has succeeded. A commit of several is all writes at once and, when the last has succeeded, one
//! `fdatasync`. On request ([`DiskOptions::write_through`](crate::DiskOptions)) a single write carries `RWF_DSYNC`
//! instead. All of this was chosen by measurement (`docs/benchmarks/disk-commit.md`), as was the absence of task-run
//! flags, which would tie a ring to one thread.
//!
//! Everything the kernel is asked for is a [`Key`]: an operation and one part of it. Keys wait in `waiting`; the first
//! `queued` of them lie in the submission queue; the kernel has `in_flight` more. Reads wait in `held` before, until the disk
//! may have them ([`Pace`]).
//!
//! 1. Memory that a key names lives in `ops` until the completion of that key has been seen. Nothing is removed from
//!    `ops` earlier, and a ring is not dropped before all of it is seen.
//! 2. At most [`ENTRIES`] keys are in the kernel, so completions cannot overflow.
//! 3. An operation is reported exactly once, and a commit is a success only if every write was complete and an
//!    `fdatasync` that began after the last of them, or the one write's `RWF_DSYNC`, succeeded. Nothing is retried.
//! 4. A write and the sync linked to it enter the submission queue together. If the kernel takes only the write all the
//!    same (it does when it runs out of memory between the two), the link is void, and another sync follows both.
//! 5. While reads are held, the disk has others: their completions let the next ones in.

use crate::buffer::AlignedBuf;
use crate::errors::{failed, short};
use crate::gather::Segment;
use crate::open::Target;
use crate::pace::Pace;
use crate::signal::Signal;
use io_uring::{IoUring, Probe, opcode, squeue, types};
use rustix::io::Errno;
use slab::Slab;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Duration;
use torus_core::member::{DiskError, DiskEvent};

/// Parts of operations that the kernel may have at a time.
const ENTRIES: u32 = 256;
/// How often, and how long apart, a kernel without memory is asked again when no completion will tell when to.
const AGAIN: (u32, Duration) = (100, Duration::from_micros(100));

/// One part of one operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Key {
    op: u32,
    part: u32,
}

impl Key {
    /// The part of a commit that is not a segment.
    const SYNC: u32 = u32::MAX;

    fn new(op: usize, part: usize) -> Self {
        let narrow = |n: usize| u32::try_from(n).expect("fewer than 2^32 operations, of fewer parts, fit in memory");
        Self { op: narrow(op), part: narrow(part) }
    }

    fn sync_of(op: usize) -> Self {
        Self { part: Self::SYNC, ..Self::new(op, 0) }
    }

    fn user_data(self) -> u64 {
        u64::from(self.op) << 32 | u64::from(self.part)
    }

    fn from_user_data(data: u64) -> Self {
        Self { op: (data >> 32) as u32, part: data as u32 }
    }
}

#[derive(Debug)]
enum Op {
    Commit(Commit),
    Read { id: u64, offset: u64, buffer: AlignedBuf },
}

#[derive(Debug)]
struct Commit {
    id: u64,
    segments: Vec<Segment>,
    iovecs: Vec<Iovecs>,
    /// Parts on their way.
    left: usize,
    durability: Durability,
    /// The first failure.
    error: Option<DiskError>,
}

/// What makes a commit durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Durability {
    /// The one write, by itself.
    Through,
    /// A sync that is linked to the one write.
    Linked,
    /// A sync, to be asked for when all parts have ended well.
    Owed,
    /// A sync that was asked for then.
    Asked,
}

/// A segment's pieces as the kernel wants them.
#[derive(Debug)]
struct Iovecs(Vec<libc::iovec>);

// SAFETY: the pointers are only ever handed to the kernel, and what they point to belongs to the `Bytes` of the segment
// that lies beside this in `Commit` and moves with it; `Bytes` may be sent.
#[allow(unsafe_code)]
unsafe impl Send for Iovecs {}

impl Iovecs {
    fn new(segment: &Segment) -> Self {
        let iovec =
            |piece: &bytes::Bytes| libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() };
        Self(segment.pieces.iter().map(iovec).collect())
    }
}

/// The ring of one disk.
pub(crate) struct Uring {
    ring: IoUring,
    target: Arc<Target>,
    signal: Arc<Signal>,
    ops: Slab<Op>,
    held: VecDeque<Key>,
    waiting: VecDeque<Key>,
    queued: usize,
    in_flight: usize,
    /// Reads that are not held any more and not done.
    reading: usize,
    pace: Pace,
    ready: Vec<DiskEvent>,
    /// The kernel takes nothing more, for this reason. What it has taken it still completes.
    broken: Option<Errno>,
}

impl Uring {
    /// Sets a ring up.
    ///
    /// # Errors
    /// Where the kernel is too old or forbids it.
    pub fn start(target: Arc<Target>, signal: Arc<Signal>) -> io::Result<Self> {
        let ring = IoUring::new(ENTRIES)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [opcode::Writev::CODE, opcode::Read::CODE, opcode::Fsync::CODE];
        if !needed.iter().all(|&code| probe.is_supported(code)) || !ring.params().is_feature_submit_stable() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        ring.submitter().register_eventfd(signal.as_fd().as_raw_fd())?;
        Ok(Self {
            ring,
            target,
            signal,
            ops: Slab::new(),
            held: VecDeque::new(),
            waiting: VecDeque::new(),
            queued: 0,
            in_flight: 0,
            reading: 0,
            pace: Pace::default(),
            ready: Vec::new(),
            broken: None,
        })
    }

    pub fn commit(&mut self, id: u64, segments: Vec<Segment>) {
        let iovecs = segments.iter().map(Iovecs::new).collect();
        let durability = match segments.len() {
            1 if self.target.write_through => Durability::Through,
            1 => Durability::Linked,
            _ => Durability::Owed,
        };
        let parts = segments.len();
        let left = parts + usize::from(durability == Durability::Linked);
        let op = self.ops.insert(Op::Commit(Commit { id, segments, iovecs, left, durability, error: None }));
        self.waiting.extend((0..parts).map(|part| Key::new(op, part)));
        if durability == Durability::Linked {
            self.waiting.push_back(Key::sync_of(op));
        }
        self.advance(op);
    }

    pub fn read(&mut self, id: u64, offset: u64, buffer: AlignedBuf) {
        let op = self.ops.insert(Op::Read { id, offset, buffer });
        self.held.push_back(Key::new(op, 0));
    }

    pub fn outstanding(&self) -> usize {
        self.ops.len() + self.ready.len()
    }

    pub fn completions(&mut self, out: &mut Vec<DiskEvent>) {
        let reading = self.reading;
        self.reap();
        self.pace.saw(reading - self.reading, reading);
        // A finished write may have made its sync due, or room for what waited.
        self.flush();
        out.append(&mut self.ready);
    }

    /// Hands what waits to the kernel, as much as there is room for.
    pub fn flush(&mut self) {
        self.admit();
        let mut tries = 0;
        while self.broken.is_none() {
            self.push();
            if self.queued == 0 {
                return;
            }
            match self.ring.submit() {
                Ok(taken) if taken > 0 => self.taken(taken),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Out of memory or of room: the next completion tries again.
                Ok(_) | Err(_) if self.in_flight > 0 => return,
                Ok(_) | Err(_) if tries < AGAIN.0 => {
                    tries += 1;
                    std::thread::sleep(AGAIN.1);
                }
                Ok(_) => self.broken = Some(Errno::AGAIN),
                Err(error) => self.broken = Some(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
            }
        }
        self.refuse_waiting();
    }

    /// Lets as many reads go on as the disk is to have.
    fn admit(&mut self) {
        let most = self.pace.most(self.reading + self.held.len());
        let count = most.saturating_sub(self.reading).min(self.held.len());
        self.waiting.extend(self.held.drain(..count));
        self.reading += count;
    }

    /// Whether `key` is a write whose sync is linked to it and comes next.
    fn heads_link(&self, key: Key) -> bool {
        let commit = &self.ops[key.op as usize];
        key.part != Key::SYNC && matches!(commit, Op::Commit(Commit { durability: Durability::Linked, .. }))
    }

    /// The kernel has taken `count` of what was queued. If the next is a sync whose write it took: see rule 4.
    fn taken(&mut self, count: usize) {
        self.waiting.drain(..count);
        self.queued -= count;
        self.in_flight += count;
        let Some(next) = self.waiting.front().filter(|next| self.queued > 0 && next.part == Key::SYNC) else { return };
        if let Op::Commit(commit) = &mut self.ops[next.op as usize]
            && commit.durability == Durability::Linked
        {
            commit.durability = Durability::Owed;
        }
    }

    /// Moves keys into the submission queue while there is room in it and in the kernel, linked ones together.
    #[allow(unsafe_code)]
    fn push(&mut self) {
        while let Some(&key) = self.waiting.get(self.queued) {
            // What is linked to a key that was queued has had its room set aside with it.
            let needed = if self.heads_link(key) { 2 } else { 1 };
            if self.in_flight + self.queued + needed > ENTRIES as usize {
                return;
            }
            let entry = self.entry(key);
            // SAFETY: the file descriptor and all memory that the entry names (iovecs, the pieces they point to, the
            // read buffer) belong to `self`: the memory to the key's operation in `ops`, on the heap, where growing
            // `ops` does not move it. By rule 1 it stays there, unshared where the kernel writes to it, until this
            // entry's completion has been seen; `drop` waits for that too.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            if pushed.is_err() {
                return;
            }
            self.queued += 1;
        }
    }

    /// What `key` asks of the kernel.
    fn entry(&mut self, key: Key) -> squeue::Entry {
        let fd = types::Fd(self.target.file.as_raw_fd());
        let entry = match &mut self.ops[key.op as usize] {
            Op::Read { offset, buffer, .. } => {
                opcode::Read::new(fd, buffer.as_mut_ptr(), buffer.len() as u32).offset(*offset).build()
            }
            Op::Commit(_) if key.part == Key::SYNC => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Op::Commit(commit) => {
                let (segment, iovecs) = (&commit.segments[key.part as usize], &commit.iovecs[key.part as usize].0);
                let write = opcode::Writev::new(fd, iovecs.as_ptr(), iovecs.len() as u32).offset(segment.offset);
                match commit.durability {
                    Durability::Through => write.rw_flags(libc::RWF_DSYNC).build(),
                    Durability::Linked => write.build().flags(squeue::Flags::IO_LINK),
                    Durability::Owed | Durability::Asked => write.build(),
                }
            }
        };
        entry.user_data(key.user_data())
    }

    /// Takes in what the kernel has finished.
    fn reap(&mut self) {
        loop {
            let next = self.ring.completion().next();
            let Some(entry) = next else { return };
            self.in_flight -= 1;
            let result = match entry.result() {
                done @ 0.. => Ok(done as usize),
                error => Err(Errno::from_raw_os_error(-error)),
            };
            self.finish(Key::from_user_data(entry.user_data()), result);
        }
    }

    /// One part of an operation has ended.
    fn finish(&mut self, key: Key, result: Result<usize, Errno>) {
        let op = key.op as usize;
        let path = &self.target.path;
        if let Op::Commit(commit) = &mut self.ops[op] {
            let segment = commit.segments.get(key.part as usize);
            let error = match (segment, result) {
                (Some(s), Ok(done)) => (done != s.len).then(|| short("write", path, s.offset, done, s.len)),
                (Some(s), Err(error)) => Some(failed("write", path, Some(s.offset), error)),
                (None, result) => result.err().map(|error| failed("sync", path, None, error)),
            };
            commit.error = commit.error.take().or(error);
            commit.left -= 1;
            self.advance(op);
        } else if let Op::Read { id, offset, buffer } = self.ops.remove(op) {
            self.reading -= 1;
            let result = match result {
                Ok(done) if done == buffer.len() => Ok(buffer.freeze()),
                Ok(done) => Err(short("read", path, offset, done, buffer.len())),
                Err(error) => Err(failed("read", path, Some(offset), error)),
            };
            self.ready.push(DiskEvent::Read { id, result });
        }
    }

    /// What is next for a commit: wait, sync, or be reported.
    fn advance(&mut self, op: usize) {
        let Op::Commit(commit) = &mut self.ops[op] else { return };
        if commit.left > 0 {
            return;
        }
        if commit.durability == Durability::Owed && commit.error.is_none() {
            commit.durability = Durability::Asked;
            commit.left = 1;
            self.waiting.push_back(Key::sync_of(op));
        } else {
            let result = commit.error.take().map_or(Ok(()), Err);
            let id = commit.id;
            self.ops.remove(op);
            self.ready.push(DiskEvent::Committed { id, result });
        }
    }

    /// The ring is broken: nothing that waits will ever be taken. Its submission queue is never looked at again.
    fn refuse_waiting(&mut self) {
        let Some(error) = self.broken else { return };
        self.queued = 0;
        self.reading += self.held.len();
        self.waiting.append(&mut self.held);
        while let Some(key) = self.waiting.pop_front() {
            self.finish(key, Err(error));
        }
        self.signal.raise();
    }
}

impl Drop for Uring {
    /// Waits for what the kernel still has: it would write to memory that is not ours any more.
    fn drop(&mut self) {
        self.held.clear();
        self.waiting.clear();
        self.queued = 0;
        self.broken = self.broken.or(Some(Errno::CANCELED));
        while self.in_flight > 0 {
            self.signal.lower();
            self.reap();
            self.waiting.clear();
            if self.in_flight > 0 && self.signal.wait().is_err() {
                // Better lost than written to after it was given to someone else. The same for the lock on the disk.
                std::mem::forget((std::mem::take(&mut self.ops), Arc::clone(&self.target)));
                return;
            }
        }
    }
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("ops", &self.ops.len())
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::open;
    use crate::{BufferPool, DiskOptions, Fill};

    fn uring(dir: &tempfile::TempDir) -> Uring {
        let path = dir.path().join("disk");
        open::create(&path, open::DISK_BYTES_MIN, Fill::Reserve, &mut |_| {}).unwrap();
        let target =
            open::open(&path, &DiskOptions { buffered: true, ..DiskOptions::new(BufferPool::new(0)) }).unwrap();
        Uring::start(Arc::new(target), Arc::new(Signal::new().unwrap())).unwrap()
    }

    fn segment() -> Segment {
        Segment { offset: 0, len: 4096, pieces: vec![vec![1; 4096].into()] }
    }

    fn durability(uring: &Uring) -> Durability {
        match uring.ops.iter().next() {
            Some((_, Op::Commit(commit))) => commit.durability,
            other => panic!("no commit: {other:?}"),
        }
    }

    fn finish(mut uring: Uring) -> Vec<DiskEvent> {
        let mut events = Vec::new();
        while uring.outstanding() > 0 {
            uring.signal.wait().unwrap();
            uring.signal.lower();
            uring.completions(&mut events);
        }
        events
    }

    #[test]
    #[allow(unsafe_code)]
    fn a_sync_that_was_torn_from_its_write_is_followed_by_another() {
        let dir = tempfile::tempdir().unwrap();
        let mut uring = uring(&dir);
        uring.commit(1, vec![segment()]);
        uring.push();
        assert_eq!((uring.queued, durability(&uring)), (2, Durability::Linked));
        // SAFETY: the entry is one that `push` queued, whose memory `ops` keeps.
        let taken = unsafe { uring.ring.submitter().enter::<libc::sigset_t>(1, 0, 0, None) };
        uring.taken(taken.unwrap());
        assert_eq!((uring.queued, uring.in_flight, durability(&uring)), (1, 1, Durability::Owed));
        uring.flush();
        // Both have ended before anyone looks, and still the commit is not done.
        while uring.in_flight > 0 && durability(&uring) != Durability::Asked {
            uring.signal.wait().unwrap();
            uring.signal.lower();
            uring.reap();
        }
        assert_eq!((durability(&uring), uring.ready.len()), (Durability::Asked, 0));
        uring.flush();
        assert_eq!(finish(uring), [DiskEvent::Committed { id: 1, result: Ok(()) }]);
    }

    #[test]
    fn linked_parts_enter_the_queue_together_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let mut uring = uring(&dir);
        uring.read(0, 0, BufferPool::new(0).take(4096));
        uring.admit();
        (1..=u64::from(ENTRIES)).for_each(|id| uring.commit(id, vec![segment()]));
        uring.push();
        assert_eq!(uring.queued, ENTRIES as usize - 1, "one place is left, and a pair does not fit");
        uring.flush();
        assert_eq!(finish(uring).len(), 1 + ENTRIES as usize);
    }

    #[test]
    fn a_disk_that_tells_of_all_together_has_half_of_the_reads_and_does_them_all() {
        let dir = tempfile::tempdir().unwrap();
        let mut uring = uring(&dir);
        (0..40).for_each(|id| uring.read(id, 4096 * id, BufferPool::new(0).take(4096)));
        uring.pace.saw(256, 256);
        uring.flush();
        assert_eq!((uring.reading, uring.held.len(), uring.outstanding()), (20, 20, 40));
        let events = finish(uring);
        assert_eq!(events.len(), 40);
        assert!(events.iter().all(|event| matches!(event, DiskEvent::Read { result: Ok(_), .. })), "{events:?}");
    }

    #[test]
    fn a_ring_that_breaks_answers_everything_with_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut uring = uring(&dir);
        uring.broken = Some(Errno::NOMEM);
        uring.commit(1, vec![segment()]);
        uring.commit(2, vec![]);
        uring.read(3, 0, BufferPool::new(0).take(4096));
        uring.flush();
        let events = finish(uring);
        assert_eq!(events.len(), 3);
        for event in events {
            let (DiskEvent::Committed { result: Err(error), .. } | DiskEvent::Read { result: Err(error), .. }) = event
            else {
                panic!("a success without a kernel: {event:?}")
            };
            assert!(error.text.ends_with("Cannot allocate memory"), "{error}");
        }
    }
}
