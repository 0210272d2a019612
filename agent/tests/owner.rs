//! A volume on three whole agents with real files: what its owner promises while agents come and go.

#![allow(clippy::unwrap_used, reason = "a step that fails here fails the test")]

use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};
use torus_agent::device::{BlockDevice, IoErrorKind};
use torus_agent::metadata::{
    Embedded, NewVolume, VolumeInfo, create_volume, find_volume, init_cluster, join_ring, list_agents, resize_volume,
    ring_agent,
};
use torus_agent::owner::{Control, OpenVolume, OwnerConfig, OwnerError, fence_volume};
use torus_agent::process::{Agent, Config, told};
use torus_core::block::VolumeState;
use torus_core::format::Pieces;
use torus_core::ids::{BLOCK_SIZE, Epoch, Lba};
use torus_core::limits::EXTENT_BLOCKS_MIN;
use torus_core::log::recover::OpenError;
use torus_core::meta::MetadataStore;
use torus_core::meta::docs::{AckMode, Holder};
use torus_store::Fill;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Agents, and the runtime that their control sides and the owners' live on.
struct World {
    control: Runtime,
    store: Arc<dyn MetadataStore>,
    dir: tempfile::TempDir,
    agents: Vec<Option<Agent>>,
}

impl World {
    fn new(agents: usize) -> World {
        let control = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let store: Arc<dyn MetadataStore> = Arc::new(Embedded::in_memory());
        control.block_on(init_cluster(&*store, EXTENT_BLOCKS_MIN, 2)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut world = World { control, store, dir, agents: (0..agents).map(|_| None).collect() };
        for number in 0..agents {
            world.start(number);
        }
        let store = Arc::clone(&world.store);
        world.control.block_on(async {
            let agents: Vec<_> = list_agents(&*store).await.unwrap().iter().map(ring_agent).collect();
            join_ring(&*store, &agents, 2, torus_agent::metadata::Wish::Person).await.unwrap();
        });
        world
    }

    fn start(&mut self, number: usize) {
        let name = format!("n{number}");
        let config = Config {
            data_dir: Some(self.dir.path().join(&name)),
            domain: name.clone(),
            size_bytes: 128 << 20,
            fill: Fill::Reserve,
            buffered: true,
            port: 0,
            control_address: Some("127.0.0.1:0".into()),
            http_address: None,
            ..Config::new(Some(name))
        };
        let started = self.control.block_on(Agent::start(config, Arc::clone(&self.store)));
        self.agents[number] = Some(started.unwrap_or_else(|error| panic!("{}", told(&error))));
    }

    fn kill(&mut self, number: usize) {
        if let Some(agent) = self.agents[number].take() {
            self.control.block_on(agent.kill());
        }
    }

    fn volume(&self, name: &str, blocks: u64) -> VolumeInfo {
        let new = NewVolume {
            name: name.into(),
            size: Lba(blocks),
            replicas: 2,
            min_replicas: 1,
            ack_mode: AckMode::Durable,
        };
        self.control.block_on(async {
            create_volume(&*self.store, new).await.unwrap();
            find_volume(&*self.store, name).await.unwrap()
        })
    }

    fn control(&self) -> Control {
        Control::new(self.control.handle().clone(), Arc::clone(&self.store))
    }
}

/// Runs `test` on a thread of its own, as an owner is run.
fn data<T: Send + 'static, F: Future<Output = T>>(
    test: impl FnOnce() -> F + Send + 'static,
) -> std::thread::JoinHandle<T> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new()
            .block_on(&runtime, async move { timeout(Duration::from_secs(60), test()).await.expect("no hang") })
    })
}

fn content(block: u64, turn: u64) -> Bytes {
    let word = (block << 32 | turn).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    word.repeat(BLOCK_SIZE / 8).into()
}

async fn write(volume: &OpenVolume, block: u64, turn: u64) -> Result<(), torus_agent::device::IoError> {
    let piece: Pieces = [content(block, turn)].into_iter().collect();
    volume.device().write(block * BLOCK, piece, false).await
}

