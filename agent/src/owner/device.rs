//! An open volume as a [`BlockDevice`].

use super::status::{IoKind, Latencies};
use crate::device::{BlockDevice, DeviceInfo, IoError, IoErrorKind, StatusExtent, push_extent};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;
use tokio::sync::Notify;
use torus_core::block::{IoDone, IoError as CoreError, IoId, IoOp};
use torus_core::format::Pieces;
use torus_core::ids::{BLOCK_BYTES, BLOCK_SIZE, Lba};

/// Bits of an [`IoId`] that say where its answer is waited for; the rest counts.
const PLACE_BITS: u32 = 24;

/// What the device and the driver share, on one thread.
pub(super) struct Desk {
    /// Requests that the driver has not taken yet, in order.
    asked: RefCell<Vec<(IoId, IoOp)>>,
    /// Wakes the driver.
    pub news: Notify,
    waiting: RefCell<Slab<Waiting>>,
    count: Cell<u64>,
    blocks: Cell<u64>,
    grown: Notify,
    /// The driver has ended: why.
    ended: RefCell<Option<IoError>>,
    /// What errors call the volume.
    pub name: String,
    /// How long requests took.
    latencies: Latencies,
}

enum Waiting {
    Open(Open),
    Done(Result<IoDone, IoError>),
    /// Nobody waits any more, but the core still has it.
    Forgotten(IoId),
}

struct Open {
    id: IoId,
    kind: IoKind,
    since: Instant,
    waker: Option<Waker>,
}

impl Desk {
    /// The desk of a volume that is called `name` and has so many blocks.
    pub fn new(name: String, blocks: u64, latencies: Latencies) -> Desk {
        let (asked, news, waiting, count, grown, ended) = Default::default();
        Desk { asked, news, waiting, count, blocks: Cell::new(blocks), grown, ended, name, latencies }
    }

