//! What it costs to do nothing.

use super::{Story, cluster};
use anyhow::{Context, Result, ensure};
use std::thread;
use std::time::{Duration, Instant};
use torus_e2e::cluster::Options;
use torus_e2e::nbd::Nbd;
use torus_e2e::usage::Usage;

const TIB: u64 = 1 << 40;
/// How long is measured, at least: a tick of the kernel's count is 0.017 % of it.
const TIME: Duration = Duration::from_secs(60);
/// Part of a core that an idle agent may use.
const CPU_MAX: f64 = 0.002;
/// Memory that an idle agent may take.
const RSS_MAX: u64 = 64 << 20;
/// How long opening an empty volume may take, the start of a process included.
const OPEN_MAX: Duration = Duration::from_secs(1);

#[test]
fn an_idle_agent_costs_nothing_and_a_tebibyte_opens_at_once() -> Result<()> {
    let cluster = cluster(Options { disk_size: "2GiB".into(), ..Options::default() })?;
    let story = Story::begin("an empty volume of 1 TiB is opened");
    cluster.torusctl(["volume", "create", "big", "1TiB"])?;
    let asked = Instant::now();
    let owner = cluster.serve("owner", "big", false)?;
    let opened = asked.elapsed();
    story.tell(format_args!("served {opened:.0?} after its process was started"));
    let mut client = Nbd::connect(owner.socket(), "big", TIME).context("cannot connect")?;
    let (mut block, written) = (vec![1; 4096], vec![7; 4096]);
    client.write(TIB - 4096, &written)?;
    client.read(TIB / 2, &mut block)?;
    ensure!(block.iter().all(|byte| *byte == 0), "what was never written is not zeros");
    client.read(TIB - 4096, &mut block)?;
    ensure!(block == written, "its last block is not what was written");
    ensure!(opened < OPEN_MAX, "opening took {opened:.0?}");

    let story = Story::begin("agents with nothing to do");
    // What opening the volume has begun is over.
    thread::sleep(Duration::from_secs(3));
    let agents = || cluster.agents.iter().map(|agent| agent.usage()).collect::<Result<Vec<Usage>>>();
    let (before, owner_before) = (agents()?, owner.process.usage()?);
    let began = Instant::now();
    thread::sleep(TIME);
    // A machine that stalls wakes us late.
    let measured = began.elapsed();
    let (after, owner_after) = (agents()?, owner.process.usage()?);
    let part = |used: Duration| used.as_secs_f64() / measured.as_secs_f64();
    for (index, (before, after)) in before.into_iter().zip(after).enumerate() {
        let (cpu, mib) = (part(after - before), after.rss_bytes >> 20);
        story.tell(format_args!("agent {index}: {:.2} % of a core, {mib} MiB", cpu * 100.0));
        ensure!(cpu < CPU_MAX, "an idle agent uses {:.2} % of a core", cpu * 100.0);
        ensure!(after.rss_bytes < RSS_MAX, "an idle agent takes {mib} MiB");
    }
    let (cpu, mib) = (part(owner_after - owner_before), owner_after.rss_bytes >> 20);
    story.tell(format_args!("owner: {:.2} % of a core, {mib} MiB", cpu * 100.0));
    owner.stop()
}
