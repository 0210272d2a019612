//! Agents that die and hang, and a metadata store that is gone, under fio with checksums.

use super::{LOAD, STALL_MAX, Story, cluster, told};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::thread;
use std::time::Duration;
use torus_e2e::cluster::{Cluster, Options, Owner};
use torus_e2e::fio::Load;
use torus_e2e::stalls::measured;
use torus_e2e::writer::{Lane, Writing};

/// Where the probe writes: behind what fio does, in blocks.
const PROBE_AT: u64 = (3 << 30) / 4096;

#[test]
fn fio_sees_no_error_while_agents_and_etcd_fail() -> Result<()> {
    let mut cluster = cluster(Options { disk_size: "6GiB".into(), ..Options::default() })?;
    cluster.torusctl(["volume", "create", "db", "4GiB", "--replicas", "2"])?;
    let owner = cluster.serve("owner", "db", false)?;

    let directory = cluster.path().to_owned();
    let stall = measured(&directory, STALL_MAX, |again| {
        let seed = 1 + 3 * u64::from(again);
        under_load("an agent is killed with -9 and restarted, five times", &owner, &mut cluster, seed, killed)
    })?;
    ensure!(stall < STALL_MAX, "I/O stalled for {stall:.0?}; at most {STALL_MAX:?} is allowed");
    under_load("an agent is stopped for 20 s", &owner, &mut cluster, 2, stopped)?;
    under_load("etcd is killed and away for 20 s", &owner, &mut cluster, 3, etcd_killed)?;
    owner.stop()
}

/// Writes with fio while `fault` happens, then verifies. The longest that the probe had to wait for a write.
fn under_load(
    what: &str,
    owner: &Owner,
    cluster: &mut Cluster,
    seed: u64,
    fault: fn(&Story, &mut Cluster) -> Result<()>,
) -> Result<Duration> {
    let story = Story::begin(what);
    let load = Load { seed, ..LOAD };
    let probe = Writing::start(owner, [Lane::probe(seed, PROBE_AT + seed * 64)])?;
    let fio = load.write(&owner.uri(), cluster.path())?;
    story.wait_until(2.0);
    fault(&story, cluster)?;
    let written = fio.finish()?;
    story.tell(format_args!("fio wrote: {}", told(&written)));
    let (mut lanes, seen) = probe.finish()?;
    story.tell(format_args!(
        "a write every 4 ms beside it: {} of them, the longest {:.0?} at {:.2} s",
        seen.writes,
        seen.longest,
        seen.longest_at.as_secs_f64()
    ));
    let read = load.verify(&owner.uri(), cluster.path())?;
    story.tell(format_args!("fio verified: {}", told(&read)));
    lanes.iter_mut().try_for_each(|lane| lane.check(owner, true).map(drop))?;
    Ok(seen.longest)
}

fn killed(story: &Story, cluster: &mut Cluster) -> Result<()> {
    for kill in 0..5 {
        let agent = kill % cluster.agents.len();
        story.wait_until(2.0 + 5.5 * kill as f64);
        cluster.agents[agent].kill()?;
        story.tell(format_args!("agent {agent} killed"));
        thread::sleep(Duration::from_secs(1));
        cluster.restart_agent(agent)?;
        story.tell(format_args!("agent {agent} ready again"));
    }
    Ok(())
}

fn stopped(story: &Story, cluster: &mut Cluster) -> Result<()> {
    cluster.agents[1].halt()?;
    story.tell("agent 1 stopped");
    thread::sleep(Duration::from_secs(20));
    cluster.agents[1].signal(Signal::SIGCONT)?;
    story.tell("agent 1 goes on");
    cluster.until_ready(1)
}

fn etcd_killed(story: &Story, cluster: &mut Cluster) -> Result<()> {
    cluster.etcd.kill()?;
    story.tell("etcd killed");
    thread::sleep(Duration::from_secs(20));
    cluster.etcd.restart().context("etcd does not start again")?;
    story.tell("etcd runs again");
    Ok(())
}