async fn check(volume: &OpenVolume, block: u64, turn: u64) {
    let read = volume.device().read(block * BLOCK, BLOCK_SIZE as u32).await.unwrap().concat();
    assert!(read == content(block, turn), "block {block} does not read as written in turn {turn}");
}

#[test]
fn what_is_written_reads_back_here_and_at_the_next_owner() {
    let world = World::new(3);
    let info = world.volume("v", 4096);
    let (control, again) = (world.control(), info.clone());
    data(move || async move {
        let volume = OpenVolume::open(control, &info, OwnerConfig::new()).await.unwrap();
        assert_eq!(volume.state(), VolumeState::Serving(Epoch(1)));
        assert_eq!(volume.device().info().size_bytes, 4096 * BLOCK);
        for block in 0..600 {
            write(&volume, block * 5, 1).await.unwrap();
        }
        let zeros = volume.device().read(BLOCK, BLOCK_SIZE as u32 * 2).await.unwrap().concat();
        assert!(zeros.iter().all(|byte| *byte == 0));
        volume.device().trim(5 * BLOCK, BLOCK, false).await.unwrap();
        volume.device().flush().await.unwrap();
        let status = volume.device().block_status(0, 10 * BLOCK).await.unwrap();
        assert_eq!(
            status.iter().map(|extent| (extent.len / BLOCK, extent.hole)).collect::<Vec<_>>(),
            [(1, false), (9, true)]
        );
        let stats = volume.stats().await.unwrap();
        assert_eq!((stats.counters.user_blocks, stats.mapped_blocks), (600, 599));
        let beyond = volume.device().read(4096 * BLOCK, BLOCK_SIZE as u32).await.unwrap_err();
        assert_eq!(beyond.kind, IoErrorKind::Invalid);
        volume.close().await.unwrap();
    })
    .join()
    .unwrap();
    let control = world.control();
    data(move || async move {
        let volume = OpenVolume::open(control, &again, OwnerConfig::new()).await.unwrap();
        assert_eq!(volume.state(), VolumeState::Serving(Epoch(2)));
        for block in (0..600).filter(|block| *block != 1) {
            check(&volume, block * 5, 1).await;
        }
        volume.close().await.unwrap();
    })
    .join()
    .unwrap();
}

#[test]
fn an_agent_that_dies_and_returns_costs_no_error_and_no_long_stall() {
    let mut world = World::new(3);
    let info = world.volume("v", 4096);
    let control = world.control();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let (progress, mut turns) = tokio::sync::watch::channel(0);
    let load = data(move || async move {
        let volume = OpenVolume::open(control, &info, OwnerConfig::new()).await.unwrap();
        let (mut turn, mut longest) = (0, Duration::ZERO);
        while !*stopped.borrow() {
            turn += 1;
            for block in 0..20 {
                let began = Instant::now();
                write(&volume, block, turn).await.unwrap();
                longest = longest.max(began.elapsed());
            }
            for block in 0..20 {
                check(&volume, block, turn).await;
            }
            progress.send_replace(turn);
        }
        volume.close().await.unwrap();
        longest
    });
    let mut goes_on = |world: &World| {
        let then = *turns.borrow() + 2;
        world.control.block_on(turns.wait_for(|turn| *turn >= then)).map(drop).expect("the owner goes on");
    };
    for number in [0, 1, 2, 0] {
        goes_on(&world);
        world.kill(number);
        goes_on(&world);
        world.start(number);
    }
    goes_on(&world);
    stop.send_replace(true);
    // Milliseconds on a quiet machine; a busy one must not fail this, but waits that add up would.
    let longest = load.join().unwrap();
    assert!(longest < Duration::from_secs(5), "stalled for {longest:?}");
}

