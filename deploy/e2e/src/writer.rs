//! Writes that are recorded, and a check of what became of them.
//!
//! A [`Lane`] is a piece of a volume that one thread writes to over a connection of its own. Every block it writes says which
//! block it is, of which run, and its version, which grows by one with every write of that block; the rest is made from these,
//! so that a block that lands elsewhere, an old one, half a one or another run's cannot pass. The lane knows for each block
//! which version was sent last, acknowledged last and flushed last, which is what an owner's death may leave behind:
//!
//! 1. Nothing older than what was acknowledged (in ack mode `durable`), or flushed before the last flush was answered.
//! 2. Nothing that was never sent; zeros only where nothing was ever acknowledged.
//! 3. What a read has shown stays: [`Lane::check`] makes it the only version that the next check takes.

use crate::cluster::Owner;
use crate::nbd::{Nbd, NbdError};
use anyhow::{Context, Result, ensure};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Bytes of a block.
const BLOCK: usize = 4096;
/// Blocks in one write, at most.
const WRITE_BLOCKS_MAX: u64 = 16;
/// A request that takes longer is a failure of the test.
const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Clone, Copy, Default, Debug)]
struct Versions {
    flushed: u32,
    acked: u32,
    sent: u32,
}

/// A piece of a volume, and what was written to it.
#[derive(Debug)]
pub struct Lane {
    run: u64,
    first: u64,
    blocks: Vec<Versions>,
    /// Between two writes.
    pause: Duration,
    flush_every: u64,
    random: u64,
}

/// What was seen while writing.
#[derive(Clone, Copy, Default, Debug)]
pub struct Seen {
    /// Writes acknowledged.
    pub writes: u64,
    /// Flushes acknowledged.
    pub flushes: u64,
    /// The longest that a write or a flush took.
    pub longest: Duration,
    /// When, since the start.
    pub longest_at: Duration,
}

/// Lanes that are being written to. Dropped: they are told to stop.
pub struct Writing {
    stop: Arc<AtomicBool>,
    writes: Arc<AtomicU64>,
    threads: Vec<JoinHandle<(Lane, Seen, Option<NbdError>)>>,
}

impl Lane {
    /// The blocks from `first` on. `run` is a number that no other lane of the volume has.
    #[must_use]
    pub fn new(run: u64, first: u64, blocks: usize) -> Lane {
        let blocks = vec![Versions::default(); blocks];
        Lane { run, first, blocks, pause: Duration::ZERO, flush_every: 16, random: mix(run) }
    }

    /// One that writes a block every few milliseconds and never flushes: shows how long I/O stalls.
    #[must_use]
    pub fn probe(run: u64, first: u64) -> Lane {
        Lane { pause: Duration::from_millis(4), flush_every: u64::MAX, ..Lane::new(run, first, 64) }
    }