    /// The device's size, in blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks.get()
    }

    /// The core knows of so many blocks now.
    pub fn grow(&self, blocks: u64) {
        if self.blocks.replace(blocks) != blocks {
            self.grown.notify_waiters();
        }
    }

    fn ask(self: &Rc<Self>, op: IoOp) -> Answer {
        let mut waiting = self.waiting.borrow_mut();
        let entry = waiting.vacant_entry();
        let place = entry.key();
        assert!(place < 1 << PLACE_BITS, "front ends bound what they have in flight");
        self.count.set(self.count.get() + 1);
        let id = IoId(self.count.get() << PLACE_BITS | place as u64);
        match &*self.ended.borrow() {
            Some(error) => drop(entry.insert(Waiting::Done(Err(error.clone())))),
            None => {
                entry.insert(Waiting::Open(Open { id, kind: IoKind::of(&op), since: Instant::now(), waker: None }));
                self.asked.borrow_mut().push((id, op));
                self.news.notify_one();
            }
        }
        Answer { desk: Rc::clone(self), place, finished: false }
    }

    /// Moves all requests to the end of `into`.
    pub fn take(&self, into: &mut Vec<(IoId, IoOp)>) {
        into.append(&mut self.asked.borrow_mut());
    }

    /// The core has answered.
    pub fn answer(&self, id: IoId, result: Result<IoDone, CoreError>) {
        let place = (id.0 & ((1 << PLACE_BITS) - 1)) as usize;
        let mut waiting = self.waiting.borrow_mut();
        let entry = waiting.get_mut(place).expect("the core answers what was asked, once");
        match entry {
            Waiting::Open(open) => {
                assert_eq!(open.id, id, "the core answers what was asked, once");
                self.latencies.observe(open.kind, open.since.elapsed());
                let waker = open.waker.take();
                *entry = Waiting::Done(result.map_err(|error| self.told(&error)));
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Waiting::Forgotten(asked) => {
                assert_eq!(*asked, id, "the core answers what was asked, once");
                waiting.remove(place);
            }
            Waiting::Done(..) => unreachable!("the core answered {id:?} twice"),
        }
    }

    /// The driver ends: whatever is open, and whatever comes, fails with `error`.
    pub fn end(&self, error: &IoError) {
        *self.ended.borrow_mut() = Some(error.clone());
        self.asked.borrow_mut().clear();
        let mut waiting = self.waiting.borrow_mut();
        for (_, entry) in waiting.iter_mut() {
            if let Waiting::Open(open) = entry {
                let waker = open.waker.take();
                *entry = Waiting::Done(Err(error.clone()));
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
        waiting.retain(|_, entry| !matches!(entry, Waiting::Forgotten(_)));
    }

    /// Since when the request that has waited longest is under way.
    pub fn oldest(&self) -> Option<Instant> {
        let since = |entry: &Waiting| match entry {
            Waiting::Open(open) => Some(open.since),
            Waiting::Done(..) | Waiting::Forgotten(_) => None,
        };
        self.waiting.borrow().iter().filter_map(|(_, entry)| since(entry)).min()
    }

    fn told(&self, error: &CoreError) -> IoError {
        let kind = match error {
            CoreError::OutOfRange { .. } => IoErrorKind::Invalid,
            CoreError::NoSpace => IoErrorKind::NoSpace,
            CoreError::Unreadable { .. } => IoErrorKind::Corrupt,
            CoreError::Fenced { .. } => IoErrorKind::Fenced,
            CoreError::Closed => IoErrorKind::ShuttingDown,
        };
        IoError::new(kind, format!("volume {:?}: {error}", self.name))
    }
}

/// The core's answer to one request.
struct Answer {
    desk: Rc<Desk>,
    place: usize,
    finished: bool,
}

impl Future for Answer {
    type Output = Result<IoDone, IoError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut waiting = this.desk.waiting.borrow_mut();
        match &mut waiting[this.place] {
            Waiting::Open(open) => {
                match &mut open.waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => open.waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            Waiting::Done(..) => {
                this.finished = true;
                match waiting.remove(this.place) {
                    Waiting::Done(result) => Poll::Ready(result),
                    Waiting::Open(..) | Waiting::Forgotten(_) => unreachable!("looked at a moment ago"),
                }
            }
            Waiting::Forgotten(_) => unreachable!("an answer is forgotten only when nobody holds its future"),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let mut waiting = self.desk.waiting.borrow_mut();
        match &waiting[self.place] {
            Waiting::Open(open) => waiting[self.place] = Waiting::Forgotten(open.id),
            Waiting::Done(..) => drop(waiting.remove(self.place)),
            Waiting::Forgotten(_) => unreachable!("a future is dropped once"),
        }
    }
}

/// A volume that is open on this thread. Cloning shares it.
#[derive(Clone)]
pub struct VolumeDevice {
    pub(super) desk: Rc<Desk>,
}

impl VolumeDevice {
    /// The range in blocks.
    fn blocks(&self, offset: u64, len: u64) -> Result<(Lba, u64), IoError> {
        let sound = len > 0
            && offset.is_multiple_of(BLOCK_BYTES)
            && len.is_multiple_of(BLOCK_BYTES)
            && offset.checked_add(len).is_some_and(|end| end <= self.info().size_bytes);
        if sound {
            return Ok((Lba(offset / BLOCK_BYTES), len / BLOCK_BYTES));
        }
        let size = self.info().size_bytes;
        let text = format!("volume {:?}: {len} bytes at {offset} are not blocks of its {size} bytes", self.desk.name);
        Err(IoError::new(IoErrorKind::Invalid, text))
    }

    /// Waits until it has another size than `known_bytes`, and gives that. Cancel safe.
    pub async fn resized(&self, known_bytes: u64) -> u64 {
        loop {
            let grown = self.desk.grown.notified();
            let now = self.info().size_bytes;
            if now != known_bytes {
                return now;
            }
            grown.await;
        }
    }

    async fn plain(&self, op: IoOp) -> Result<(), IoError> {
        self.desk.ask(op).await.map(drop)
    }
}

impl BlockDevice for VolumeDevice {
    fn info(&self) -> DeviceInfo {
        let size_bytes = self.desk.blocks() * BLOCK_BYTES;
        DeviceInfo { size_bytes, block_bytes: BLOCK_SIZE as u32, read_only: false }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Pieces, IoError> {
        let (lba, blocks) = self.blocks(offset, len.into())?;
        match self.desk.ask(IoOp::Read { lba, blocks }).await? {
            IoDone::Data(pieces) => Ok(pieces),
            other => unreachable!("a read is answered with data, not {other:?}"),
        }
    }

    async fn write(&self, offset: u64, data: Pieces, fua: bool) -> Result<(), IoError> {
        let (lba, _) = self.blocks(offset, data.iter().map(|piece| piece.len() as u64).sum())?;
        self.plain(IoOp::Write { lba, payload: data, fua }).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.plain(IoOp::Flush).await
    }

    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoError> {
        let (lba, blocks) = self.blocks(offset, len)?;
        self.plain(IoOp::Trim { lba, blocks, fua }).await
    }

    async fn write_zeroes(&self, offset: u64, len: u64, _no_hole: bool, fua: bool) -> Result<(), IoError> {
        // Space is promised to extents, not to addresses: a hole is as good as zeros that take room.
        let (lba, blocks) = self.blocks(offset, len)?;
        self.plain(IoOp::Zero { lba, blocks, fua }).await
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<StatusExtent>, IoError> {
        let (lba, blocks) = self.blocks(offset, len)?;
        match self.desk.ask(IoOp::Status { lba, blocks }).await? {
            IoDone::Status(runs) => {
                let mut extents = Vec::with_capacity(runs.len());
                for (blocks, data) in runs {
                    push_extent(&mut extents, StatusExtent { len: blocks * BLOCK_BYTES, hole: !data, zero: !data });
                }
                Ok(extents)
            }
            other => unreachable!("a status is answered with runs, not {other:?}"),
        }
    }
}
