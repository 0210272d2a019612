//! A disk: the port of `torus_core::member`, carried out on a file or a device.

use crate::buffer::{AlignedBuf, BufferPool};
use crate::gather::{assert_range, segments};
use crate::open::{self, DiskOptions, Engine, Fill, OpenError, Target};
use crate::scan::Scan;
use crate::signal::Signal;
use crate::threads::{Threads, read_exact, write_and_sync};
use crate::uring::Uring;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::sync::Arc;
use torus_core::member::{DiskEvent, DiskOp};

/// An open disk, locked against other processes, and the operations in flight on it.
///
/// [`submit`](Self::submit) never waits for the device. When something is done, the descriptor of
/// [`AsFd`] becomes readable and stays so until [`completions`](Self::completions) is called: an `epoll` loop (or
/// `AsyncFd`) waits for it beside its sockets. With nothing in flight nothing ever wakes up.
///
/// May be sent to another thread while nothing is in flight; the kernel drops operations of a thread that ends, and
/// they are then reported as failed.
///
/// Dropping a disk waits for what the device is doing and tells nobody how it ended; [`close`](Self::close) does.
#[derive(Debug)]
pub struct Disk {
    backend: Backend,
    target: Arc<Target>,
    signal: Arc<Signal>,
    notes: Vec<String>,
}

#[derive(Debug)]
enum Backend {
    Uring(Box<Uring>),
    Threads(Threads),
}