    /// One that writes a block every few milliseconds and flushes now and then.
    #[must_use]
    pub fn slow(run: u64, first: u64, blocks: usize) -> Lane {
        Lane { pause: Duration::from_millis(4), ..Lane::new(run, first, blocks) }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.random) % below
    }

    fn content(&self, block: u64, version: u32, out: &mut [u8]) {
        let seed = mix(self.run ^ mix(block << 32 ^ u64::from(version)));
        for (i, word) in out.chunks_exact_mut(8).enumerate() {
            let value = match i {
                0 => self.run,
                1 => block,
                2 => u64::from(version),
                _ => mix(seed.wrapping_add(i as u64)),
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn run(&mut self, nbd: &mut Nbd, stop: &AtomicBool, writes: &AtomicU64, seen: &mut Seen) -> Result<(), NbdError> {
        let began = Instant::now();
        let note = |seen: &mut Seen, asked: Instant| {
            let took = asked.elapsed();
            if took > seen.longest {
                (seen.longest, seen.longest_at) = (took, began.elapsed());
            }
        };
        let mut data = vec![0; WRITE_BLOCKS_MAX as usize * BLOCK];
        while !stop.load(Ordering::Relaxed) {
            let most = if self.pause.is_zero() { WRITE_BLOCKS_MAX } else { 1 };
            let at = self.draw(self.blocks.len() as u64);
            let count = (1 + self.draw(most)).min(self.blocks.len() as u64 - at) as usize;
            let at = at as usize;
            for i in 0..count {
                self.blocks[at + i].sent += 1;
                let (block, version) = (self.first + (at + i) as u64, self.blocks[at + i].sent);
                self.content(block, version, &mut data[i * BLOCK..(i + 1) * BLOCK]);
            }
            let asked = Instant::now();
            nbd.write((self.first + at as u64) * BLOCK as u64, &data[..count * BLOCK])?;
            note(seen, asked);
            self.blocks[at..at + count].iter_mut().for_each(|block| block.acked = block.sent);
            seen.writes += 1;
            writes.fetch_add(1, Ordering::Relaxed);
            if seen.writes.is_multiple_of(self.flush_every) {
                let asked = Instant::now();
                nbd.flush()?;
                note(seen, asked);
                self.blocks.iter_mut().for_each(|block| block.flushed = block.acked);
                seen.flushes += 1;
            }
            thread::sleep(self.pause);
        }
        Ok(())
    }

    /// Reads everything back through `owner`. `durable`: what was acknowledged counts, and not only what was flushed.
    /// Blocks checked, and those of them that hold a write that was under way when the writing ended.
    pub fn check(&mut self, owner: &Owner, durable: bool) -> Result<(u64, u64)> {
        let mut nbd = Nbd::connect(owner.socket(), owner.volume(), PATIENCE).context("cannot connect to check")?;
        let mut expected = [0; BLOCK];
        let mut data = vec![0; 64 * BLOCK];
        let mut open = 0;
        for at in (0..self.blocks.len()).step_by(64) {
            let count = 64.min(self.blocks.len() - at);
            let first = self.first + at as u64;
            nbd.read(first * BLOCK as u64, &mut data[..count * BLOCK]).context("cannot read back")?;
            for (i, found) in data[..count * BLOCK].chunks_exact(BLOCK).enumerate() {
                let (block, known) = (first + i as u64, self.blocks[at + i]);
                let number = |word: usize| {
                    u64::from_le_bytes(found[word * 8..][..8].try_into().expect("eight bytes are a number"))
                };
                let zeros = found.iter().all(|byte| *byte == 0);
                let version = if zeros { 0 } else { u32::try_from(number(2)).unwrap_or(u32::MAX) };
                if !zeros {
                    self.content(block, version, &mut expected);
                    ensure!(
                        found == expected,
                        "block {block} holds what was never written there: it calls itself block {} of run {:x}, version {}",
                        number(1),
                        number(0),
                        number(2)
                    );
                }
                let least = if durable { known.acked } else { known.flushed };
                ensure!(
                    (least..=known.sent).contains(&version),
                    "block {block} has version {version}; flushed was {}, acknowledged {}, sent {}",
                    known.flushed,
                    known.acked,
                    known.sent
                );
                open += u64::from(version != known.acked);
                self.blocks[at + i] = Versions { flushed: version, acked: version, sent: version };
            }
        }
        Ok((self.blocks.len() as u64, open))
    }
}

impl Writing {
    /// Begins to write to `lanes`.
    pub fn start(owner: &Owner, lanes: impl IntoIterator<Item = Lane>) -> Result<Writing> {
        let (stop, writes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut threads = Vec::new();
        for mut lane in lanes {
            let mut nbd = Nbd::connect(owner.socket(), owner.volume(), PATIENCE).context("cannot connect to write")?;
            let (stop, writes) = (Arc::clone(&stop), Arc::clone(&writes));
            threads.push(thread::spawn(move || {
                let mut seen = Seen::default();
                let ended = lane.run(&mut nbd, &stop, &writes, &mut seen);
                (lane, seen, ended.err())
            }));
        }
        Ok(Writing { stop, writes, threads })
    }

    /// Writes acknowledged until now.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// Stops all of them: the lanes, and how each ended.
    pub fn stop(mut self) -> (Vec<Lane>, Vec<(Seen, Option<NbdError>)>) {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.threads.drain(..).map(|thread| thread.join().expect("a writer does not panic"));
        joined.map(|(lane, seen, error)| (lane, (seen, error))).unzip()
    }

    /// Stops all of them; none may have seen an error. What all of them saw together.
    pub fn finish(self) -> Result<(Vec<Lane>, Seen)> {
        let (lanes, ended) = self.stop();
        let mut sum = Seen::default();
        for (seen, error) in ended {
            if let Some(error) = error {
                return Err(error).context("a writer saw an error");
            }
            sum.writes += seen.writes;
            sum.flushes += seen.flushes;
            if seen.longest > sum.longest {
                (sum.longest, sum.longest_at) = (seen.longest, seen.longest_at);
            }
        }
        Ok((lanes, sum))
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The finalizer of splitmix64: all bits of the result depend on all bits of `x`.
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}
