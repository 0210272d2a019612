//! Owners that die and sleep, agents that are all dead or cut off: what was acknowledged is there, and nothing else is.

use super::{Story, cluster};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::thread;
use std::time::{Duration, Instant};
use torus_e2e::cluster::{Cluster, Options, Owner};
use torus_e2e::nbd::Nbd;
use torus_e2e::process::until;
use torus_e2e::writer::{Lane, Writing};

const PATIENCE: Duration = Duration::from_secs(60);
/// How long answers of agents that are dead may be on their way on a machine that stalls.
const ON_THE_WAY: Duration = Duration::from_secs(20);
const GIB: u64 = 1 << 30;

#[test]
fn what_was_flushed_is_exact_whoever_dies() -> Result<()> {
    let options = Options { disk_size: "6GiB".into(), proxies: true, ..Options::default() };
    let mut cluster = cluster(options)?;
    cluster.torusctl(["volume", "create", "db", "4GiB", "--replicas", "2"])?;
    cluster.torusctl(["volume", "create", "fast", "4GiB", "--replicas", "2", "--ack-mode", "received"])?;
    killed(&mut cluster, "db", true)?;
    killed(&mut cluster, "fast", false)?;
    asleep(&cluster)?;
    all_agents_dead(&mut cluster)?;
    cut_off(&cluster)
}

/// Four lanes that lie apart, and apart from those of other runs.
fn lanes(run: u64) -> Vec<Lane> {
    (0..4).map(|lane| Lane::new(run * 16 + lane, lane * (GIB / 4096) + run * 4096, 4096)).collect()
}

fn killed(cluster: &mut Cluster, volume: &str, durable: bool) -> Result<()> {
    let mode = if durable { "durable" } else { "received" };
    let story = Story::begin(&format!("the owner is killed with -9 and another takes over (ack mode {mode})"));
    let mut lanes = lanes(if durable { 1 } else { 2 });
    let mut owner = cluster.serve(&format!("{volume}-0"), volume, false)?;
    for round in 1..=3 {
        let writing = Writing::start(&owner, lanes)?;
        until("a good deal is written", PATIENCE, || Ok(writing.writes() > 1500))?;
        if round == 2 {
            cluster.agents[1].kill()?;
            story.tell("agent 1 killed");
        }
        owner.process.kill()?;
        story.tell(format_args!("owner killed after {} writes", writing.writes()));
        let (left, ended) = writing.stop();
        lanes = left;
        let flushes: u64 = ended.iter().map(|(seen, _)| seen.flushes).sum();
        let asked = Instant::now();
        owner = cluster.serve(&format!("{volume}-{round}"), volume, true)?;
        story.tell(format_args!("the next one serves after {:.2?}", asked.elapsed()));
        let (mut blocks, mut open) = (0, 0);
        for lane in &mut lanes {
            let (checked, undecided) = lane.check(&owner, durable)?;
            (blocks, open) = (blocks + checked, open + undecided);
        }
        story.tell(format_args!(
            "{blocks} blocks checked after {flushes} flushes: all exact, {open} of them with a write that had no answer"
        ));
        if round == 2 {
            cluster.restart_agent(1)?;
        }
    }
    owner.stop()?;
    let last = cluster.serve(&format!("{volume}-last"), volume, false)?;
    lanes.iter_mut().try_for_each(|lane| lane.check(&last, durable).map(drop))?;
    story.tell("the same after an orderly stop");
    last.stop()
}

/// One block of one byte.
fn block(byte: u8) -> Vec<u8> {
    vec![byte; 4096]
}

fn connect(owner: &Owner) -> Result<Nbd> {
    Nbd::connect(owner.socket(), owner.volume(), PATIENCE).context("cannot connect")
}

