//! What a commit and a read cost here, by each way of having the kernel do it.
//!
//! `cargo run --release -p torus-store --example disk_bench -- DIR [ROUNDS]` makes a file of 256 MiB in DIR and prints
//! one table per question. The ways take turns, a short run each, for ROUNDS rounds (default 9, the first not
//! counted), so that whatever else the machine does falls on all of them alike; each figure is the median over the
//! rounds. CPU is that of the whole process, its io_uring workers included (`CLOCK_PROCESS_CPUTIME_ID`); what the
//! kernel's own workers spend meanwhile, for whomever, is the column beside it.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run has nothing better to do than to say where")]

use bytes::Bytes;
use rustix::event::epoll;
use rustix::io::ReadWriteFlags;
use rustix::time::{ClockId, clock_gettime};
use std::fs::{self, File, OpenOptions};
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;
use torus_core::member::{DiskEvent, DiskOp, DiskReader, DiskWrite};
use torus_store::{AlignedBuf, BufferPool, Disk, DiskOptions, Engine, Fill};

const DISK_BYTES: u64 = 256 << 20;
const EXTENT_BYTES: u64 = 16 << 20;

/// A way to commit and to read.
enum Way {
    /// The calling thread blocks: what nothing can be cheaper than at depth 1.
    Blocking { file: File, dsync: bool, buffer: AlignedBuf },
    /// Through [`Disk`], seen by an epoll loop.
    Polled { disk: Disk, epoll: OwnedFd, events: Vec<DiskEvent> },
}

impl Way {
    fn blocking(path: &Path, dsync: bool) -> Self {
        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        let file = OpenOptions::new().read(true).write(true).custom_flags(direct).open(path).unwrap();
        Self::Blocking { file, dsync, buffer: BufferPool::new(0).take(1 << 20) }
    }

    fn polled(path: &Path, engine: Engine, write_through: bool) -> Self {
        let disk = Disk::open(path, &DiskOptions { engine, write_through, ..DiskOptions::new(pool()) }).unwrap();
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        epoll::add(&epoll, &disk, epoll::EventData::new_u64(0), epoll::EventFlags::IN).unwrap();
        Self::Polled { disk, epoll, events: Vec::new() }
    }

    /// Waits for some events and forgets them; returns how many.
    fn collect(disk: &mut Disk, epoll: &OwnedFd, events: &mut Vec<DiskEvent>) -> usize {
        let mut woken = Vec::with_capacity(4);
        let _ = epoll::wait(epoll, rustix::buffer::spare_capacity(&mut woken), None);
        disk.completions(events);
        for event in &*events {
            match event {
                DiskEvent::Committed { result, .. } => assert_eq!(result, &Ok(())),
                DiskEvent::Read { result, .. } => assert!(result.is_ok()),
            }
        }
        let count = events.len();
        events.clear();
        count
    }

    /// Commits `piece`, `pieces` times in a row, at each of `places`.
    fn commit(&mut self, places: &[u64], piece: &Bytes, pieces: usize) {
        match self {
            Self::Blocking { file, dsync, .. } => {
                let slices = vec![IoSlice::new(piece); pieces];
                let through = *dsync && places.len() == 1;
                let flags = if through { ReadWriteFlags::DSYNC } else { ReadWriteFlags::empty() };
                for &place in places {
                    let done = rustix::io::pwritev2(&*file, &slices, place, flags).unwrap();
                    assert_eq!(done, piece.len() * pieces);
                }
                if !through {
                    file.sync_data().unwrap();
                }
            }
            Self::Polled { disk, epoll, events } => {
                let write = |&offset: &u64| DiskWrite { offset, pieces: vec![piece.clone(); pieces].into() };
                disk.submit(DiskOp::Commit { id: 0, writes: places.iter().map(write).collect() });
                while Self::collect(disk, epoll, events) == 0 {}
            }
        }
    }

