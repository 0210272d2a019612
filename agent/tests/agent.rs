//! A whole agent on a real file, spoken to over TDP: what an owner may rely on, and what is refused.

#![allow(clippy::unwrap_used, reason = "a step that fails here fails the test")]

use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};
use torus_agent::metadata::{Embedded, change_ring, init_cluster, load_cluster, load_ring};
use torus_agent::process::{Agent, Config, RunError, StartError, exit_code, told};
use torus_agent::tdp::{Aligned, PeerEvent, Peers};
use torus_core::format::{Frame, FrameHeader, Record, Stream, crc};
use torus_core::ids::{BLOCK_SIZE, Blocks, Epoch, ExtentId, ExtentSeq, Incarnation, RpcId, VolumeId, Vseq};
use torus_core::limits::EXTENT_BLOCKS_MIN;
use torus_core::meta::docs::{EpochDoc, Holder, encode};
use torus_core::meta::{MetaOp, MetadataStore, Txn, Write, keys};
use torus_core::peer::{Class, Copy, Rejection, Request, Response, Unanswered};
use torus_core::ring::RingSpec;
use torus_core::tdp::Role;
use torus_store::{BufferPool, Fill};

const VOLUME: VolumeId = VolumeId(0x7e57);
const EXTENT: ExtentId = ExtentId { volume: VOLUME, seq: ExtentSeq(1 << 24) };
const FIRST: Epoch = Epoch(1);

/// A cluster's metadata, and directories for agents.
struct World {
    store: Arc<dyn MetadataStore>,
    dir: tempfile::TempDir,
}

impl World {
    async fn new() -> World {
        let store: Arc<dyn MetadataStore> = Arc::new(Embedded::in_memory());
        init_cluster(&*store, EXTENT_BLOCKS_MIN, 2).await.unwrap();
        World { store, dir: tempfile::tempdir().unwrap() }
    }

    fn config(&self, name: &str) -> Config {
        Config {
            data_dir: Some(self.dir.path().join(name)),
            size_bytes: 64 << 20,
            fill: Fill::Reserve,
            // Not all filesystems that tests run on have direct I/O.
            buffered: true,
            port: 0,
            control_address: Some("127.0.0.1:0".into()),
            http_address: Some("127.0.0.1:0".into()),
            ..Config::new(Some(name.into()))
        }
    }

    async fn start(&self, name: &str) -> Agent {
        let started = Agent::start(self.config(name), Arc::clone(&self.store)).await;
        started.unwrap_or_else(|error| panic!("{}", told(&error)))
    }

    async fn refused(&self, config: Config) -> (u8, String) {
        match Agent::start(config, Arc::clone(&self.store)).await {
            Ok(_) => panic!("it started"),
            Err(error) => (exit_code(&error), told(&error)),
        }
    }

    async fn owner(&self, agent: &Agent) -> Owner {
        let cluster = load_cluster(&*self.store).await.unwrap().id;
        let peers = Peers::new(cluster, Role::Owner, "test".into(), Aligned(BufferPool::new(1 << 20)), None);
        peers.set_address(agent.who().agent, Some(agent.who().data.clone()));
        Owner { peers, agent: agent.who().agent, next: 0, events: Vec::new(), run: None }
    }
}

/// One owner's connection to one agent, one request at a time.
struct Owner {
    peers: Peers,
    agent: torus_core::ids::AgentId,
    next: u64,
    events: Vec<PeerEvent>,
    /// The run of the agent that it is connected to, or was.
    run: Option<Incarnation>,
}

impl Owner {
    fn send(&mut self, request: &Request) -> RpcId {
        self.next += 1;
        self.peers.send(self.agent, RpcId(self.next), request.clone());
        self.peers.flush();
        RpcId(self.next)
    }

    async fn event(&mut self) -> PeerEvent {
        while self.events.is_empty() {
            timeout(Duration::from_secs(20), self.peers.arrival()).await.expect("the agent answers");
            self.peers.take(&mut self.events);
        }
        let event = self.events.remove(0);
        if let PeerEvent::Up { incarnation, .. } = event {
            self.run = Some(incarnation);
        }
        event
    }

    async fn answer(&mut self) -> (RpcId, Result<Response, Unanswered>) {
        loop {
            if let PeerEvent::Answer { rpc, result, .. } = self.event().await {
                return (rpc, result);
            }
        }
    }

    async fn ask(&mut self, request: Request) -> Response {
        let sent = self.send(&request);
        let (rpc, result) = self.answer().await;
        assert_eq!(rpc, sent);
        result.unwrap()
    }

