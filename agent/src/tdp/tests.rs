//! Both ends over loopback, with an agent that answers by rule in place of disks.

use super::*;
use bytes::Bytes;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, LocalSet, spawn_local, yield_now};
use tokio::time::timeout;
use torus_core::format::{Frame, crc};
use torus_core::ids::{AgentId, BLOCK_SIZE, ClusterId, Epoch, ExtentId, ExtentSeq, Incarnation, RpcId, VolumeId};
use torus_core::limits::TDP_INFLIGHT_BYTES_MAX;
use torus_core::peer::{Request, Response, Unanswered};
use torus_core::tdp::{Identity, Role};
use torus_store::BufferPool;

const CLUSTER: ClusterId = ClusterId(0xc1);
const AGENT: AgentId = AgentId(0xa1);
const EXTENT: ExtentId = ExtentId { volume: VolumeId(7), seq: ExtentSeq(9) };

fn memory() -> Aligned {
    Aligned(BufferPool::new(4 << 20))
}

fn server() -> Server {
    let identity = Identity { cluster: CLUSTER, agent: AGENT, incarnation: Incarnation(3), extent_blocks: 1024 };
    Server::new(identity, memory())
}

async fn listen(server: &Server, at: &str) -> String {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    server.listen(listener);
    address
}

fn peers(cluster: ClusterId) -> Peers {
    Peers::new(cluster, Role::Owner, "test".into(), memory(), None)
}

/// An owner in the process of the agent behind `door`.
fn beside(door: LocalDoor) -> Peers {
    Peers::new(CLUSTER, Role::Owner, "test".into(), memory(), Some(door))
}

/// An agent on a thread of its own that is entered by a door, and what ends it.
fn inside(agent: AgentId) -> (LocalDoor, tokio::sync::oneshot::Sender<()>, std::thread::JoinHandle<()>) {
    let (door, doorway) = LocalDoor::new(agent);
    let (end, ended) = tokio::sync::oneshot::channel();
    let thread = std::thread::spawn(move || {
        run(async {
            let server = server();
            let _task = answer(server.clone());
            server.open(doorway);
            let _ = ended.await;
            server.kill();
        });
    });
    (door, end, thread)
}

/// Answers: an append with its own length after an early `Received`, a read with blocks of its offset.
fn answer(server: Server) -> JoinHandle<()> {
    spawn_local(async move {
        let mut requests = Vec::new();
        loop {
            server.arrival().await;
            server.take(&mut requests);
            for (req, request) in requests.drain(..) {
                match request {
                    Request::Append { frame, early, .. } => {
                        assert_eq!(
                            frame.header.as_ptr() as usize % BLOCK_SIZE,
                            0,
                            "payload lies where a disk can take it"
                        );
                        let length = frame.blocks();
                        if early {
                            server.reply(req, Response::Received { length });
                        }
                        server.reply(req, Response::Appended { length });
                    }
                    Request::Read { offset, blocks, .. } => {
                        let bytes = Bytes::from(vec![offset as u8; blocks as usize * BLOCK_SIZE]);
                        server.reply(req, Response::Data { crcs: bytes.chunks(BLOCK_SIZE).map(crc).collect(), bytes });
                    }
                    _ => server.reply(req, Response::Leased),
                }
            }
            server.flush();
        }
    })
}

fn append(blocks: usize, early: bool) -> Request {
    let payload = (1..blocks).map(|i| Bytes::from(vec![i as u8; BLOCK_SIZE])).collect();
    let mut header = memory().0.take(BLOCK_SIZE);
    header.fill(0xff);
    let frame = Frame { header: header.freeze(), payload };
    Request::Append { extent: EXTENT, epoch: Epoch(1), offset: 0, frame, early }
}

fn read(offset: u32, blocks: u32) -> Request {
    Request::Read { extent: EXTENT, epoch: Epoch(1), offset, blocks }
}

async fn next(peers: &Peers, seen: &mut Vec<PeerEvent>) -> PeerEvent {
    while seen.is_empty() {
        timeout(Duration::from_secs(10), peers.arrival()).await.expect("an event");
        peers.take(seen);
    }
    seen.remove(0)
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(LocalSet::new().run_until(test));
}

#[test]
fn requests_of_all_sizes_are_answered_in_both_directions() {
    run(async {
        let server = server();
        let _task = answer(server.clone());
        let peers = peers(CLUSTER);
        peers.set_address(AGENT, Some(listen(&server, "127.0.0.1:0").await));
        exchange(&peers).await;
        assert!(server.is_drained());
    });
}

#[test]
fn an_agent_of_this_process_answers_alike_and_without_an_address() {
    let (door, end, thread) = inside(AGENT);
    run(async {
        let peers = beside(door);
        exchange(&peers).await;
        // Nobody listens anywhere: another agent is not to be had.
        peers.send(AgentId(0xb2), RpcId(100), read(1, 1));
        let mut seen = Vec::new();
        assert!(matches!(next(&peers, &mut seen).await, PeerEvent::Answer { result: Err(Unanswered), .. }));
    });
    end.send(()).unwrap();
    thread.join().unwrap();
}

