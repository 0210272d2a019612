//! `torusctl demo`: what Torus does, on one machine, in a minute.
//!
//! Three agents with real files and an embedded metadata store, owners on threads of their own, and the load through NBD,
//! as any program would make it. Every step checks what it claims; `--once` ends with exit code 0 only if all held.

mod client;
mod ledger;
mod load;
mod mounted;
mod world;

use crate::failure::{Failure, Kind};
use crate::output::Printer;
use client::Client;
use ledger::Ledger;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde::Serialize;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use torus_core::ids::BLOCK_SIZE;
use world::{Owner, REPLICAS, World};

const AGENTS: usize = 3;
const VOLUME: &str = "demo";
const VOLUME_BYTES: u64 = 1 << 30;
/// Bytes that are written and checked first.
const WRITTEN_BYTES: u64 = 256 << 20;
/// Bytes of one request then.
const REQUEST_BYTES: usize = 1 << 20;
/// Requests in flight then.
const REQUESTS: usize = 8;
/// The agent that is killed.
const VICTIM: usize = 1;
/// How long there is load before that.
const LOAD_BEFORE: Duration = Duration::from_millis(800);
/// How long there is load after everything is whole again.
const LOAD_AFTER: Duration = Duration::from_millis(500);
/// How long everything may take to be whole again.
const HEALTHY: Duration = Duration::from_secs(40);
/// How often the owner is asked.
const POLL: Duration = Duration::from_millis(10);
/// How long an owner that was fenced may take to say so.
const REFUSAL: Duration = Duration::from_secs(10);

/// How to run it.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// End when all is shown, instead of serving the volume until ctrl-c.
    #[arg(long)]
    once: bool,
    /// Keep files below this directory [default: the system's temporary directory].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Leave the files there.
    #[arg(long)]
    keep: bool,
    /// As root: also make a filesystem on a volume, mount it, and kill an agent under it.
    #[arg(long)]
    mount: bool,
}

/// What was seen.
#[derive(Serialize, Default)]
struct Seen {
    agents: usize,
    replicas: u8,
    written_bytes: u64,
    write_bytes_per_s: f64,
    writes_while_an_agent_died: u64,
    longest_stall_ms: f64,
    extents_short_of_a_copy: u64,
    healthy_after_s: f64,
    epochs: [u64; 2],
    fenced_owner_said: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    mounted: Option<mounted::Seen>,
    seconds: f64,
}

/// Runs it.
pub fn run(args: &Args, printer: Printer) -> Result<(), Failure> {
    if args.mount && !nix::unistd::geteuid().is_root() {
        let sentence = "mounting a filesystem takes root";
        return Err(Failure::failed_as(Kind::Refused, sentence).next("Everything else the demo shows without --mount."));
    }
    let base = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let failed = |error: &io::Error| Failure::because(format!("cannot make a directory in {}", base.display()), error);
    let dir = tempfile::Builder::new().prefix("torus-demo-").tempdir_in(&base).map_err(|error| failed(&error))?;
    let path = dir.path().to_owned();
    if args.keep {
        let _kept = dir.keep();
        show(args, &path, printer)
    } else {
        show(args, &path, printer)
    }
}