/// It is on the agent's own thread, as what `--export` serves is, and it dies as a process with both would.
#[test]
fn an_owner_beside_an_agent_needs_no_other_thread_and_loses_nothing_when_both_die() {
    let mut world = World::new(3);
    let info = world.volume("v", 4096);
    let door = world.agents[0].as_ref().unwrap().door();
    let (control, again) = (Control { door: Some(door.clone()), ..world.control() }, info.clone());
    let (progress, mut turns) = tokio::sync::watch::channel(0);
    door.inside(move || async move {
        let volume = OpenVolume::open(control, &info, OwnerConfig::new()).await.unwrap();
        for turn in 1.. {
            for block in 0..20 {
                write(&volume, block, turn).await.unwrap();
                check(&volume, block, turn).await;
            }
            progress.send_replace(turn);
        }
    });
    let mut goes_on = |world: &World| {
        let then = *turns.borrow() + 2;
        world.control.block_on(async {
            let reached = timeout(Duration::from_secs(30), turns.wait_for(|turn| *turn >= then)).await;
            *reached.expect("no hang").expect("the owner goes on")
        })
    };
    goes_on(&world);
    world.kill(1);
    goes_on(&world);
    world.start(1);
    goes_on(&world);
    let acknowledged = goes_on(&world);
    world.kill(0);
    let control = world.control();
    let force = OwnerConfig { force: true, ..OwnerConfig::new() };
    data(move || async move {
        let volume = OpenVolume::open(control, &again, force).await.unwrap();
        for block in 0..20 {
            let read = volume.device().read(block * BLOCK, BLOCK_SIZE as u32).await.unwrap().concat();
            let turn = (acknowledged..acknowledged + 1_000).find(|turn| read == content(block, *turn));
            assert!(turn.is_some(), "block {block} is older than what was acknowledged");
        }
        volume.close().await.unwrap();
    })
    .join()
    .unwrap();
}

#[test]
fn with_all_agents_down_writes_wait_and_then_go_on() {
    let mut world = World::new(2);
    let info = world.volume("v", 1024);
    let control = world.control();
    let (phase, mut phases) = tokio::sync::watch::channel(0);
    let (done, mut is_done) = tokio::sync::watch::channel(0);
    let load = data(move || async move {
        let volume = OpenVolume::open(control, &info, OwnerConfig::new()).await.unwrap();
        write(&volume, 1, 1).await.unwrap();
        done.send_replace(1);
        phases.wait_for(|phase| *phase == 1).await.unwrap();
        let device = volume.device();
        let waiting = tokio::task::spawn_local(async move {
            let piece: Pieces = [content(1, 2)].into_iter().collect();
            device.write(BLOCK, piece, false).await
        });
        sleep(Duration::from_secs(3)).await;
        assert!(!waiting.is_finished(), "a write was answered with no agent up");
        done.send_replace(2);
        waiting.await.unwrap().unwrap();
        check(&volume, 1, 2).await;
        volume.close().await.unwrap();
    });
    let until = |world: &World, is_done: &mut tokio::sync::watch::Receiver<u32>, wanted: u32| {
        world.control.block_on(is_done.wait_for(|done| *done == wanted)).map(drop).expect("the owner goes on");
    };
    until(&world, &mut is_done, 1);
    world.kill(0);
    world.kill(1);
    phase.send_replace(1);
    until(&world, &mut is_done, 2);
    world.start(0);
    world.start(1);
    load.join().unwrap();
}

#[test]
fn a_second_owner_is_refused_by_name_or_takes_over_for_good() {
    let world = World::new(3);
    let info = world.volume("v", 1024);
    let control = world.control();
    data(move || async move {
        let mut first = OpenVolume::open(control.clone(), &info, OwnerConfig::new()).await.unwrap();
        write(&first, 3, 1).await.unwrap();
        let refused = OpenVolume::open(control.clone(), &info, OwnerConfig::new()).await.err().unwrap();
        assert!(matches!(&refused, OwnerError::Open(OpenError::Held { name, .. }) if name == "v"), "{refused}");
        write(&first, 4, 1).await.unwrap();
        let force = OwnerConfig { force: true, ..OwnerConfig::new() };
        let second = OpenVolume::open(control.clone(), &info, force).await.unwrap();
        check(&second, 3, 1).await;
        write(&second, 3, 2).await.unwrap();
        let late = write(&first, 3, 3).await.unwrap_err();
        assert_eq!(late.kind, IoErrorKind::Fenced);
        assert!(matches!(first.lost().await, OwnerError::Fenced { epoch: Epoch(2), .. }));
        assert_eq!(first.device().read(3 * BLOCK, BLOCK_SIZE as u32).await.unwrap_err().kind, IoErrorKind::Fenced);
        check(&second, 3, 2).await;
        check(&second, 4, 1).await;
        second.close().await.unwrap();
    })
    .join()
    .unwrap();
}