#[test]
fn an_agent_of_this_process_that_ends_leaves_nothing_unanswered() {
    let (door, end, thread) = inside(AGENT);
    run(async {
        let peers = beside(door);
        exchange(&peers).await;
        end.send(()).unwrap();
        thread.join().unwrap();
        // Either it is known by now, or it is found when nobody answers.
        peers.send(AGENT, RpcId(100), read(1, 1));
        peers.flush();
        let (mut seen, mut unanswered, mut down) = (Vec::new(), false, false);
        while !unanswered || !down {
            match next(&peers, &mut seen).await {
                PeerEvent::Answer { rpc: RpcId(100), result: Err(Unanswered), .. } => unanswered = true,
                PeerEvent::Down { agent: AGENT, .. } => down = true,
                other => panic!("{other:?}"),
            }
        }
        // Another process may have taken its place: that one is reached by its address.
        let other = server();
        let _task = answer(other.clone());
        peers.set_address(AGENT, Some(listen(&other, "127.0.0.1:0").await));
        assert!(matches!(next(&peers, &mut seen).await, PeerEvent::Up { agent: AGENT, .. }));
    });
}

/// One wake-up stands for the message and for the end.
#[test]
fn a_last_message_and_the_end_arrive_together() {
    run(async {
        let (ours, theirs) = super::local::pair::<u8, u8>();
        ours.push(RpcId(1), 7);
        ours.flush();
        drop(ours);
        let (mut got, mut open) = (Vec::new(), true);
        while open {
            timeout(Duration::from_secs(10), theirs.arrival()).await.expect("the end is told");
            open = theirs.take(&mut got);
        }
        assert_eq!(got, [(RpcId(1), 7)]);
    });
}

#[test]
fn an_agent_of_this_process_answers_and_ends_in_one_moment_and_both_are_told() {
    run(async {
        let server = server();
        let (door, doorway) = LocalDoor::new(AGENT);
        server.open(doorway);
        let peers = beside(door);
        peers.send(AGENT, RpcId(1), read(1, 1));
        peers.send(AGENT, RpcId(2), read(2, 1));
        let mut requests = Vec::new();
        while requests.len() < 2 {
            server.arrival().await;
            server.take(&mut requests);
        }
        server.reply(requests[0].0, Response::Leased);
        server.flush();
        server.kill();
        let mut seen = Vec::new();
        assert!(matches!(next(&peers, &mut seen).await, PeerEvent::Up { .. }));
        assert!(matches!(next(&peers, &mut seen).await, PeerEvent::Answer { rpc: RpcId(1), result: Ok(_), .. }));
        assert!(matches!(next(&peers, &mut seen).await, PeerEvent::Answer { rpc: RpcId(2), result: Err(_), .. }));
        assert!(matches!(next(&peers, &mut seen).await, PeerEvent::Down { .. }));
    });
}

#[test]
fn an_owner_that_ends_leaves_an_agent_of_its_process() {
    run(async {
        let server = server();
        let _task = answer(server.clone());
        let (door, doorway) = LocalDoor::new(AGENT);
        server.open(doorway);
        let peers = beside(door);
        exchange(&peers).await;
        let connections = || server.stats().connections.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(connections(), 1);
        // With a last word that nobody waits for.
        peers.send(AGENT, RpcId(100), read(1, 1));
        peers.flush();
        drop(peers);
        let left = async {
            while connections() > 0 {
                yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), left).await.expect("its connection ends");
        assert!(server.is_drained());
    });
}

/// Forty requests, the first of this connection, and all their answers.
async fn exchange(peers: &Peers) {
    for rpc in 0..40u64 {
        let request =
            if rpc % 2 == 0 { append(1 + (rpc as usize * 13) % 257, rpc % 4 == 0) } else { read(rpc as u32, 200) };
        peers.send(AGENT, RpcId(rpc), request);
    }
    peers.flush();
    let mut seen = Vec::new();
    assert!(matches!(next(peers, &mut seen).await, PeerEvent::Up { agent: AGENT, incarnation: Incarnation(3) }));
    for rpc in 0..40u64 {
        let mut answers = 1 + usize::from(rpc % 4 == 0);
        while answers > 0 {
            let PeerEvent::Answer { agent: AGENT, rpc: got, result: Ok(response) } = next(peers, &mut seen).await
            else {
                panic!("an answer")
            };
            assert_eq!(got, RpcId(rpc));
            match response {
                Response::Received { length } => assert_eq!((answers, length), (2, 1 + (rpc as u32 * 13) % 257)),
                Response::Appended { length } => assert_eq!((answers, length), (1, 1 + (rpc as u32 * 13) % 257)),
                Response::Data { bytes, .. } => assert!(bytes.iter().all(|&b| b == rpc as u8)),
                other => panic!("{other:?}"),
            }
            answers -= 1;
        }
    }
}