fn show(args: &Args, dir: &Path, printer: Printer) -> Result<(), Failure> {
    let started = Instant::now();
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::because("cannot start", &error))?;
    let mut seen = Seen { agents: AGENTS, replicas: REPLICAS, ..Seen::default() };
    let mut ledger = Ledger::new(rand::random(), (VOLUME_BYTES as usize) / BLOCK_SIZE);
    let say = |line: String| printer.remark(&line);

    let mut world = World::start(dir, AGENTS)?;
    say(format!("{AGENTS} agents up (embedded metadata, {})   {}, replicas {REPLICAS}", dir.display(), world.ring()?))?;
    let volume = world.volume(VOLUME, VOLUME_BYTES)?;
    let socket = dir.join("nbd.sock");
    let owner = world.own(&volume, &socket, false)?;
    let client = connect(&runtime, &socket)?;
    say(format!("volume {VOLUME}  {}  nbd+unix:///{VOLUME}?socket={}", printer.size(VOLUME_BYTES), socket.display()))?;

    let writing = Instant::now();
    runtime.block_on(fill(&client, &mut ledger))?;
    seen.written_bytes = WRITTEN_BYTES;
    seen.write_bytes_per_s = WRITTEN_BYTES as f64 / writing.elapsed().as_secs_f64();
    runtime.block_on(check(&client, &ledger, WRITTEN_BYTES))?;
    let speed = printer.size(seen.write_bytes_per_s as u64);
    say(format!("writing {} and checking every block ... ok   {speed}/s", printer.size(WRITTEN_BYTES)))?;

    let (killed, healed) = under_load(&runtime, &client, &mut ledger, &mut world, &owner)?;
    seen.writes_while_an_agent_died = killed.writes;
    seen.longest_stall_ms = killed.stall.as_secs_f64() * 1e3;
    seen.extents_short_of_a_copy = healed.extents;
    seen.healthy_after_s = healed.after.as_secs_f64();
    say(format!(
        "killing agent {} while writing ... no I/O error in {} writes, longest stall {:.0} ms",
        VICTIM + 1,
        killed.writes,
        seen.longest_stall_ms
    ))?;
    say(format!(
        "{} extents were left with 1/{REPLICAS} copies; re-replicated without that agent {:.1} s after its death",
        healed.extents, seen.healthy_after_s
    ))?;
    world.start_agent(VICTIM)?;

    let second_socket = dir.join("nbd-2.sock");
    let second = world.own(&volume, &second_socket, true)?;
    let new_client = connect(&runtime, &second_socket)?;
    seen.epochs = [owner.epoch.0, second.epoch.0];
    seen.fenced_owner_said = runtime.block_on(refused(&client, &ledger, owner))?;
    runtime.block_on(check(&new_client, &ledger, VOLUME_BYTES))?;
    say(format!(
        "taken over by a second owner (epoch {} → {}): the first one acknowledges nothing more, all {} read as written",
        seen.epochs[0],
        seen.epochs[1],
        printer.size(VOLUME_BYTES)
    ))?;
    let mounted = match args.mount {
        true => {
            let (mounted, files) = mounted::show(&runtime, &mut world, dir, &say)?;
            seen.mounted = Some(files);
            Some(mounted)
        }
        false => None,
    };
    runtime.block_on(until_healthy(&second))?;
    seen.seconds = started.elapsed().as_secs_f64();
    printer.done(&format!("healthy, {:.1} s in all", seen.seconds), &seen)?;

    if !args.once {
        say(format!(
            "try: fio --name=t --ioengine=nbd --uri='nbd+unix:///{VOLUME}?socket={}' --rw=randwrite --bs=4k --iodepth=32 --size=256m --time_based --runtime=10     ctrl-c cleans up",
            second_socket.display()
        ))?;
        runtime
            .block_on(tokio::signal::ctrl_c())
            .map_err(|error| Failure::because("cannot wait for ctrl-c", &error))?;
    }
    mounted.map_or(Ok(()), mounted::Mounted::close)?;
    second.close()
}

fn connect(runtime: &Runtime, socket: &Path) -> Result<Client, Failure> {
    let connected = runtime.block_on(Client::connect(socket, VOLUME));
    connected.map_err(|error| Failure::because(format!("cannot connect to {}", socket.display()), &error))
}

/// Writes the first part of the volume, several requests at a time, and flushes.
async fn fill(client: &Client, ledger: &mut Ledger) -> Result<(), Failure> {
    let blocks = REQUEST_BYTES / BLOCK_SIZE;
    let failed = |error| Failure::because("writing failed", &error);
    for batch in (0..WRITTEN_BYTES).step_by(REQUEST_BYTES * REQUESTS) {
        let offsets = (batch..WRITTEN_BYTES).step_by(REQUEST_BYTES).take(REQUESTS);
        let writes = offsets.clone().map(|offset| {
            let data = ledger.next(offset / BLOCK_SIZE as u64, blocks);
            async move { client.write(offset, &data).await }
        });
        futures::future::try_join_all(writes).await.map_err(failed)?;
        offsets.for_each(|offset| ledger.written(offset / BLOCK_SIZE as u64, blocks));
    }
    client.flush().await.map_err(failed)
}