    /// Reads `count` random blocks, `depth` at a time.
    fn read(&mut self, count: usize, depth: usize, random: &mut impl FnMut() -> u64) {
        match self {
            Self::Blocking { file, buffer, .. } => {
                (0..count).for_each(|_| file.read_exact_at(&mut buffer[..4096], random()).unwrap());
            }
            Self::Polled { disk, epoll, events } => {
                let mut next = || DiskOp::Read { id: 0, offset: random(), len: 4096 };
                disk.submit_all((0..depth).map(|_| next()));
                let (mut sent, mut seen) = (depth, 0);
                while seen < count {
                    let some = Self::collect(disk, epoll, events);
                    seen += some;
                    let more = some.min(count - sent);
                    sent += more;
                    disk.submit_all((0..more).map(|_| next()));
                }
            }
        }
    }
}

fn pool() -> BufferPool {
    BufferPool::new(16 << 20)
}

/// One row of a table, over the rounds.
#[derive(Default)]
struct Row {
    each_us: Vec<f64>,
    cpu_us: Vec<f64>,
    kernel_us: Vec<f64>,
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn cpu_us() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    now.tv_sec as f64 * 1e6 + now.tv_nsec as f64 / 1e3
}

/// CPU time of all of the kernel's workers.
fn kernel_us() -> f64 {
    let spent = |pid: PathBuf| {
        let name = fs::read_to_string(pid.join("comm")).ok()?;
        let stat = name.starts_with("kworker").then(|| fs::read_to_string(pid.join("schedstat")).ok())??;
        stat.split(' ').next()?.parse::<f64>().ok()
    };
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| spent(entry.path())).sum::<f64>() / 1e3
}

/// Runs `run`, which returns the microseconds of each operation, and adds its medians to `row`.
fn measure(row: &mut Row, keep: bool, run: impl FnOnce() -> Vec<f64>) {
    let (kernel, cpu) = (kernel_us(), cpu_us());
    let mut each = run();
    let (cpu, kernel) = (cpu_us() - cpu, kernel_us() - kernel);
    if keep {
        row.cpu_us.push(cpu / each.len() as f64);
        row.kernel_us.push(kernel / each.len() as f64);
        row.each_us.push(median(&mut each));
    }
}

fn print(title: &str, rows: Vec<(&str, Row)>) {
    println!("\n{title}\n| way | median µs | CPU µs | kernel workers µs |\n|---|---|---|---|");
    for (name, mut row) in rows {
        let (each, cpu, kernel) = (median(&mut row.each_us), median(&mut row.cpu_us), median(&mut row.kernel_us));
        println!("| {name} | {each:.0} | {cpu:.1} | {kernel:.1} |");
    }
}

const WAYS: [&str; 5] = [
    "this thread, `pwrite` + `fdatasync`",
    "this thread, `pwritev2(RWF_DSYNC)`",
    "io_uring, write and `fdatasync`",
    "io_uring, `RWF_DSYNC` for a single write",
    "threads",
];

fn way(number: usize, path: &Path) -> Way {
    match number {
        0 | 1 => Way::blocking(path, number == 1),
        2 | 3 => Way::polled(path, Engine::Uring, number == 3),
        _ => Way::polled(path, Engine::Threads, false),
    }
}

struct Bench {
    path: PathBuf,
    rounds: usize,
}

impl Bench {
    fn disk(&self, fill: Fill) {
        let _ = fs::remove_file(&self.path);
        Disk::create(&self.path, DISK_BYTES, fill, |_| {}).unwrap();
    }