#[test]
fn a_lost_connection_is_told_at_once_and_made_again() {
    run(async {
        let first = server();
        let address = listen(&first, "127.0.0.1:0").await;
        let peers = peers(CLUSTER);
        peers.set_address(AGENT, Some(address.clone()));
        peers.send(AGENT, RpcId(1), read(1, 1));
        peers.send(AGENT, RpcId(2), append(3, true));
        let mut seen = Vec::new();
        assert!(matches!(next(&peers, &mut seen).await, PeerEvent::Up { .. }));
        let mut requests = Vec::new();
        while requests.len() < 2 {
            first.arrival().await;
            first.take(&mut requests);
        }
        first.reply(requests[1].0, Response::Received { length: 3 });
        first.flush();
        assert!(matches!(next(&peers, &mut seen).await, PeerEvent::Answer { rpc: RpcId(2), result: Ok(_), .. }));
        // The agent dies: nothing more is heard of what is open.
        first.kill();
        for expected in [1, 2] {
            let PeerEvent::Answer { rpc, result: Err(Unanswered), .. } = next(&peers, &mut seen).await else {
                panic!()
            };
            assert_eq!(rpc, RpcId(expected));
        }
        assert!(matches!(next(&peers, &mut seen).await, PeerEvent::Down { agent: AGENT, .. }));
        peers.send(AGENT, RpcId(3), read(1, 1));
        assert!(matches!(
            next(&peers, &mut seen).await,
            PeerEvent::Answer { rpc: RpcId(3), result: Err(Unanswered), .. }
        ));
        // Its lease runs out, so nobody knows where it is; then it comes back where it was, and is connected to unasked.
        peers.set_address(AGENT, None);
        while timeout(Duration::from_millis(50), peers.arrival()).await.is_ok() {}
        peers.set_address(AGENT, Some(address.clone()));
        let second = server();
        let _task = answer(second.clone());
        listen(&second, &address).await;
        assert!(matches!(next(&peers, &mut seen).await, PeerEvent::Up { agent: AGENT, .. }));
        peers.send(AGENT, RpcId(4), read(1, 1));
        peers.flush();
        assert!(matches!(next(&peers, &mut seen).await, PeerEvent::Answer { rpc: RpcId(4), result: Ok(_), .. }));
    });
}

#[test]
fn strangers_are_refused_with_words() {
    run(async {
        let server = server();
        let address = listen(&server, "127.0.0.1:0").await;
        for (cluster, agent, word) in [(ClusterId(5), AGENT, "cluster"), (CLUSTER, AgentId(0xbad), "agent")] {
            let peers = peers(cluster);
            peers.set_address(agent, Some(address.clone()));
            peers.send(agent, RpcId(1), read(0, 1));
            let mut seen = Vec::new();
            assert!(matches!(next(&peers, &mut seen).await, PeerEvent::Answer { result: Err(Unanswered), .. }));
            let PeerEvent::Down { why, .. } = next(&peers, &mut seen).await else { panic!("down") };
            assert!(why.contains("it refused") && why.contains(word), "{why}");
        }
    });
}

#[test]
fn hostile_bytes_end_their_connection_and_no_other() {
    run(async {
        let server = server();
        let _task = answer(server.clone());
        let address = listen(&server, "127.0.0.1:0").await;
        let peers = peers(CLUSTER);
        peers.set_address(AGENT, Some(address.clone()));
        for noise in [
            &b"GET / HTTP/1.1\r\nHost: torus.example\r\n\r\n"[..],
            &[0xff; 100_000],
            b"TDP1 and then something else altogether",
        ] {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            let _ = stream.write_all(noise).await;
            let mut answer = Vec::new();
            let _ = timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.expect("it hangs up");
        }
        peers.send(AGENT, RpcId(1), read(4, 1));
        let mut seen = Vec::new();
        assert!(matches!(next(&peers, &mut seen).await, PeerEvent::Up { .. }));
        assert!(matches!(next(&peers, &mut seen).await, PeerEvent::Answer { result: Ok(_), .. }));
        assert_eq!(server.stats().refused.load(std::sync::atomic::Ordering::Relaxed), 3);
    });
}

#[test]
fn an_owner_that_does_not_read_its_answers_is_not_read_either() {
    run(async {
        let server = server();
        let _task = answer(server.clone());
        let address = listen(&server, "127.0.0.1:0").await;
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let mut outbox = torus_core::tdp::Outbox::default();
        outbox.hello(&torus_core::tdp::Hello::new(CLUSTER, Role::Owner, AGENT, "greedy".into()));
        let mut sent = 0;
        // A request is small and its answer is 1 MiB: asking is all this owner does, until the agent reads no more.
        loop {
            let mut slices = [std::io::IoSlice::new(&[]); 4];
            let count = outbox.slices(&mut slices);
            let Ok(written) = timeout(Duration::from_millis(500), stream.write_vectored(&slices[..count])).await else {
                break;
            };
            outbox.advance(written.unwrap());
            outbox.push(RpcId(sent), &read(0, 256));
            sent += 1;
        }
        assert!(sent > 1000, "{sent} requests sent");
        let held = server.queued_bytes();
        assert!(held <= TDP_INFLIGHT_BYTES_MAX + (2 << 20), "{held} bytes held");
        drop(stream);
        while server.stats().connections.load(std::sync::atomic::Ordering::Relaxed) > 0 {
            yield_now().await;
        }
    });
}