fn asleep(cluster: &Cluster) -> Result<()> {
    let story = Story::begin("an owner is stopped, its volume taken over and written, and the owner goes on");
    cluster.torusctl(["volume", "create", "nap", "64MiB"])?;
    let mut old = cluster.serve("sleeper", "nap", false)?;
    let (mut writer, mut reader, mut idle) = (connect(&old)?, connect(&old)?, connect(&old)?);
    writer.write(0, &block(1))?;
    writer.write(4096, &block(1))?;
    let mut byte = block(0);
    reader.read(0, &mut byte)?;
    ensure!(byte == block(1), "what was written is not read");

    old.process.halt()?;
    story.tell("owner stopped");
    // They wait in its sockets.
    writer.ask_write(4096, &block(2))?;
    reader.ask_read(0, 4096)?;
    let new = cluster.serve("awake", "nap", true)?;
    story.tell("another has taken over");
    let mut client = connect(&new)?;
    client.write(0, &block(3))?;
    client.flush()?;

    old.process.signal(Signal::SIGCONT)?;
    story.tell("owner goes on");
    ensure!(writer.answer(&mut []).is_err(), "the old owner acknowledged a write");
    ensure!(reader.answer(&mut byte).is_err(), "the old owner served a read: {:?}", &byte[..4]);
    ensure!(idle.read(0, &mut byte).is_err(), "the old owner served a new read: {:?}", &byte[..4]);
    ensure!(
        connect(&old).and_then(|mut late| Ok(late.read(0, &mut byte)?)).is_err(),
        "the old owner serves new clients"
    );
    let status = old.process.wait(PATIENCE)?;
    let said = old.process.log_tail();
    ensure!(status.code() == Some(3) && said.contains("taken over"), "the old owner ended with {status}: {said}");
    story.tell("it acknowledged nothing, served nothing, and ended with exit code 3, saying why");
    for (offset, expected) in [(0, 3), (4096, 1)] {
        client.read(offset, &mut byte)?;
        ensure!(byte == block(expected), "byte {offset} is {} and not {expected}", byte[0]);
    }
    new.stop()
}

fn all_agents_dead(cluster: &mut Cluster) -> Result<()> {
    let story = Story::begin("all agents are killed, and come back");
    let owner = cluster.serve("patient", "db", false)?;
    let writing = Writing::start(&owner, lanes(3))?;
    until("something is written", PATIENCE, || Ok(writing.writes() > 500))?;
    for agent in &mut cluster.agents {
        agent.kill()?;
    }
    // Answers that had come before are on their way.
    let (mut before, mut since) = (writing.writes(), Instant::now());
    until("the last of them have come", ON_THE_WAY, || {
        let writes = writing.writes();
        if writes != before {
            (before, since) = (writes, Instant::now());
        }
        Ok(since.elapsed() >= Duration::from_millis(500))
    })?;
    story.tell(format_args!("all agents dead after {before} writes"));
    thread::sleep(Duration::from_secs(5));
    ensure!(writing.writes() == before, "{} writes were acknowledged by nobody", writing.writes() - before);
    story.tell("nothing was acknowledged for 5 s");
    for agent in 0..cluster.agents.len() {
        cluster.start_agent(agent)?;
    }
    let asked = Instant::now();
    until("writes go on", PATIENCE, || Ok(writing.writes() > before + 100))?;
    story.tell(format_args!("writes go on {:.2?} after the agents were started", asked.elapsed()));
    let (mut lanes, seen) = writing.finish()?;
    lanes.iter_mut().try_for_each(|lane| lane.check(&owner, true).map(drop))?;
    story.tell(format_args!("{} writes, no error, all exact", seen.writes));
    for agent in 0..cluster.agents.len() {
        cluster.until_ready(agent)?;
    }
    owner.stop()
}

fn cut_off(cluster: &Cluster) -> Result<()> {
    let story = Story::begin("the owner is cut off from one agent for 10 s");
    let owner = cluster.serve("cut", "db", false)?;
    let mut all = lanes(4);
    all.push(Lane::probe(99, 3 * GIB / 4096 + 100_000));
    let writing = Writing::start(&owner, all)?;
    until("something is written", PATIENCE, || Ok(writing.writes() > 500))?;
    cluster.proxies[1].cut(true);
    story.tell("cut off from agent 1");
    thread::sleep(Duration::from_secs(5));
    let before = writing.writes();
    thread::sleep(Duration::from_secs(5));
    let during = writing.writes() - before;
    cluster.proxies[1].cut(false);
    story.tell(format_args!("joined again; {during} writes in the last 5 s"));
    ensure!(during > 100, "hardly anything was written without that agent");
    thread::sleep(Duration::from_secs(3));
    let (mut lanes, seen) = writing.finish()?;
    ensure!(seen.longest < Duration::from_secs(5), "I/O stalled for {:.2?}", seen.longest);
    lanes.iter_mut().try_for_each(|lane| lane.check(&owner, true).map(drop))?;
    story.tell(format_args!("{} writes, no error, all exact; the longest took {:.0?}", seen.writes, seen.longest));
    owner.stop()
}