    async fn until_up(&mut self, run: Incarnation) {
        while self.run != Some(run) {
            self.event().await;
        }
    }
}

fn payload(blocks: Blocks, seed: u8) -> Bytes {
    (0..blocks as usize * BLOCK_SIZE).map(|i| (i / 5) as u8 ^ seed).collect::<Vec<_>>().into()
}

fn frame(extent: ExtentId, offset: Blocks, epoch: Epoch, base: u64, blocks: Blocks) -> Frame {
    let bytes = payload(blocks, base as u8);
    let header = FrameHeader {
        extent,
        offset,
        stream: Stream::Log,
        epoch,
        base: Vseq(base),
        lac: Vseq(base - 1),
        records: [Record { kind: 1, flags: 0, payload_blocks: blocks as u16, body: [0; 28] }].into_iter().collect(),
        crcs: bytes.chunks(BLOCK_SIZE).map(crc).collect(),
    };
    Frame { header: header.encode(), payload: [bytes].into_iter().collect() }
}

fn append(offset: Blocks, epoch: Epoch, base: u64, blocks: Blocks) -> Request {
    Request::Append { extent: EXTENT, epoch, offset, frame: frame(EXTENT, offset, epoch, base, blocks), early: false }
}

fn create(epoch: Epoch) -> Request {
    Request::Create { extent: EXTENT, epoch, stream: Stream::Log, class: Class::Data }
}

fn read(epoch: Epoch, offset: Blocks, blocks: Blocks) -> Request {
    Request::Read { extent: EXTENT, epoch, offset, blocks }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test)
}

async fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: torus.example\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

#[test]
fn an_extent_lives_from_its_creation_to_its_deletion() {
    run(async {
        let world = World::new().await;
        let agent = world.start("n1").await;
        let mut owner = world.owner(&agent).await;
        let Response::Created { free } = owner.ask(create(FIRST)).await else { panic!("created") };
        assert_eq!(free.free, free.total - 1);
        assert_eq!(owner.ask(append(0, FIRST, 1, 3)).await, Response::Appended { length: 4 });
        assert_eq!(owner.ask(append(4, FIRST, 2, 256)).await, Response::Appended { length: 261 });
        // An identical resend succeeds; another frame in its place does not.
        assert_eq!(owner.ask(append(0, FIRST, 1, 3)).await, Response::Appended { length: 4 });
        assert!(matches!(owner.ask(append(4, FIRST, 3, 1)).await, Response::Rejected(_)));
        let Response::Data { crcs, bytes } = owner.ask(read(FIRST, 1, 3)).await else { panic!("data") };
        assert_eq!(bytes, payload(3, 1));
        assert_eq!(crcs.to_vec(), bytes.chunks(BLOCK_SIZE).map(crc).collect::<Vec<_>>());
        assert!(matches!(owner.ask(read(FIRST, 260, 2)).await, Response::Rejected(Rejection::PastEnd { length: 261 })));
        // A second owner fences the first.
        let second = Epoch(2);
        let fence = Request::Fence { volume: VOLUME, epoch: second, extents: vec![EXTENT.seq, ExtentSeq(2 << 32)] };
        let Response::Fenced { extents, .. } = owner.ask(fence).await else { panic!("fenced") };
        assert!(matches!(extents[0].1, Copy::Open { length: 261, damaged: false, .. }), "{extents:?}");
        assert_eq!(extents[1].1, Copy::Never);
        let late = owner.ask(append(261, FIRST, 3, 1)).await;
        assert_eq!(late, Response::Rejected(Rejection::Fenced { epoch: second }));
        let Response::Sealed { length: 261, .. } =
            owner.ask(Request::Seal { extent: EXTENT, epoch: second, length: 261 }).await
        else {
            panic!("sealed")
        };
        let Response::Data { bytes, .. } = owner.ask(read(second, 5, 256)).await else { panic!("data") };
        assert_eq!(bytes, payload(256, 2));
        let Response::Deleted { free } = owner.ask(Request::Delete { extent: EXTENT, epoch: second, copy: 0 }).await
        else {
            panic!("deleted")
        };
        assert_eq!(free.free, free.total);
        assert_eq!(owner.ask(read(second, 1, 1)).await, Response::Rejected(Rejection::NoSuchExtent));
        agent.stop().await;
    });
}

