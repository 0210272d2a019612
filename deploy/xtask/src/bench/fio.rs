//! The load: fio's jobs, and what fio says of them.

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// One kind of load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Job {
    /// Its name in tables and files.
    pub name: &'static str,
    /// What it does, for people.
    pub about: &'static str,
    access: &'static str,
    block_bytes: u32,
    depth: u32,
    read_percent: Option<u32>,
}

const fn job(name: &'static str, about: &'static str, access: &'static str, block_bytes: u32, depth: u32) -> Job {
    Job { name, about, access, block_bytes, depth, read_percent: None }
}

/// All of them, in the order they are run.
pub const JOBS: [Job; 7] = [
    job("w4k_q1", "random 4 KiB writes, depth 1", "randwrite", 4096, 1),
    job("w4k_q32", "random 4 KiB writes, depth 32", "randwrite", 4096, 32),
    job("r4k_q1", "random 4 KiB reads, depth 1", "randread", 4096, 1),
    job("r4k_q32", "random 4 KiB reads, depth 32", "randread", 4096, 32),
    Job {
        name: "rw70_q32",
        about: "70 % reads, 30 % writes, random 4 KiB, depth 32",
        access: "randrw",
        block_bytes: 4096,
        depth: 32,
        read_percent: Some(70),
    },
    job("w1m_q8", "sequential 1 MiB writes, depth 8", "write", 1 << 20, 8),
    job("r1m_q8", "sequential 1 MiB reads, depth 8", "read", 1 << 20, 8),
];

/// The job that is called `name`.
pub fn job_named(name: &str) -> Result<Job, String> {
    let names = || JOBS.map(|job| job.name).join(", ");
    JOBS.into_iter().find(|job| job.name == name).ok_or_else(|| format!("no such job: there are {}", names()))
}

/// Fills the whole of a target, so that reads find data.
pub const FILL: Job = job("fill", "writes everything once", "write", 1 << 20, 8);
/// What a replica-2 write at depth 1 costs a disk: frame header and payload, then a sync.
pub const RAW_FRAME: Job =
    job("w8k_sync", "random 8 KiB writes to a file, a sync after each, depth 1", "randwrite", 8192, 1);

/// What the load is put on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Way {
    /// An NBD export.
    Nbd(String),
    /// A file, with O_DIRECT; writes are followed by fdatasync, one for each `depth` of them, as group commit would.
    File(PathBuf),
}

/// How long a job runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// For a time.
    Time(Duration),
    /// Until everything was touched once.
    Once,
}

/// Reads, or writes, of one run.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Side {
    /// Operations carried out.
    pub ios: u64,
    /// Operations in a second.
    pub iops: f64,
    /// Bytes in a second.
    pub bytes_per_s: f64,
    /// Median latency as fio counts it. Its NBD engine leaves submission out.
    pub p50_us: f64,
    /// 99th percentile, likewise.
    pub p99_us: f64,
}

/// What one run gave.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Run {
    /// Its reads, if it made any.
    pub read: Option<Side>,
    /// Its writes, if it made any.
    pub write: Option<Side>,
}

impl Run {
    /// Operations carried out.
    pub fn ios(&self) -> u64 {
        self.sides().map(|side| side.ios).sum()
    }
    /// Operations in a second.
    pub fn iops(&self) -> f64 {
        self.sides().map(|side| side.iops).sum()
    }
    /// Bytes in a second.
    pub fn bytes_per_s(&self) -> f64 {
        self.sides().map(|side| side.bytes_per_s).sum()
    }
    fn sides(&self) -> impl Iterator<Item = &Side> {
        self.read.iter().chain(&self.write)
    }
}