    /// Commits of `pieces` times 8 KiB at each of `places` extents, one after the other.
    fn commits(&self, title: &str, fill: Fill, places: u64, pieces: usize, count: u64) {
        let mut block = pool().take(8192);
        block.fill(0xa5);
        let piece = block.freeze();
        let step = piece.len() as u64 * pieces as u64;
        let mut rows: Vec<_> = WAYS.iter().map(|&name| (name, Row::default())).collect();
        // Only overwritten space may be used twice.
        if fill == Fill::Zeros {
            self.disk(fill);
        }
        for round in 0..=self.rounds {
            for (number, (_, row)) in rows.iter_mut().enumerate() {
                if fill == Fill::Reserve {
                    self.disk(fill);
                }
                let mut way = way(number, &self.path);
                measure(row, round > 0, || {
                    let one = |n: u64| {
                        let at = |extent: u64| extent * EXTENT_BYTES + n * step % EXTENT_BYTES;
                        let places: Vec<u64> = (0..places).map(at).collect();
                        let start = Instant::now();
                        way.commit(&places, &piece, pieces);
                        start.elapsed().as_secs_f64() * 1e6
                    };
                    (0..count).map(one).collect()
                });
            }
        }
        print(title, rows);
    }

    fn reads(&self, depth: usize, count: usize) {
        self.disk(Fill::Zeros);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % (DISK_BYTES / 4096) * 4096
        };
        let names = [(0, "this thread, `pread`, one at a time"), (2, "io_uring"), (4, "threads")];
        let mut rows: Vec<_> = names.iter().map(|&(_, name)| (name, Row::default())).collect();
        for round in 0..=self.rounds {
            for (&(number, _), (_, row)) in names.iter().zip(&mut rows) {
                let mut way = way(number, &self.path);
                measure(row, round > 0, || {
                    let start = Instant::now();
                    way.read(count, depth, &mut random);
                    vec![start.elapsed().as_secs_f64() * 1e6 / count as f64; count]
                });
            }
        }
        print(&format!("4 KiB random reads, {depth} at a time (time for each = 1 / IOPS)"), rows);
    }
}

impl Bench {
    /// The start-up scan of a disk with a slot header every 64 KiB, alone and read ahead.
    fn scans(&self) {
        self.disk(Fill::Zeros);
        let places = (0..DISK_BYTES).step_by(64 << 10);
        let count = places.clone().count();
        let mut rows = [("this thread, `pread`, one at a time", Row::default()), ("`Scan`", Row::default())];
        for round in 0..=self.rounds {
            let Way::Blocking { file, mut buffer, .. } = Way::blocking(&self.path, false) else {
                unreachable!("it was made so")
            };
            let timed = |read: &mut dyn FnMut(u64)| {
                let start = Instant::now();
                places.clone().for_each(read);
                vec![start.elapsed().as_secs_f64() * 1e6 / count as f64; count]
            };
            measure(&mut rows[0].1, round > 0, || {
                timed(&mut |at| file.read_exact_at(&mut buffer[..4096], at).unwrap())
            });
            let mut disk = Disk::open(&self.path, &DiskOptions::new(pool())).unwrap();
            let mut scan = disk.scan();
            measure(&mut rows[1].1, round > 0, || {
                timed(&mut |at| assert_eq!(scan.read(at, 4096).unwrap().len(), 4096))
            });
        }
        print("Start-up scan, a header block every 64 KiB", rows.into());
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().expect("usage: disk_bench DIR [ROUNDS]"));
    let rounds = args.next().map_or(9, |rounds| rounds.parse().expect("ROUNDS is a number"));
    let bench = Bench { path: dir.join("disk_bench.tmp"), rounds };
    bench.commits("Commit of one write of 8 KiB, space written before", Fill::Zeros, 1, 1, 200);
    bench.commits("The same, space only reserved", Fill::Reserve, 1, 1, 100);
    bench.commits("Commit of 32 writes of 8 KiB that touch", Fill::Zeros, 1, 32, 100);
    for places in [2, 4, 8] {
        let title = format!("Commit of {places} writes of 8 KiB, each in an extent of its own");
        bench.commits(&title, Fill::Zeros, places, 1, 100);
    }
    bench.reads(1, 1000);
    bench.reads(32, 8000);
    bench.scans();
    let start = Instant::now();
    bench.disk(Fill::Zeros);
    println!("\nA new disk is filled at {:.0} MB/s.", DISK_BYTES as f64 / 1e6 / start.elapsed().as_secs_f64());
    let _ = fs::remove_file(&bench.path);
}
