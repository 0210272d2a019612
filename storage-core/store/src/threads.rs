//! Disk operations by threads that block, for kernels and sandboxes that forbid io_uring.
//!
//! One thread commits, because there is one commit in flight per disk; a few read. They sleep on condition variables
//! and report through the same event descriptor as io_uring does. A commit is `pwritev` for each segment and one
//! `fdatasync`: the plainest calls there are, since this is what runs where the kernel is old or not Linux at all.

use crate::buffer::AlignedBuf;
use crate::errors::{failed, short};
use crate::gather::Segment;
use crate::open::Target;
use crate::signal::Signal;
use rustix::io::retry_on_intr;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use torus_core::member::{DiskError, DiskEvent};

/// Threads that read.
const READERS: usize = 4;

/// The threads of one disk.
#[derive(Debug)]
pub(crate) struct Threads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    outstanding: usize,
}

#[derive(Debug)]
struct Shared {
    target: Arc<Target>,
    signal: Arc<Signal>,
    queue: Mutex<Queue>,
    commit_wanted: Condvar,
    read_wanted: Condvar,
    done: Mutex<Vec<DiskEvent>>,
}

#[derive(Debug, Default)]
struct Queue {
    commits: VecDeque<(u64, Vec<Segment>)>,
    reads: VecDeque<(u64, u64, AlignedBuf)>,
    closed: bool,
}

/// What these locks guard is whole between any two statements, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Threads {
    pub fn start(target: Arc<Target>, signal: Arc<Signal>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            target,
            signal,
            queue: Mutex::default(),
            commit_wanted: Condvar::new(),
            read_wanted: Condvar::new(),
            done: Mutex::default(),
        });
        let mut this = Self { shared: Arc::clone(&shared), threads: Vec::with_capacity(1 + READERS), outstanding: 0 };
        let committer = Arc::clone(&shared);
        this.threads.push(Builder::new().name("disk-commit".into()).spawn(move || committer.commit_all())?);
        for _ in 0..READERS {
            let reader = Arc::clone(&shared);
            this.threads.push(Builder::new().name("disk-read".into()).spawn(move || reader.read_all())?);
        }
        Ok(this)
    }

    pub fn commit(&mut self, id: u64, segments: Vec<Segment>) {
        self.outstanding += 1;
        lock(&self.shared.queue).commits.push_back((id, segments));
        self.shared.commit_wanted.notify_one();
    }

    pub fn read(&mut self, id: u64, offset: u64, buffer: AlignedBuf) {
        self.outstanding += 1;
        lock(&self.shared.queue).reads.push_back((id, offset, buffer));
        self.shared.read_wanted.notify_one();
    }

    pub fn completions(&mut self, out: &mut Vec<DiskEvent>) {
        let mut done = lock(&self.shared.done);
        self.outstanding -= done.len();
        out.append(&mut done);
    }

    pub fn outstanding(&self) -> usize {
        self.outstanding
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.commit_wanted.notify_all();
        self.shared.read_wanted.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn next<T>(&self, wanted: &Condvar, pop: impl Fn(&mut Queue) -> Option<T>) -> Option<T> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(job) = pop(&mut queue) {
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            queue = wanted.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn commit_all(&self) {
        while let Some((id, segments)) = self.next(&self.commit_wanted, |queue| queue.commits.pop_front()) {
            let result = write_and_sync(&self.target, &segments);
            // The memory goes back before the event goes out, so that who waits for one finds the other.
            drop(segments);
            self.report(DiskEvent::Committed { id, result });
        }
    }

    fn read_all(&self) {
        while let Some((id, offset, buffer)) = self.next(&self.read_wanted, |queue| queue.reads.pop_front()) {
            let result = read_exact(&self.target, offset, buffer).map(AlignedBuf::freeze);
            self.report(DiskEvent::Read { id, result });
        }
    }

    fn report(&self, event: DiskEvent) {
        let mut done = lock(&self.done);
        done.push(event);
        if done.len() == 1 {
            self.signal.raise();
        }
    }
}

/// Writes all of `segments` and makes them durable, on the calling thread.
pub(crate) fn write_and_sync(target: &Target, segments: &[Segment]) -> Result<(), DiskError> {
    let Target { file, path, .. } = target;
    for segment in segments {
        let slices: Vec<IoSlice<'_>> = segment.pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        match retry_on_intr(|| rustix::io::pwritev(file, &slices, segment.offset)) {
            Ok(done) if done == segment.len => {}
            Ok(done) => return Err(short("write", path, segment.offset, done, segment.len)),
            Err(error) => return Err(failed("write", path, Some(segment.offset), error)),
        }
    }
    // Not retried, whatever it says: the pages that failed may be called clean the second time.
    rustix::fs::fdatasync(file).map_err(|error| failed("sync", path, None, error))
}

/// Fills all of `buffer` from `offset`, on the calling thread.
pub(crate) fn read_exact(target: &Target, offset: u64, mut buffer: AlignedBuf) -> Result<AlignedBuf, DiskError> {
    let want = buffer.len();
    match retry_on_intr(|| rustix::io::pread(&target.file, &mut buffer[..], offset)) {
        Ok(done) if done == want => Ok(buffer),
        Ok(done) => Err(short("read", &target.path, offset, done, want)),
        Err(error) => Err(failed("read", &target.path, Some(offset), error)),
    }
}