/// Runs `job` on the first `bytes` of `way`.
///
/// # Errors
/// When fio fails, or reports an I/O error.
pub fn run(job: Job, way: &Way, bytes: u64, extent: Extent, scratch: &Path) -> Result<Run> {
    let output = scratch.join("fio.json");
    let mut fio = Command::new("fio");
    fio.current_dir(scratch).stdin(Stdio::null());
    fio.arg(format!("--name={}", job.name))
        .arg(format!("--rw={}", job.access))
        .arg(format!("--bs={}", job.block_bytes));
    fio.arg(format!("--iodepth={}", job.depth)).arg(format!("--size={bytes}"));
    fio.args(["--randrepeat=0", "--norandommap=1", "--output-format=json", "--thread"]);
    fio.arg(format!("--output={}", output.display()));
    if let Some(percent) = job.read_percent {
        fio.arg(format!("--rwmixread={percent}"));
    }
    if let Extent::Time(time) = extent {
        fio.arg("--time_based").arg(format!("--runtime={}ms", time.as_millis()));
    }
    match way {
        Way::Nbd(uri) => fio.arg("--ioengine=nbd").arg(format!("--uri={uri}")),
        Way::File(path) => {
            fio.args(["--ioengine=io_uring", "--direct=1"]).arg(format!("--filename={}", path.display()));
            fio.arg(format!("--fdatasync={}", job.depth))
        }
    };
    let status = fio.status().context("cannot run fio; `cargo xtask test --only tools` installs it")?;
    let text = std::fs::read_to_string(&output).unwrap_or_default();
    if !status.success() {
        bail!("fio {} on {way:?} failed ({status}): {text}", job.name);
    }
    parse(&text).with_context(|| format!("cannot make sense of what fio says of {}", job.name))
}

/// The figures in fio's JSON output.
fn parse(text: &str) -> Result<Run> {
    // fio may say other things first.
    let json: Value = serde_json::from_str(&text[text.find('{').unwrap_or(0)..]).context("not JSON")?;
    let job = &json["jobs"][0];
    if job["error"] != 0 {
        bail!("I/O failed with error {}", job["error"]);
    }
    let run = Run { read: side(&job["read"])?, write: side(&job["write"])? };
    if run.read.is_none() && run.write.is_none() {
        bail!("no I/O was done");
    }
    Ok(run)
}

fn side(json: &Value) -> Result<Option<Side>> {
    let number = |value: &Value, what: &str| value.as_f64().with_context(|| format!("no {what}"));
    let ios = json["total_ios"].as_u64().context("no total_ios")?;
    if ios == 0 {
        return Ok(None);
    }
    let percentiles = &json["clat_ns"]["percentile"];
    Ok(Some(Side {
        ios,
        iops: number(&json["iops"], "iops")?,
        bytes_per_s: number(&json["bw_bytes"], "bw_bytes")?,
        p50_us: number(&percentiles["50.000000"], "median")? / 1000.0,
        p99_us: number(&percentiles["99.000000"], "99th percentile")? / 1000.0,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = r#"fio: a warning
        {"jobs": [{"error": 0,
          "read": {"total_ios": 0, "iops": 0.0, "bw_bytes": 0, "clat_ns": {}},
          "write": {"total_ios": 1000, "iops": 500.5, "bw_bytes": 2050048,
                    "clat_ns": {"percentile": {"50.000000": 1500, "99.000000": 9000}}}}]}"#;

    #[test]
    fn figures_are_read() {
        let run = parse(OUTPUT).unwrap();
        let write = Side { ios: 1000, iops: 500.5, bytes_per_s: 2_050_048.0, p50_us: 1.5, p99_us: 9.0 };
        assert_eq!(run, Run { read: None, write: Some(write) });
        assert_eq!((run.ios(), run.iops()), (1000, 500.5));
    }

    #[test]
    fn errors_and_nonsense_are_not_taken_for_figures() {
        assert!(parse(&OUTPUT.replace("\"error\": 0", "\"error\": 5")).is_err());
        assert!(parse(&OUTPUT.replace("1000", "0")).is_err());
        assert!(parse(&OUTPUT.replace("\"50.000000\"", "\"51\"")).is_err());
        assert!(parse("").is_err());
        assert!(parse("{}").is_err());
    }
}