impl Disk {
    /// Opens the file or block device at `path`, locks it, and makes durable whatever an earlier process wrote there.
    ///
    /// # Errors
    /// A sentence for a person: see [`OpenError`].
    pub fn open(path: impl AsRef<Path>, options: &DiskOptions) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let target = Arc::new(open::open(path, options)?);
        let engine = |source| OpenError::Io { path: path.into(), doing: "start I/O on", source };
        let signal = Arc::new(Signal::new().map_err(engine)?);
        let mut notes = Vec::new();
        if options.buffered {
            notes.push(format!("disk {path:?}: buffered I/O, as asked for; each commit is synced all the same"));
        }
        let threads = || Threads::start(Arc::clone(&target), Arc::clone(&signal)).map(Backend::Threads);
        let uring = || Uring::start(Arc::clone(&target), Arc::clone(&signal)).map(|uring| Backend::Uring(uring.into()));
        let backend = match options.engine {
            Engine::Uring => uring(),
            Engine::Threads => threads(),
            Engine::Auto => uring().or_else(|error| {
                notes.push(format!("disk {path:?}: served by threads, because io_uring cannot be had here: {error}"));
                threads()
            }),
        };
        Ok(Self { backend: backend.map_err(engine)?, target, signal, notes })
    }

    /// Makes a new disk file of `bytes` bytes, rounded down to whole blocks. `progress` is told the bytes done so far.
    /// Until it is finished it is called `path` with `.unfinished` after it; one that cannot be finished is removed.
    ///
    /// # Errors
    /// [`OpenError::Exists`] for anything at `path`, [`OpenError::NoSpace`], [`OpenError::TooSmall`], and the rest.
    pub fn create(
        path: impl AsRef<Path>,
        bytes: u64,
        fill: Fill,
        mut progress: impl FnMut(u64),
    ) -> Result<(), OpenError> {
        open::create(path.as_ref(), bytes, fill, &mut progress)
    }

    /// Usable bytes: whole blocks.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.target.bytes
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.target.path
    }

    /// Where its read buffers come from.
    #[must_use]
    pub fn pool(&self) -> &BufferPool {
        &self.target.pool
    }

    /// Who carries out the I/O: never [`Engine::Auto`].
    #[must_use]
    pub fn engine(&self) -> Engine {
        match self.backend {
            Backend::Uring(_) => Engine::Uring,
            Backend::Threads(_) => Engine::Threads,
        }
    }

    /// What a person should know about how it was opened, in sentences; mostly nothing.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Begins one operation.
    ///
    /// # Panics
    /// When the operation is not whole blocks inside the disk: that is a defect of the core, and nothing was written.
    pub fn submit(&mut self, op: DiskOp) {
        self.submit_all([op]);
    }

    /// Begins several operations with one call to the kernel.
    ///
    /// # Panics
    /// As [`submit`](Self::submit).
    pub fn submit_all(&mut self, ops: impl IntoIterator<Item = DiskOp>) {
        let Target { bytes, memory_align, pool, .. } = &*self.target;
        for op in ops {
            match op {
                DiskOp::Commit { id, writes } => {
                    let segments = segments(writes, *bytes, *memory_align, pool);
                    match &mut self.backend {
                        Backend::Uring(uring) => uring.commit(id, segments),
                        Backend::Threads(threads) => threads.commit(id, segments),
                    }
                }
                DiskOp::Read { id, offset, len } => {
                    assert_range(offset, len, *bytes);
                    let buffer = pool.take(len);
                    match &mut self.backend {
                        Backend::Uring(uring) => uring.read(id, offset, buffer),
                        Backend::Threads(threads) => threads.read(id, offset, buffer),
                    }
                }
            }
        }
        if let Backend::Uring(uring) = &mut self.backend {
            uring.flush();
        }
    }

    /// Carries one operation out on the calling thread, and tells at once how it ended. For who has nothing else to do
    /// until it is done: with no second thread and nobody to wake, it costs about a third less CPU time than
    /// [`submit`](Self::submit). What is in flight beside it stays so.
    ///
    /// # Panics
    /// As [`submit`](Self::submit).
    pub fn perform(&self, op: DiskOp) -> DiskEvent {
        let Target { bytes, memory_align, pool, .. } = &*self.target;
        match op {
            DiskOp::Commit { id, writes } => {
                let segments = segments(writes, *bytes, *memory_align, pool);
                DiskEvent::Committed { id, result: write_and_sync(&self.target, &segments) }
            }
            DiskOp::Read { id, offset, len } => {
                assert_range(offset, len, *bytes);
                let result = read_exact(&self.target, offset, pool.take(len));
                DiskEvent::Read { id, result: result.map(AlignedBuf::freeze) }
            }
        }
    }

    /// Adds what is done to `out`, and makes the descriptor unreadable until there is more. Never waits.
    ///
    /// The kernel shows a completion before it raises the descriptor for it, so what was collected in between raises
    /// it once more, for nothing. Nothing is ever done without being told.
    pub fn completions(&mut self, out: &mut Vec<DiskEvent>) {
        // Lowered first: what ends from here on raises it again.
        self.signal.lower();
        match &mut self.backend {
            Backend::Uring(uring) => uring.completions(out),
            Backend::Threads(threads) => threads.completions(out),
        }
    }

    /// Operations submitted whose events have not been collected.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        match &self.backend {
            Backend::Uring(uring) => uring.outstanding(),
            Backend::Threads(threads) => threads.outstanding(),
        }
    }

    /// Blocks until something is done; to be followed by [`completions`](Self::completions). For start-up, tools and
    /// tests: a server waits for the descriptor.
    ///
    /// # Errors
    /// When the system cannot even wait.
    pub fn wait(&self) -> io::Result<()> {
        self.signal.wait()
    }

    /// Reads for start-up: see [`Scan`].
    pub fn scan(&mut self) -> Scan<'_> {
        Scan::new(self)
    }

    /// Waits for everything in flight, adds its events to `out`, and lets the disk go.
    ///
    /// # Errors
    /// When the system cannot even wait.
    pub fn close(mut self, out: &mut Vec<DiskEvent>) -> io::Result<()> {
        loop {
            self.completions(out);
            if self.outstanding() == 0 {
                return Ok(());
            }
            self.wait()?;
        }
    }
}

impl AsFd for Disk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }
}

impl AsRawFd for Disk {
    fn as_raw_fd(&self) -> RawFd {
        self.signal.as_fd().as_raw_fd()
    }
}
