//! `cargo xtask bench`: Torus beside what it is made of, on one machine, in one run.
//!
//! Disks and machines drift, so no figure is worth anything alone: every job goes over all targets before the next
//! begins, and the whole is repeated in rounds. The targets are nbdkit's memory plugin (what NBD costs with nothing
//! behind it), a raw file with O_DIRECT and fdatasync (what the disk gives; preallocated, filled and aged together with
//! the agents' disks), and Torus at replicas 1, 2 and 3.

mod bars;
mod fio;
mod report;
mod roundtrip;
mod table;
mod targets;

use anyhow::{Context, Result, bail};
use fio::{Extent, JOBS, RAW_FRAME};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use table::{Measured, Table};
use targets::{Owner, Target, Volume};
use torus_e2e::scratch::Scratch;

/// The targets' names.
const NBDKIT: &str = "nbdkit memory";
const RAW: &str = "raw file";

/// Torus's volumes, by their number of copies.
const REPLICAS: [u8; 3] = [1, 2, 3];

/// The name of Torus at so many replicas.
fn torus(replicas: u8) -> String {
    format!("torus r{replicas}")
}

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// Fail when a figure misses its bound.
    #[arg(long)]
    check: bool,
    /// One short round on small volumes: shows that it works, not how fast.
    #[arg(long)]
    quick: bool,
    /// Rounds.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Seconds for each job on each target in a round.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Torus at these numbers of copies. What --check judges needs 2 alone.
    #[arg(long, value_name = "COPIES", value_delimiter = ',', default_values_t = REPLICAS,
          value_parser = clap::value_parser!(u8).range(1..=3))]
    replicas: Vec<u8>,
    /// Volumes whose owner is in the first agent, or in a process apart from all agents, or both. What --check judges needs
    /// the first
    #[arg(long, value_name = "WHERE", value_enum, value_delimiter = ',', default_value = "agent")]
    owner: Vec<Owner>,
    /// These jobs alone, by their names in the report.
    #[arg(long, value_name = "JOB", value_delimiter = ',', value_parser = fio::job_named)]
    only: Vec<fio::Job>,
    /// Where disks and sockets are put; its filesystem is what is measured.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where the report is written.
    #[arg(long, value_name = "DIR", default_value = "docs/benchmarks")]
    out: PathBuf,
}

/// What a replicated write at depth 1 cannot be faster than, its front end aside.
#[derive(Clone, Copy, Debug, Serialize)]
struct Floor {
    /// Mean of a raw 8 KiB write and its fdatasync.
    raw_frame_us: f64,
    /// Mean of a TCP round trip on the loopback address.
    roundtrip_us: f64,
}

impl Options {
    /// What of Torus is measured, each once.
    fn volumes(&self) -> Vec<Volume> {
        let of = |&replicas: &u8| self.owner.iter().map(move |&owner| Volume { replicas, owner });
        self.replicas.iter().flat_map(of).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// Measures, reports, and judges if asked to.
pub fn run(options: &Options) -> Result<bool> {
    if options.rounds == 0 || options.seconds == 0 {
        bail!("nothing to measure: --rounds and --seconds must be at least 1");
    }
    let (rounds, time, bytes) = if options.quick {
        (1, Duration::from_secs(1), 256 << 20)
    } else {
        (options.rounds, Duration::from_secs(options.seconds), 2 << 30)
    };
    let scratch = match &options.dir {
        Some(dir) => Scratch::below(dir, "bench"),
        None => Scratch::new("bench"),
    }?;
    let dir = scratch.path();
    println!("building, and starting a cluster");
    let volumes = options.volumes();
    let mut cluster = targets::cluster(bytes, &volumes, dir)?;
    let mut targets = vec![targets::nbdkit(bytes, dir)?, targets::raw(bytes, dir)?];
    for volume in volumes {
        targets.push(targets::torus(&mut cluster, volume, bytes)?);
    }
    for target in &targets {
        println!("filling {} with {} MiB", target.name, bytes >> 20);
        target.fill(bytes, dir)?;
    }
    let mut table = Table::default();
    let mut floors = Vec::new();
    for round in 1..=rounds {
        floors.push(floor(&targets[1], bytes, time, dir)?);
        for job in JOBS.into_iter().filter(|job| options.only.is_empty() || options.only.contains(job)) {
            for target in &targets {
                let measured = measure(job, target, bytes, time, round, dir)?;
                println!("round {round} {:<9} {:<14} {:>9.0} IOPS", job.name, target.name, measured.run.iops());
                table.runs.push(measured);
            }
        }
    }
    let floor = report::middle(&floors).context("no round was run")?;
    let bars = bars::judge(&table, &floors);
    report::write(&options.out, &table, &floor, bars.as_deref().unwrap_or_default(), bytes, time, dir)?;
    for bar in bars.iter().flatten() {
        println!("{}", bar.shown());
    }
    match (options.check, bars) {
        (false, _) => Ok(true),
        (true, Some(bars)) => Ok(bars.iter().all(bars::Bar::kept)),
        (true, None) => bail!("--check has nothing to judge: not every figure it needs was measured"),
    }
}

fn measure(job: fio::Job, target: &Target, bytes: u64, time: Duration, round: u32, dir: &Path) -> Result<Measured> {
    let before = target.usage()?;
    let run = fio::run(job, &target.way, bytes, Extent::Time(time), dir)?;
    let after = target.usage()?;
    #[expect(clippy::cast_precision_loss, reason = "a count of operations in seconds")]
    let per_10k = |cpu: Duration| cpu.as_secs_f64() * 10_000.0 / run.ios() as f64;
    Ok(Measured {
        target: target.name.clone(),
        job: job.name,
        round,
        run,
        cpu_s_per_10k: before.zip(after).map(|(before, after)| per_10k(after - before)),
        rss_bytes: after.map(|usage| usage.rss_bytes),
    })
}

fn floor(raw: &Target, bytes: u64, time: Duration, dir: &Path) -> Result<Floor> {
    let frames = fio::run(RAW_FRAME, &raw.way, bytes, Extent::Time(time), dir)?;
    let roundtrip = roundtrip::mean(time.min(Duration::from_secs(1)))?;
    Ok(Floor { raw_frame_us: 1e6 / frames.iops(), roundtrip_us: roundtrip.as_secs_f64() * 1e6 })
}