/// As the operator does for a dead node: nobody opens it, and yet whoever had it gets nothing acknowledged any more.
#[test]
fn a_volume_is_taken_from_its_owner_without_being_opened_and_the_next_one_finds_all_that_was_acknowledged() {
    let world = World::new(3);
    let info = world.volume("v", 4096);
    let (control, again, third) = (world.control(), info.clone(), info.clone());
    let (tell, told) = tokio::sync::oneshot::channel();
    let (taken, was_taken) = tokio::sync::oneshot::channel();
    let first = data(move || async move {
        let volume = OpenVolume::open(control, &info, OwnerConfig::new()).await.unwrap();
        for block in 0..50 {
            write(&volume, block, 1).await.unwrap();
        }
        tell.send(()).unwrap();
        was_taken.await.unwrap();
        let refused = write(&volume, 0, 2).await.unwrap_err();
        assert_eq!(refused.kind, IoErrorKind::Fenced, "{refused}");
    });
    let store = Arc::clone(&world.store);
    let (fenced, took) = world.control.block_on(async move {
        told.await.unwrap();
        let began = Instant::now();
        let holder = Holder { host: "fencer".into(), pid: 1, serves: "fenced: n1".into() };
        (fence_volume(store, &again, holder, Duration::from_secs(20)).await.unwrap(), began.elapsed())
    });
    assert_eq!(fenced.epoch, Epoch(2));
    // An agent whose disk stalls is not waited for longer than half a second once enough others have answered.
    let all = fenced.acknowledged == fenced.asked || took >= Duration::from_millis(500);
    assert!(fenced.asked >= 2 && fenced.acknowledged >= 1 && all, "{fenced:?} in {took:?}");
    taken.send(()).unwrap();
    first.join().unwrap();
    let control = world.control();
    data(move || async move {
        let config = OwnerConfig { force: true, ..OwnerConfig::new() };
        let volume = OpenVolume::open(control, &third, config).await.unwrap();
        assert_eq!(volume.state(), VolumeState::Serving(Epoch(3)));
        for block in 0..50 {
            check(&volume, block, 1).await;
        }
        volume.close().await.unwrap();
    })
    .join()
    .unwrap();
    let found = world.control.block_on(find_volume(&*world.store, "v")).unwrap();
    assert_eq!(found.used_blocks, Some(50), "what of it holds data is said when it is closed");
}

#[test]
fn an_open_volume_grows() {
    let world = World::new(2);
    let info = world.volume("v", 100);
    let (control, store, runtime) = (world.control(), Arc::clone(&world.store), world.control.handle().clone());
    data(move || async move {
        let volume = OpenVolume::open(control, &info, OwnerConfig::new()).await.unwrap();
        assert_eq!(write(&volume, 100, 1).await.unwrap_err().kind, IoErrorKind::Invalid);
        let id = info.id;
        runtime.spawn(async move { resize_volume(&*store, id, Lba(200)).await.map(drop).unwrap() }).await.unwrap();
        while volume.device().info().size_bytes < 200 * BLOCK {
            sleep(Duration::from_millis(5)).await;
        }
        write(&volume, 199, 1).await.unwrap();
        check(&volume, 199, 1).await;
        volume.close().await.unwrap();
    })
    .join()
    .unwrap();
}
