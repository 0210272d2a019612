use super::super::testing::MemoryDevice;
use super::*;
use futures::FutureExt;
use futures::executor::block_on;
use futures::future::LocalBoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use proptest::prelude::*;
use std::cell::Cell;
use torus_core::ids::{BLOCK_BYTES, BLOCK_SIZE};

const SIZE: u64 = 8 * BLOCK_BYTES;

fn bytes(len: usize, value: u8) -> Pieces {
    Pieces::from_iter([Bytes::from(vec![value; len])])
}

fn whole(device: &impl BlockDevice) -> Vec<u8> {
    one_piece(block_on(device.read(0, device.info().size_bytes as u32)).unwrap()).to_vec()
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, Vec<usize>, u8),
    Zero(u64, u64),
    Trim(u64, u64),
    Read(u64, u64),
    Status(u64, u64),
}

fn op() -> impl Strategy<Value = Op> {
    let range = || (0..SIZE).prop_flat_map(|at| (Just(at), 1..=(SIZE - at).min(3 * BLOCK_BYTES)));
    let cut = |len: u64, at: u64| {
        let first = (at % len) as usize;
        if first == 0 { vec![len as usize] } else { vec![first, len as usize - first] }
    };
    prop_oneof![
        3 => (range(), any::<u8>(), any::<u64>()).prop_map(move |((at, len), v, c)| Op::Write(at, cut(len, c), v)),
        1 => (0..8u64, 1..=3u64, any::<u8>()).prop_map(|(at, n, v)| {
            Op::Write(at * BLOCK_BYTES, vec![(n.min(8 - at) * BLOCK_BYTES) as usize], v)
        }),
        2 => range().prop_map(|(at, len)| Op::Zero(at, len)),
        2 => range().prop_map(|(at, len)| Op::Trim(at, len)),
        2 => range().prop_map(|(at, len)| Op::Read(at, len)),
        1 => range().prop_map(|(at, len)| Op::Status(at, len)),
    ]
}

proptest! {
    #[test]
    fn behaves_as_plain_bytes(ops in prop::collection::vec(op(), 1..40)) {
        let device = Unaligned::new(MemoryDevice::new(SIZE));
        let mut model = vec![0u8; SIZE as usize];
        for op in ops {
            match op {
                Op::Write(at, lens, value) => {
                    let data: Pieces = lens.iter().map(|len| Bytes::from(vec![value; *len])).collect();
                    block_on(device.write(at, data, false)).unwrap();
                    model[at as usize..][..lens.iter().sum()].fill(value);
                }
                Op::Zero(at, len) => {
                    block_on(device.write_zeroes(at, len, false, false)).unwrap();
                    model[at as usize..(at + len) as usize].fill(0);
                }
                Op::Trim(at, len) => {
                    block_on(device.trim(at, len, false)).unwrap();
                    let (from, to) = (at.next_multiple_of(BLOCK_BYTES), (at + len) / BLOCK_BYTES * BLOCK_BYTES);
                    if from < to {
                        model[from as usize..to as usize].fill(0);
                    }
                }
                Op::Read(at, len) => {
                    let got = one_piece(block_on(device.read(at, len as u32)).unwrap());
                    prop_assert_eq!(&got[..], &model[at as usize..(at + len) as usize]);
                }
                Op::Status(at, len) => {
                    let extents = block_on(device.block_status(at, len)).unwrap();
                    prop_assert_eq!(extents.iter().map(|e| e.len).sum::<u64>(), len);
                    let mut from = at as usize;
                    for extent in extents {
                        let to = from + extent.len as usize;
                        prop_assert!(!extent.zero || model[from..to].iter().all(|b| *b == 0));
                        from = to;
                    }
                }
            }
        }
        prop_assert_eq!(whole(&device), model);
    }
}

#[test]
fn ranges_outside_the_device_are_refused() {
    let device = Unaligned::new(MemoryDevice::new(SIZE));
    for (at, len) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1), (u64::MAX - 4, 100), (0, 0)] {
        let kind = |r: Result<(), IoError>| r.unwrap_err().kind;
        assert_eq!(kind(block_on(device.trim(at, len, false))), IoErrorKind::Invalid);
        assert_eq!(kind(block_on(device.write_zeroes(at, len, false, false))), IoErrorKind::Invalid);
        assert_eq!(kind(block_on(device.read(at, len as u32)).map(drop)), IoErrorKind::Invalid);
        assert_eq!(kind(block_on(device.write(at, bytes(len as usize, 1), false))), IoErrorKind::Invalid);
    }
}

#[test]
fn fua_reaches_the_device() {
    let device = Unaligned::new(MemoryDevice::new(SIZE));
    block_on(device.write(5, bytes(10, 1), true)).unwrap();
    block_on(device.write(0, bytes(BLOCK_SIZE, 1), true)).unwrap();
    assert_eq!(device.device().durable_writes(), 2);
    // Nothing to trim, yet what was promised still is: the write before it becomes durable.
    block_on(device.trim(1, 2, true)).unwrap();
    assert_eq!(device.device().flushes(), 1);
}

/// Holds every call up until the test lets it go, and takes it to the device below at its first poll, or only at its
/// second: both orders must be safe.
struct Slow {
    device: MemoryDevice,
    late: bool,
    steps: Cell<u32>,
}

