//! What it costs to overwrite for ever in a pool that is nearly full.

use super::{Story, cluster, told};
use anyhow::{Result, ensure};
use std::time::Duration;
use torus_e2e::cluster::{Options, Owner};
use torus_e2e::fio::overwrite;
use torus_e2e::stalls::measured;

/// Extents are small, so that there are as many as in a real pool: of 375 the volume's blocks take 262.
const EXTENT: &str = "4MiB";
/// Part of the pool that the volume takes.
const FULL: f64 = 0.7;
/// How often it is overwritten.
const TIMES: u64 = 10;
/// Bytes written to each copy for each byte that a client writes.
const AMPLIFICATION_MAX: f64 = 3.0;
/// Longest that one write may take. They wait for collection, but are never held up for long at a time.
const STALL_MAX: Duration = Duration::from_secs(2);

/// Bytes written to one copy, and bytes that clients wrote.
fn written(owner: &Owner) -> Result<(f64, f64)> {
    let metric = |name: &str| owner.metric(name);
    let all = metric("torus_volume_log_bytes_total")? + metric("torus_volume_checkpoint_bytes_total")?;
    Ok((all, metric("torus_volume_user_bytes_total")?))
}

#[test]
fn overwriting_ten_times_costs_no_more_than_three_writes_each() -> Result<()> {
    let story = Story::begin("a volume that takes 70 % of its pool is overwritten ten times at random");
    let options = Options { disk_size: "1GiB".into(), extent_size: EXTENT.into(), ..Options::default() };
    let cluster = cluster(options)?;
    // As much as the pool holds twice, in whole MiB.
    cluster.torusctl(["volume", "create", "probe", "1MiB", "--replicas", "2"])?;
    let probe = cluster.serve("probe", "probe", false)?;
    let slots = probe.metric("torus_volume_pool_slots_count")?;
    probe.stop()?;
    cluster.torusctl(["volume", "delete", "probe", "--yes"])?;
    let size = (slots * 4.0 / 2.0 * FULL) as u64;
    cluster.torusctl(["volume", "create", "db", &format!("{size}MiB"), "--replicas", "2"])?;
    let owner = cluster.serve("owner", "db", false)?;
    let bytes = size << 20;
    story.tell(format_args!("{slots} slots of {EXTENT}, a volume of {size} MiB"));

    let filled = overwrite(&owner.uri(), cluster.path(), "fill", "write", bytes, 1)?.finish()?;
    story.tell(format_args!("filled in order: {}", told(&filled)));
    let before = written(&owner)?;
    let mut longest = Duration::ZERO;
    for round in 1..=TIMES {
        let stall = measured(cluster.path(), STALL_MAX, |again| {
            let name = format!("overwrite-{round}-{again}");
            let report = overwrite(&owner.uri(), cluster.path(), &name, "randwrite", bytes, 1)?.finish()?;
            let (now, free) = (written(&owner)?, owner.metric("torus_volume_pool_slots_free_count")?);
            let ratio = (now.0 - before.0) / (now.1 - before.1);
            story.tell(format_args!("{round}: {}, amplification {ratio:.2} so far, {free} slots free", told(&report)));
            Ok(report.longest)
        })?;
        longest = longest.max(stall);
    }
    let after = written(&owner)?;
    let ratio = (after.0 - before.0) / (after.1 - before.1);
    story.tell(format_args!("amplification {ratio:.2}, longest stall {longest:.0?}"));
    ensure!(after.1 - before.1 >= 0.99 * (bytes * TIMES) as f64, "less was written than was meant to be");
    ensure!(ratio <= AMPLIFICATION_MAX, "each byte was written {ratio:.2} times");
    ensure!(longest <= STALL_MAX, "a write took {longest:.0?}");

    // Nothing is needed any more: all but what is open, and the checkpoint, comes back.
    let qemu = format!("discard 0 {bytes}");
    let discard =
        std::process::Command::new("qemu-io").args(["-f", "raw", "-d", "unmap", "-c", &qemu]).arg(owner.uri()).output();
    let discard = discard.map_err(anyhow::Error::from)?;
    ensure!(discard.status.success(), "qemu-io: {}", String::from_utf8_lossy(&discard.stderr));
    let emptied = || Ok(owner.metric("torus_volume_pool_slots_free_count")? >= slots - 40.0);
    torus_e2e::process::until("the space of what was trimmed is back", Duration::from_secs(60), emptied)?;
    story.tell("trimmed: its space is back");
    owner.stop()
}
