//! Writes in the background, as a database would make them: small, at random, many at once.

use super::client::{Client, NbdError};
use super::ledger::Ledger;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rand::Rng;
use rand::rngs::SmallRng;
use std::collections::BTreeMap;
use std::pin::pin;
use std::time::{Duration, Instant};
use torus_core::ids::BLOCK_BYTES;

/// Writes in flight.
const DEPTH: usize = 16;
/// Blocks in one write, at most.
const WRITE_BLOCKS_MAX: usize = 16;
/// A flush after so many writes.
const FLUSH_EVERY: u64 = 64;

/// What was seen while writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loaded {
    /// Writes acknowledged.
    pub writes: u64,
    /// The longest time in which none was.
    pub stall: Duration,
}

/// Writes until `stop` is ready, then waits for what is in flight. Every acknowledged write is in `ledger`.
///
/// # Errors
/// The first error that the server gives. What was in flight then is of unknown content.
pub async fn run(
    client: &Client,
    ledger: &mut Ledger,
    random: &mut SmallRng,
    stop: impl Future<Output = ()>,
) -> Result<Loaded, NbdError> {
    let blocks = client.size_bytes() / BLOCK_BYTES;
    let mut stop = pin!(stop);
    let mut stopping = false;
    let mut flying = FuturesUnordered::new();
    // First block → count: no two writes in flight overlap, or nobody could say which came last.
    let mut ranges = BTreeMap::new();
    let mut loaded = Loaded { writes: 0, stall: Duration::ZERO };
    let mut last = Instant::now();
    loop {
        while !stopping && flying.len() < DEPTH {
            let (first, count) = (random.random_range(0..blocks), random.random_range(1..=WRITE_BLOCKS_MAX));
            if first + count as u64 > blocks || overlaps(&ranges, first, count) {
                continue;
            }
            ranges.insert(first, count);
            let data = ledger.next(first, count);
            flying.push(async move { (first, client.write(first * BLOCK_BYTES, &data).await) });
        }
        tokio::select! {
            () = &mut stop, if !stopping => stopping = true,
            next = flying.next() => match next {
                None => return Ok(loaded),
                Some((first, result)) => {
                    result?;
                    let count = ranges.remove(&first).expect("what is in flight is listed");
                    ledger.written(first, count);
                    loaded.writes += 1;
                    loaded.stall = loaded.stall.max(last.elapsed());
                    last = Instant::now();
                    if loaded.writes.is_multiple_of(FLUSH_EVERY) {
                        client.flush().await?;
                    }
                }
            }
        }
    }
}

/// Whether a write in flight touches the range.
fn overlaps(ranges: &BTreeMap<u64, usize>, first: u64, count: usize) -> bool {
    let below = ranges.range(..first + count as u64).next_back();
    below.is_some_and(|(start, length)| start + *length as u64 > first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use std::rc::Rc;
    use tokio::sync::oneshot;
    use tokio::task::LocalSet;
    use torus_agent::device::IoError;
    use torus_agent::device::testing::MemoryDevice;
    use torus_agent::nbd::{Export, Server};

    const BLOCKS: u64 = 512;

    /// Runs `test` with a client of a served device.
    async fn with_device<F: Future<Output = ()>>(
        test: impl FnOnce(Client, Rc<MemoryDevice>, Server<MemoryDevice>) -> F,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let served = async {
            let device = Rc::new(MemoryDevice::new(BLOCKS * BLOCK_BYTES));
            let server = Server::new();
            let export = Export { name: "demo".into(), description: String::new(), device: Rc::clone(&device) };
            server.add(export).unwrap();
            server.listen_unix(&socket, 0o600).unwrap();
            let client = Client::connect(&socket, "demo").await.unwrap();
            assert_eq!(client.size_bytes(), BLOCKS * BLOCK_BYTES);
            test(client, device, server).await;
        };
        LocalSet::new().run_until(served).await;
    }

    async fn read_back(client: &Client, ledger: &Ledger) {
        for first in (0..BLOCKS).step_by(64) {
            let data = client.read(first * BLOCK_BYTES, 64 * 4096).await.unwrap();
            ledger.check(first, &data).unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_written_is_in_the_ledger() {
        with_device(|client, _, server| async move {
            let mut ledger = Ledger::new(1, BLOCKS as usize);
            let mut random = SmallRng::seed_from_u64(1);
            let (stop, stopped) = oneshot::channel::<()>();
            let watcher = client.clone();
            let stop = async move {
                // The load goes on until it has had time to write something.
                watcher.flush().await.unwrap();
                drop(stop);
                let _ = stopped.await;
            };
            let loaded = run(&client, &mut ledger, &mut random, stop).await.unwrap();
            assert!(loaded.writes >= DEPTH as u64, "{loaded:?}");
            read_back(&client, &ledger).await;
            drop(server);
        })
        .await;
    }

    #[tokio::test]
    async fn an_error_ends_the_load_and_is_told() {
        with_device(|client, device, server| async move {
            device.fail_next(IoError::new(torus_agent::device::IoErrorKind::Io, "broken"));
            let mut ledger = Ledger::new(1, BLOCKS as usize);
            let mut random = SmallRng::seed_from_u64(1);
            let failed = run(&client, &mut ledger, &mut random, std::future::pending()).await.unwrap_err();
            assert_eq!(failed, NbdError::Answered(5));
            drop(server);
        })
        .await;
    }

    #[tokio::test]
    async fn nobody_waits_for_a_server_that_is_gone() {
        with_device(|client, _, server| async move {
            client.write(0, &[1; 4096]).await.unwrap();
            drop(server);
            assert_eq!(client.read(0, 4096).await, Err(NbdError::Broken));
            assert_eq!(client.flush().await, Err(NbdError::Broken));
        })
        .await;
    }

    #[test]
    fn overlapping_ranges_are_seen() {
        let ranges = BTreeMap::from([(10, 5), (20, 1)]);
        for (first, count, expected) in
            [(0, 10, false), (0, 11, true), (14, 1, true), (15, 5, false), (15, 6, true), (21, 9, false)]
        {
            assert_eq!(overlaps(&ranges, first, count), expected, "{first}+{count}");
        }
    }
}
