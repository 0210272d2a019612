//! The report: markdown for people, JSON with every single run, both named after the commit.

use super::Floor;
use super::bars::Bar;
use super::fio::JOBS;
use super::table::Table;
use crate::workspace;
use anyhow::{Context, Result};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The floor of the rounds: the middle of each part.
pub fn middle(floors: &[Floor]) -> Option<Floor> {
    let middle = |part: fn(&Floor) -> f64| {
        let mut values: Vec<f64> = floors.iter().map(part).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    Some(Floor { raw_frame_us: middle(|f| f.raw_frame_us)?, roundtrip_us: middle(|f| f.roundtrip_us)? })
}

/// Writes `DATE-COMMIT.md` and `.json` into `out`, which is taken from the workspace's root.
pub fn write(
    out: &Path,
    table: &Table,
    floor: &Floor,
    bars: &[Bar],
    bytes: u64,
    time: Duration,
    dir: &Path,
) -> Result<()> {
    let out = workspace::root()?.join(out);
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let (commit, machine) = (commit()?, machine(dir));
    let how = format!(
        "{machine}. {} MiB each, {} s for each job on each target in a round, medians of the rounds. Raw writes are \
         O_DIRECT with one fdatasync for each `depth` of them. fio's NBD engine leaves submission out of its latencies; \
         at depth 1 the mean is 1 / IOPS. Raw 8 KiB write and fdatasync: {:.0} µs; TCP round trip on the loopback \
         address: {:.0} µs (means).",
        bytes >> 20,
        time.as_secs(),
        floor.raw_frame_us,
        floor.roundtrip_us
    );
    let judged: String = bars.iter().map(|bar| format!("- {}\n", bar.shown())).collect();
    let judged = if judged.is_empty() { judged } else { format!("\n## Bounds, at replicas 2\n\n{judged}") };
    let text = format!("# Torus at {commit}\n\n{how}\n{judged}\n## Figures\n{}", table.markdown(&JOBS));
    let json = json!({
        "commit": commit, "machine": machine, "bytes": bytes, "seconds": time.as_secs_f64(),
        "floor": floor, "bars": bars, "runs": table.runs,
    });
    let json = serde_json::to_string_pretty(&json).context("cannot write JSON")? + "\n";
    for (extension, content) in [("md", &text), ("json", &json)] {
        let path = out.join(format!("{commit}.{extension}"));
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(())
}

/// `DATE-HASH` of the commit that is checked out, `-changed` when the tree differs from it.
fn commit() -> Result<String> {
    let root = workspace::root()?;
    let git = |args: &[&str]| {
        let output = Command::new("git").current_dir(&root).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let name = git(&["log", "-1", "--format=%cs-%h"]).unwrap_or_else(|| "unversioned".into());
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| !changes.is_empty());
    Ok(if changed { format!("{name}-changed") } else { name })
}

/// What this was measured on.
fn machine(dir: &Path) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown CPU", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let meminfo = read("/proc/meminfo");
    let kib = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    let gib = kib.unwrap_or(0u64).div_ceil(1 << 20);
    let filesystem = Command::new("stat").args(["-f", "-c", "%T"]).arg(dir).output();
    let filesystem = filesystem.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cores} cores of {model}, {gib} GiB, Linux {}, disks on {filesystem}", kernel.trim())
}