/// Reads the first `bytes` of the volume and compares every block.
async fn check(client: &Client, ledger: &Ledger, bytes: u64) -> Result<(), Failure> {
    for batch in (0..bytes).step_by(REQUEST_BYTES * REQUESTS) {
        let offsets = (batch..bytes).step_by(REQUEST_BYTES).take(REQUESTS);
        let reads = offsets.clone().map(|offset| client.read(offset, REQUEST_BYTES as u32));
        let read = futures::future::try_join_all(reads).await;
        let read = read.map_err(|error| Failure::because("reading failed", &error))?;
        for (offset, data) in offsets.zip(read) {
            let right = ledger.check(offset / BLOCK_SIZE as u64, &data);
            right.map_err(|wrong| Failure::because("the volume does not read as it was written", &wrong))?;
        }
    }
    Ok(())
}

/// What became of the copies of an agent that died.
struct Healed {
    /// Extents that were short of a copy, at most.
    extents: u64,
    /// How long after its death none was any more.
    after: Duration,
}

/// Kills an agent under load, which goes on until every extent has all its copies again.
fn under_load(
    runtime: &Runtime,
    client: &Client,
    ledger: &mut Ledger,
    world: &mut World,
    owner: &Owner,
) -> Result<(load::Loaded, Healed), Failure> {
    let (stop, stopped) = oneshot::channel::<()>();
    let (dead, died) = oneshot::channel();
    let mut random = SmallRng::from_os_rng();
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(LOAD_BEFORE);
            world.kill_agent(VICTIM);
            // Nobody listens any more if the load has failed.
            let _ = dead.send(Instant::now());
        });
        runtime.block_on(async {
            let healing = async {
                let at = died.await.map_err(|_| Failure::failed("the agent could not be killed"))?;
                let healed = heal(owner, at).await;
                sleep(LOAD_AFTER).await;
                drop(stop);
                healed
            };
            let load = load::run(client, ledger, &mut random, async {
                // Ends when the other side is dropped.
                let _ = stopped.await;
            });
            let load = async {
                load.await.map_err(|error| Failure::because("a write failed while an agent was killed", &error))
            };
            tokio::try_join!(load, healing)
        })
    })
}

/// Waits until the owner misses the copies of an agent that died at `at`, and then until it has made others.
async fn heal(owner: &Owner, at: Instant) -> Result<Healed, Failure> {
    let mut extents = 0;
    let healing = async {
        loop {
            match short_of_copies(owner).await? {
                0 if extents > 0 => return Ok(Healed { extents, after: at.elapsed() }),
                short => extents = extents.max(short),
            }
            sleep(POLL).await;
        }
    };
    let healed = timeout(HEALTHY, healing).await;
    healed.unwrap_or_else(|_| {
        Err(Failure::failed(match extents {
            0 => format!("the death of an agent was not noticed within {HEALTHY:?}"),
            _ => format!("some extents still have too few copies after {HEALTHY:?}"),
        }))
    })
}

/// Waits until every extent has all its copies.
async fn until_healthy(owner: &Owner) -> Result<(), Failure> {
    let healthy = async {
        while short_of_copies(owner).await? > 0 {
            sleep(POLL).await;
        }
        Ok(())
    };
    let late = |_| Failure::failed(format!("some extents still have too few copies after {HEALTHY:?}"));
    timeout(HEALTHY, healthy).await.map_err(late)?
}

async fn short_of_copies(owner: &Owner) -> Result<u64, Failure> {
    let stats = owner.stats().await.ok_or_else(|| Failure::failed("the owner ended"))?;
    Ok(stats.under_replicated)
}

/// Has the first owner's clients find out that it is fenced: no write and no read of theirs may succeed.
async fn refused(client: &Client, ledger: &Ledger, owner: Owner) -> Result<String, Failure> {
    let data = ledger.next(0, 1);
    let (written, read) =
        tokio::join!(timeout(REFUSAL, client.write(0, &data)), timeout(REFUSAL, client.read(0, BLOCK_SIZE as u32)));
    if matches!(written, Ok(Ok(()))) || matches!(read, Ok(Ok(_))) {
        return Err(Failure::failed("an owner that was fenced still acknowledged I/O"));
    }
    let said = tokio::task::spawn_blocking(move || owner.wait_lost());
    let said = timeout(REFUSAL, said).await.ok().and_then(Result::ok).flatten();
    said.map(|failure| failure.to_string()).ok_or_else(|| Failure::failed("an owner that was fenced did not notice"))
}