#[test]
fn what_was_acknowledged_is_there_after_a_crash_and_takes_no_more_appends() {
    run(async {
        let world = World::new().await;
        let agent = world.start("n1").await;
        let (id, address) = (agent.who().agent, agent.who().data.clone());
        let mut owner = world.owner(&agent).await;
        owner.ask(create(FIRST)).await;
        assert_eq!(owner.run, Some(Incarnation(1)));
        assert_eq!(owner.ask(append(0, FIRST, 1, 2)).await, Response::Appended { length: 3 });
        let waiting = owner.send(&append(3, FIRST, 2, 1));
        agent.kill().await;
        // Either it was still answered, or it is unknown; there is no third.
        let (rpc, result) = owner.answer().await;
        assert!(rpc == waiting && matches!(result, Err(Unanswered) | Ok(Response::Appended { length: 5 })));

        let port = address.rsplit_once(':').unwrap().1.parse().unwrap();
        let agent = Agent::start(Config { port, ..world.config("n1") }, Arc::clone(&world.store)).await.unwrap();
        assert_eq!((agent.who().agent, agent.who().incarnation), (id, Incarnation(2)));
        owner.until_up(Incarnation(2)).await;
        let Response::Data { bytes, .. } = owner.ask(read(FIRST, 1, 2)).await else { panic!("data") };
        assert_eq!(bytes, payload(2, 1));
        assert!(matches!(owner.ask(append(5, FIRST, 3, 1)).await, Response::Rejected(Rejection::Closed { .. })));
        agent.stop().await;
    });
}

#[test]
fn a_stopping_agent_answers_what_it_has_and_takes_back_its_sign_of_life() {
    run(async {
        let world = World::new().await;
        let agent = world.start("n1").await;
        let alive = || async { torus_agent::metadata::list_agents(&*world.store).await.unwrap().remove(0).alive };
        assert_eq!(alive().await.unwrap().data, agent.who().data);
        let mut owner = world.owner(&agent).await;
        owner.ask(create(FIRST)).await;
        for i in 0..20 {
            owner.send(&append(i * 2, FIRST, u64::from(i) + 1, 1));
        }
        // The first answer shows that requests have arrived. All of these are answered; what is still in the network
        // when the agent stops is not, and is told as unknown.
        assert!(owner.answer().await.1.is_ok());
        assert_eq!(agent.stop().await, torus_agent::storage::PlaneEnd::Drained);
        let mut answered = true;
        for _ in 1..20 {
            match owner.answer().await.1 {
                Ok(Response::Appended { .. }) => assert!(answered, "an answer after the connection's end"),
                Ok(other) => panic!("{other:?}"),
                Err(Unanswered) => answered = false,
            }
        }
        assert_eq!(alive().await, None);
    });
}

