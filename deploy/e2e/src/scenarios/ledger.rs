//! A pod that writes numbers, one after the other, each synced before it is told: what was told must be there ever after.

use super::World;
use super::world::Pod;
use crate::process::{Process, until};
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::time::Duration;

/// Writes until it fails. A number is printed after its line is on the volume.
const SCRIPT: &str = "i=0; while :; do i=$((i+1))
    echo $i | dd of=/data/ledger oflag=append conv=notrunc,fsync 2>/dev/null || { echo failed; exit 1; }
    echo $i; done";

/// A ledger that is being written.
#[derive(Debug)]
pub struct Ledger {
    told: PathBuf,
    process: Process,
}

impl Ledger {
    /// Starts writing in a pod that has a volume at `/data`.
    pub fn start(world: &World, pod: &str) -> Result<Self> {
        let mut command = world.kubectl().command();
        command.args(["-n", world.namespace(), "exec", pod, "--", "sh", "-c", SCRIPT]);
        let process = world.cluster().run().start(&format!("ledger-{}", world.namespace()), command)?;
        let ledger = Self { told: process.log().to_path_buf(), process };
        ledger.until_further(1, Duration::from_secs(60))?;
        Ok(ledger)
    }

    /// The highest number that was told. Says so when writing has failed.
    pub fn told(&self) -> Result<u64> {
        let text = std::fs::read_to_string(&self.told).context("cannot read what the ledger told")?;
        let failed = text.lines().any(|line| line == "failed");
        ensure!(!failed, "a write failed in the pod: {}", self.process.log_tail());
        // A line without an end may be half a number.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        Ok(whole.lines().rev().find_map(|line| line.parse().ok()).unwrap_or(0))
    }

    /// Waits until `more` numbers were told than now.
    pub fn until_further(&self, more: u64, limit: Duration) -> Result<()> {
        let target = self.told()? + more;
        until("more is written", limit, || {
            std::thread::sleep(Duration::from_millis(100));
            Ok(self.told()? >= target)
        })
    }

    /// Ends writing; the highest number told.
    pub fn end(mut self) -> Result<u64> {
        self.process.kill()?;
        self.told()
    }
}

/// Whether all numbers up to `last` are in the ledger, once each and in order, as a pod sees it that has the volume at `/data`.
pub fn check(world: &World, pod: &str, last: u64) -> Result<()> {
    let found = world.sh(pod, "cat /data/ledger")?;
    let numbers: Vec<u64> = found.lines().filter_map(|line| line.parse().ok()).collect();
    let expected = (1..).take(numbers.len());
    ensure!(numbers.iter().copied().eq(expected), "the ledger has gaps: {numbers:?}");
    ensure!(numbers.len() as u64 >= last, "{last} was told, but the ledger ends with {:?}", numbers.last());
    Ok(())
}

/// A pod with a claim of its own that writes a ledger; the node it is on.
pub fn writer(world: &World, name: &str) -> Result<(Ledger, String)> {
    world.claim(name, "1Gi", &serde_json::json!({}))?;
    let node = world.run_pod(&Pod::new(name, name))?;
    Ok((Ledger::start(world, name)?, node))
}