impl Slow {
    async fn pause(&self) {
        let until = self.steps.get() + 1;
        std::future::poll_fn(|cx| {
            cx.waker().wake_by_ref();
            if self.steps.get() >= until { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl BlockDevice for Slow {
    fn info(&self) -> DeviceInfo {
        self.device.info()
    }
    async fn read(&self, offset: u64, len: u32) -> Result<Pieces, IoError> {
        let early = self.device.read(offset, len).await;
        self.pause().await;
        if self.late { self.device.read(offset, len).await } else { early }
    }
    async fn write(&self, offset: u64, data: Pieces, fua: bool) -> Result<(), IoError> {
        if self.late {
            self.pause().await;
            self.device.write(offset, data, fua).await
        } else {
            self.device.write(offset, data, fua).await?;
            self.pause().await;
            Ok(())
        }
    }
    async fn flush(&self) -> Result<(), IoError> {
        self.device.flush().await
    }
    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoError> {
        self.pause().await;
        self.device.trim(offset, len, fua).await
    }
    async fn write_zeroes(&self, offset: u64, len: u64, no_hole: bool, fua: bool) -> Result<(), IoError> {
        self.pause().await;
        self.device.write_zeroes(offset, len, no_hole, fua).await
    }
    async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<StatusExtent>, IoError> {
        self.device.block_status(offset, len).await
    }
}

/// Runs `first` and `second` at once, `second` starting `lead` steps later, and gives the device's bytes.
fn race(late: bool, lead: u32, first: (u64, Pieces), second: (u64, Pieces)) -> Vec<u8> {
    let device = Unaligned::new(Slow { device: MemoryDevice::new(SIZE), late, steps: Cell::new(0) });
    let mut running: FuturesUnordered<LocalBoxFuture<'_, _>> = FuturesUnordered::new();
    running.push(device.write(first.0, first.1, false).boxed_local());
    let mut second = Some(second);
    for step in 0..64 {
        if step == lead
            && let Some((offset, data)) = second.take()
        {
            running.push(device.write(offset, data, false).boxed_local());
        }
        while let Some(Some(done)) = running.next().now_or_never() {
            done.unwrap();
        }
        device.device().steps.set(step + 1);
    }
    assert!(running.is_empty() && second.is_none(), "a write hangs");
    whole(&device.device().device)
}

#[test]
fn an_aligned_write_beside_an_unaligned_one_is_never_undone() {
    for late in [false, true] {
        for lead in 0..6 {
            // Block 1 wholly to 7; beside it 100 bytes in the middle of it to 9.
            let aligned = || (BLOCK_BYTES, bytes(BLOCK_SIZE, 7));
            let patch = || (BLOCK_BYTES + 500, bytes(100, 9));
            for got in [race(late, lead, aligned(), patch()), race(late, lead, patch(), aligned())] {
                let block = &got[BLOCK_SIZE..2 * BLOCK_SIZE];
                assert!(block[..500].iter().chain(&block[600..]).all(|b| *b == 7), "late {late} lead {lead}");
                let middle = block[500];
                assert!([7, 9].contains(&middle) && block[500..600].iter().all(|b| *b == middle));
            }
        }
    }
}

#[test]
fn unaligned_writes_to_one_block_both_stay() {
    for late in [false, true] {
        for lead in 0..6 {
            let got = race(late, lead, (10, bytes(20, 1)), (BLOCK_BYTES - 5, bytes(10, 2)));
            assert!(got[10..30].iter().all(|b| *b == 1), "late {late} lead {lead}");
            assert!(got[BLOCK_SIZE - 5..BLOCK_SIZE + 5].iter().all(|b| *b == 2), "late {late} lead {lead}");
        }
    }
}

#[test]
fn writes_of_whole_blocks_do_not_wait_for_each_other() {
    let device = Unaligned::new(Slow { device: MemoryDevice::new(SIZE), late: false, steps: Cell::new(0) });
    let mut first = device.write(0, bytes(BLOCK_SIZE, 1), false).boxed_local();
    let mut second = device.write(0, bytes(BLOCK_SIZE, 2), false).boxed_local();
    assert!((&mut first).now_or_never().is_none());
    assert!((&mut second).now_or_never().is_none());
    // Both are in the device, in the order of their first polls.
    assert_eq!(whole(&device.device().device)[0], 2);
}

#[test]
fn ranges_are_granted_in_order_and_a_waiter_that_leaves_lets_others_through() {
    let queue = RangeQueue::default();
    let held = queue.take(0..10, Mode::Shared).now_or_never().expect("nothing is in the way");
    let mut alone = Box::pin(queue.take(5..15, Mode::Alone));
    assert!((&mut alone).now_or_never().is_none());
    let mut behind = Box::pin(queue.take(12..20, Mode::Shared));
    assert!((&mut behind).now_or_never().is_none(), "it must not overtake the one that waits alone");
    assert!(queue.take(20..30, Mode::Alone).now_or_never().is_some());
    drop(alone);
    assert!((&mut behind).now_or_never().is_some());
    drop(held);
    drop(behind);
    let inner = queue.inner.borrow();
    assert!(inner.entries.is_empty() && inner.alone == 0);
}