#[test]
fn hostile_bytes_leave_others_alone() {
    run(async {
        let world = World::new().await;
        let agent = world.start("n1").await;
        let mut owner = world.owner(&agent).await;
        owner.ask(create(FIRST)).await;
        let http = agent.who().http.clone().unwrap();
        for address in [&agent.who().data, &agent.who().control, &http] {
            for noise in
                [&[0u8; 70_000][..], b"\xff\xff\xff\xff\xff\xff\xff\xff", b"TDP1\x11\x00\x00\x00\xff\xff\xff\xff"]
            {
                let mut stream = TcpStream::connect(address).await.unwrap();
                let _ = stream.write_all(noise).await;
                let _ = stream.shutdown().await;
                let _ =
                    timeout(Duration::from_secs(20), stream.read_to_end(&mut Vec::new())).await.expect("it hangs up");
            }
        }
        assert_eq!(owner.ask(append(0, FIRST, 1, 1)).await, Response::Appended { length: 2 });
        let (code, text) = get(&http, "/metrics").await;
        assert_eq!(code, 200);
        for line in ["torus_member_appends_total 1\n", "torus_metadata_up 1\n", "torus_disk_commit_seconds_count"] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert_eq!(get(&http, "/healthz").await.0, 200);
        // Said by the heartbeat, which has begun by itself.
        let ready = async {
            loop {
                let (code, text) = get(&http, "/readyz").await;
                assert_eq!(code, 200, "{text}");
                if text.contains("torusctl peer add") {
                    break;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(20), ready).await.expect("it says how it gets into the ring");
        assert_eq!(get(&http, "/../../etc/passwd").await.0, 404);
        agent.stop().await;
    });
}

#[test]
fn a_disk_serves_one_agent_of_one_cluster() {
    run(async {
        let world = World::new().await;
        let agent = world.start("n1").await;
        let (code, text) = world.refused(Config { name: Some("n2".into()), ..world.config("n1") }).await;
        assert!(code == 1 && text.contains("in use by another process"), "{code} {text}");
        agent.stop().await;
        let other = World::new().await;
        let (code, text) = other.refused(Config { data_dir: world.config("n1").data_dir, ..other.config("n1") }).await;
        assert!(code == 3 && text.contains("belongs to cluster"), "{code} {text}");
        // A copy of a disk, while the original runs.
        let copy = world.dir.path().join("copy");
        std::fs::create_dir(&copy).unwrap();
        let file = |dir: &Path| dir.join("disk0.torus");
        std::fs::copy(file(&world.dir.path().join("n1")), file(&copy)).unwrap();
        let agent = world.start("n1").await;
        let (code, text) = world.refused(Config { data_dir: Some(copy.clone()), ..world.config("n1") }).await;
        assert!(code == 3 && text.contains("copied"), "{code} {text}");
        // Both together are refused too.
        agent.stop().await;
        let (code, text) = world.refused(Config { disks: vec![file(&copy)], ..world.config("n1") }).await;
        assert!(code == 3 && text.contains("one is a copy"), "{code} {text}");
    });
}

#[test]
fn several_disks_are_one_agent_and_one_that_is_missing_makes_it_unsure() {
    run(async {
        let world = World::new().await;
        let blank = |name: &str| {
            let path = world.dir.path().join(name);
            std::fs::File::create_new(&path).and_then(|file| file.set_len(64 << 20)).unwrap();
            path
        };
        let both = vec![blank("sda"), blank("sdb")];
        let on = |disks: &[std::path::PathBuf]| Config { data_dir: None, disks: disks.to_vec(), ..world.config("n1") };
        let agent = Agent::start(on(&both), Arc::clone(&world.store)).await.unwrap();
        let id = agent.who().agent;
        // Whoever opens a volume now places extents by this, before the first heartbeat.
        let alive = torus_agent::metadata::list_agents(&*world.store).await.unwrap().remove(0).alive.unwrap();
        assert!(alive.space.free > 0 && alive.space.free == alive.space.total, "{:?}", alive.space);
        let mut owner = world.owner(&agent).await;
        let extents: Vec<_> = (1..=4u64).map(|n| ExtentId { volume: VOLUME, seq: ExtentSeq(n << 24) }).collect();
        for &extent in &extents {
            let create = Request::Create { extent, epoch: FIRST, stream: Stream::Log, class: Class::Data };
            let Response::Created { free } = owner.ask(create).await else { panic!("created") };
            assert_eq!(free.total, alive.space.total);
            let frame = frame(extent, 0, FIRST, 1, 2);
            let append = Request::Append { extent, epoch: FIRST, offset: 0, frame, early: false };
            assert_eq!(owner.ask(append).await, Response::Appended { length: 3 });
        }
        let http = agent.who().http.clone().unwrap();
        let (_, text) = get(&http, "/metrics").await;
        let free: Vec<_> = text.lines().filter(|line| line.starts_with("torus_disk_slots_free_count{")).collect();
        let half = format!(" {}", alive.space.total / 2 - 2);
        assert!(free.len() == 2 && free.iter().all(|line| line.ends_with(&half)), "not spread evenly: {free:?}");
        agent.stop().await;

        // One disk is away: what the other holds is served, the rest is unknown and never "not here".
        let agent = Agent::start(on(&both[..1]), Arc::clone(&world.store)).await.unwrap();
        assert_eq!(agent.who().agent, id);
        let mut owner = world.owner(&agent).await;
        let seqs = extents.iter().map(|extent| extent.seq).collect();
        let Response::Fenced { extents: copies, .. } =
            owner.ask(Request::Fence { volume: VOLUME, epoch: Epoch(2), extents: seqs }).await
        else {
            panic!("fenced")
        };
        let known = copies.iter().filter(|(_, copy)| matches!(copy, Copy::Open { length: 3, .. })).count();
        let unknown = copies.iter().filter(|(_, copy)| *copy == Copy::Unknown).count();
        assert_eq!((known, unknown), (2, 2), "{copies:?}");
        agent.stop().await;

        let agent = Agent::start(on(&both), Arc::clone(&world.store)).await.unwrap();
        let mut owner = world.owner(&agent).await;
        for &extent in &extents {
            let read = Request::Read { extent, epoch: Epoch(2), offset: 1, blocks: 2 };
            let Response::Data { bytes, .. } = owner.ask(read).await else { panic!("data") };
            assert_eq!(bytes, payload(2, 1));
        }
        agent.stop().await;
    });
}

#[test]
fn an_agent_enters_the_ring_when_told_to_and_stays_out_of_a_closed_one() {
    run(async {
        let world = World::new().await;
        world.start("n1").await.stop().await;
        assert_eq!(load_ring(&*world.store).await.unwrap(), None);
        let joining = |name| Config { auto_join: true, ..world.config(name) };
        let agent = Agent::start(joining("n1"), Arc::clone(&world.store)).await.unwrap();
        let ring = load_ring(&*world.store).await.unwrap().unwrap().doc;
        assert_eq!((ring.version.0, ring.now.replicas), (1, 2));
        assert_eq!(ring.now.agents.iter().map(|agent| agent.id).collect::<Vec<_>>(), [agent.who().agent]);
        let closed = RingSpec { kind: "empty".into(), agents: Vec::new(), ..ring.now };
        change_ring(&*world.store, |_| Ok(closed.clone())).await.unwrap();
        let other = Agent::start(joining("n2"), Arc::clone(&world.store)).await.unwrap();
        assert_eq!(load_ring(&*world.store).await.unwrap().unwrap().doc.now, closed);
        other.stop().await;
        agent.stop().await;
    });
}

#[test]
fn a_metadata_store_from_an_old_backup_is_noticed() {
    run(async {
        let world = World::new().await;
        let agent = world.start("n1").await;
        let mut owner = world.owner(&agent).await;
        let fence = Request::Fence { volume: VOLUME, epoch: Epoch(7), extents: Vec::new() };
        assert!(matches!(owner.ask(fence).await, Response::Fenced { .. }));
        agent.stop().await;
        let put = |epoch| {
            let doc = EpochDoc { epoch, holder: Holder::default(), nonce: 1 };
            let write = Write::Put { key: keys::volume_epoch(VOLUME), value: encode(&doc), lease: None };
            world.store.execute(MetaOp::Txn(Txn { when: Vec::new(), then: vec![write] }))
        };
        put(Epoch(6)).await.unwrap();
        let (code, text) = world.refused(world.config("n1")).await;
        assert!(code == 3 && text.contains("restored from a backup") && text.contains(&VOLUME.to_string()), "{text}");
        put(Epoch(7)).await.unwrap();
        world.start("n1").await.stop().await;
    });
}

#[test]
fn the_younger_of_two_copies_displaces_the_elder() {
    run(async {
        let world = World::new().await;
        let mut agent = world.start("n1").await;
        let copy = world.dir.path().join("copy");
        std::fs::create_dir(&copy).unwrap();
        // Taken while it runs, so it will count its runs further.
        std::fs::copy(world.dir.path().join("n1/disk0.torus"), copy.join("disk0.torus")).unwrap();
        let younger = Config { data_dir: Some(copy), ..world.config("n1") };
        let younger = Agent::start(younger, Arc::clone(&world.store)).await.unwrap();
        let end = timeout(Duration::from_secs(20), agent.failed()).await.expect("it finds out");
        assert!(matches!(&end, RunError::Displaced(why) if why.contains(&younger.who().data)), "{end}");
        agent.kill().await;
        younger.stop().await;
    });
}

#[test]
fn foreign_data_is_never_formatted_unasked() {
    run(async {
        let world = World::new().await;
        let path = world.dir.path().join("sdb");
        let mut content = vec![0u8; 64 << 20];
        content[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
        std::fs::write(&path, &content).unwrap();
        let config = Config { data_dir: None, disks: vec![path.clone()], ..world.config("n1") };
        let (code, text) = world.refused(config.clone()).await;
        assert!(code == 3 && text.contains("--format-new-disks"), "{code} {text}");
        assert_eq!(std::fs::read(&path).unwrap(), content);
        let agent = Agent::start(Config { format_new_disks: true, ..config }, Arc::clone(&world.store)).await.unwrap();
        agent.stop().await;
    });
}

#[test]
fn what_stands_in_the_way_is_named() {
    run(async {
        let world = World::new().await;
        let agent = world.start("n1").await;
        let taken: u16 = agent.who().data.rsplit_once(':').unwrap().1.parse().unwrap();
        let (code, text) = world.refused(Config { port: taken, ..world.config("n2") }).await;
        assert!(code == 1 && text.contains(&taken.to_string()) && text.contains("--port"), "{text}");
        let (code, text) = world.refused(Config { data_dir: Some("/proc/torus".into()), ..world.config("n2") }).await;
        assert!(code == 1 && text.contains("/proc/torus"), "{text}");
        let (code, text) = world.refused(Config { size_bytes: 1 << 20, ..world.config("n2") }).await;
        assert!(code == 1 && text.contains("smallest"), "{text}");
        agent.stop().await;
        let empty: Arc<dyn MetadataStore> = Arc::new(Embedded::in_memory());
        let error = Agent::start(world.config("n2"), empty).await.err().unwrap();
        assert!(
            matches!(error, StartError::Cluster(_)) && exit_code(&error) == 3 && told(&error).contains("torusctl init")
        );
    });
}
