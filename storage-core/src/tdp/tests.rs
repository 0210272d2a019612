use super::sealed::Sealed;
use super::*;
use crate::format::{Digest, Frame, Pieces, Stream, crc};
use crate::ids::{
    AgentId, BLOCK_SIZE, Blocks, ClusterId, Epoch, ExtentId, ExtentSeq, Incarnation, RpcId, VolumeId, Vseq,
};
use crate::limits::{
    EXTENT_BLOCKS_MAX, FENCE_EXTENTS_MAX, FRAME_BLOCKS_MAX, TDP_AHEAD_OF_LARGE_BYTES, TDP_STAGING_BYTES,
};
use crate::peer::{Class, Copy, FreeSpace, Rejection};
use crate::time::Duration;
use bytes::Bytes;
use proptest::prelude::*;
use std::io::IoSlice;

/// Plain memory, and a count of what is taken.
#[derive(Default)]
struct Heap {
    taken: usize,
}

impl Memory for Heap {
    type Buffer = Vec<u8>;
    fn take(&mut self, len: usize) -> Vec<u8> {
        self.taken += len;
        vec![0xee; len]
    }
    fn freeze(&mut self, mut buffer: Vec<u8>, len: usize) -> Bytes {
        buffer.truncate(len);
        buffer.into()
    }
}

/// Everything an outbox holds, written in pieces of odd sizes.
fn drain(outbox: &mut Outbox) -> Vec<u8> {
    let mut wire = Vec::new();
    while !outbox.is_empty() {
        let mut slices = [IoSlice::new(&[]); 3];
        let count = outbox.slices(&mut slices);
        let all: Vec<u8> = slices[..count].iter().flat_map(|s| s.to_vec()).collect();
        let part = all.len().div_ceil(2);
        wire.extend_from_slice(&all[..part]);
        outbox.advance(part);
    }
    wire
}

/// Reads `wire` in reads of the sizes in `reads`, over and over.
fn receive<T: Message>(wire: &[u8], reads: &[usize]) -> Result<Vec<(RpcId, T)>, WireError> {
    let (mut inbox, mut heap, mut out) = (Inbox::default(), Heap::default(), Vec::new());
    feed(&mut inbox, wire, reads, |inbox| {
        while let Some(message) = inbox.next(&mut heap)? {
            out.push(message);
        }
        Ok(())
    })?;
    Ok(out)
}

fn feed<T: Message>(
    inbox: &mut Inbox<T, Vec<u8>>,
    mut wire: &[u8],
    reads: &[usize],
    mut turn: impl FnMut(&mut Inbox<T, Vec<u8>>) -> Result<(), WireError>,
) -> Result<(), WireError> {
    let mut sizes = reads.iter().cycle();
    while !wire.is_empty() {
        let mut left = (*sizes.next().unwrap()).clamp(1, wire.len());
        let mut read = 0;
        for space in &mut inbox.space() {
            let part = left.min(space.len());
            space[..part].copy_from_slice(&wire[read..read + part]);
            (left, read) = (left - part, read + part);
        }
        assert!(read > 0, "no space to read into");
        inbox.received(read);
        wire = &wire[read..];
        turn(inbox)?;
    }
    Ok(())
}

fn blocks(count: usize, seed: u8) -> Bytes {
    (0..count * BLOCK_SIZE).map(|i| (i / 7) as u8 ^ seed).collect::<Vec<u8>>().into()
}

/// The message as a receiver sees it: its payload in one piece.
fn whole(pieces: &Pieces) -> Pieces {
    let bytes: Bytes = pieces.concat().into();
    if bytes.is_empty() { Pieces::new() } else { smallvec::smallvec![bytes] }
}

fn extent() -> impl Strategy<Value = ExtentId> {
    (1..=u64::MAX, any::<u64>()).prop_map(|(v, s)| ExtentId { volume: VolumeId(v), seq: ExtentSeq(s) })
}

fn epoch() -> impl Strategy<Value = Epoch> {
    any::<u64>().prop_map(Epoch)
}

fn offset() -> impl Strategy<Value = Blocks> {
    0..=EXTENT_BLOCKS_MAX
}

fn stream() -> impl Strategy<Value = Stream> {
    prop_oneof![Just(Stream::Log), Just(Stream::Checkpoint)]
}

fn free() -> impl Strategy<Value = FreeSpace> {
    any::<(u32, u32)>().prop_map(|(free, total)| FreeSpace { free, total })
}

fn request() -> impl Strategy<Value = Request> {
    let class = prop_oneof![Just(Class::Data), Just(Class::Reserve)];
    prop_oneof![
        (extent(), epoch(), stream(), class).prop_map(|(extent, epoch, stream, class)| Request::Create {
            extent,
            epoch,
            stream,
            class
        }),
        (extent(), epoch(), offset(), 0..70usize, any::<(u8, bool)>()).prop_map(
            |(extent, epoch, offset, count, (seed, early))| {
                let payload = (0..count).map(|i| blocks(1, seed ^ i as u8)).collect();
                Request::Append { extent, epoch, offset, frame: Frame { header: blocks(1, seed), payload }, early }
            }
        ),
        (extent(), epoch(), offset(), 1..=256u32).prop_map(|(extent, epoch, offset, blocks)| Request::Read {
            extent,
            epoch,
            offset,
            blocks
        }),
        (1..=u64::MAX, epoch(), prop::collection::vec(any::<u64>(), 0..50)).prop_map(|(v, epoch, seqs)| {
            Request::Fence { volume: VolumeId(v), epoch, extents: seqs.into_iter().map(ExtentSeq).collect() }
        }),
        (extent(), epoch(), offset()).prop_map(|(extent, epoch, from)| Request::Frames { extent, epoch, from }),
        (extent(), epoch(), stream(), offset(), 1..9usize, any::<u8>()).prop_map(
            |(extent, epoch, stream, offset, count, seed)| {
                let bytes = [blocks(count, seed), blocks(1, !seed)].into_iter().collect();
                Request::Fill { extent, epoch, stream, copy: epoch.0 ^ 5, offset, bytes }
            }
        ),
        (extent(), epoch(), offset()).prop_map(|(extent, epoch, length)| Request::Seal { extent, epoch, length }),
        (extent(), epoch(), any::<u64>()).prop_map(|(extent, epoch, copy)| Request::Delete { extent, epoch, copy }),
        (1..=u64::MAX, epoch()).prop_map(|(v, epoch)| Request::Lease { volume: VolumeId(v), epoch }),
        (1..=u64::MAX, epoch(), any::<u64>()).prop_map(|(v, epoch, from)| Request::List {
            volume: VolumeId(v),
            epoch,
            from: ExtentSeq(from)
        }),
    ]
}

fn copy() -> impl Strategy<Value = Copy> {
    prop_oneof![
        Just(Copy::Never),
        Just(Copy::Unknown),
        (offset(), any::<u64>(), any::<bool>()).prop_map(|(length, lac, damaged)| Copy::Open {
            length,
            lac: Vseq(lac),
            damaged
        }),
        (offset(), any::<u64>()).prop_map(|(length, digest)| Copy::Sealed { length, digest: Digest(digest) }),
    ]
}

fn rejection() -> impl Strategy<Value = Rejection> {
    prop_oneof![
        epoch().prop_map(|epoch| Rejection::Fenced { epoch }),
        Just(Rejection::NoSuchExtent),
        offset().prop_map(|length| Rejection::Closed { length }),
        offset().prop_map(|length| Rejection::WrongOffset { length }),
        "\\PC{0,40}".prop_map(Rejection::BadBytes),
        offset().prop_map(|length| Rejection::PastEnd { length }),
        offset().prop_map(|block| Rejection::Damaged { block }),
        free().prop_map(|free| Rejection::NoSpace { free }),
        "\\PC{0,40}".prop_map(Rejection::DiskFailed),
        any::<u32>().prop_map(|n| Rejection::TooManyVolumes(n as usize)),
        any::<u64>().prop_map(|copy| Rejection::NewerCopy { copy }),
    ]
}

fn response() -> impl Strategy<Value = Response> {
    prop_oneof![
        free().prop_map(|free| Response::Created { free }),
        offset().prop_map(|length| Response::Received { length }),
        offset().prop_map(|length| Response::Appended { length }),
        (1..70usize, any::<u8>()).prop_map(|(count, seed)| {
            let bytes = blocks(count, seed);
            Response::Data { crcs: bytes.chunks(BLOCK_SIZE).map(crc).collect(), bytes }
        }),
        (any::<u64>(), prop::collection::vec((any::<u64>().prop_map(ExtentSeq), copy()), 0..50))
            .prop_map(|(nanos, extents)| Response::Fenced { lease: Duration::from_nanos(nanos), extents }),
        (0..9usize, any::<(u8, bool)>()).prop_map(|(count, (seed, end))| {
            Response::Frames { headers: (0..count).map(|i| blocks(1, seed ^ i as u8)).collect(), end }
        }),
        (offset(), any::<u64>()).prop_map(|(length, d)| Response::Sealed { length, digest: Digest(d) }),
        free().prop_map(|free| Response::Deleted { free }),
        Just(Response::Leased),
        (prop::collection::vec(any::<u64>().prop_map(ExtentSeq), 0..50), any::<bool>(), any::<bool>())
            .prop_map(|(extents, end, hidden)| Response::Listed { extents, end, hidden }),
        rejection().prop_map(Response::Rejected),
    ]
}

fn normal(mut request: Request) -> Request {
    match &mut request {
        Request::Append { frame, .. } => frame.payload = whole(&frame.payload),
        Request::Fill { bytes, .. } => *bytes = whole(bytes),
        _ => {}
    }
    request
}

fn numbered<T>(messages: Vec<T>) -> Vec<(RpcId, T)> {
    messages.into_iter().enumerate().map(|(i, m)| (RpcId(i as u64 | 1 << 63), m)).collect()
}

fn wire_of<T: Message>(messages: &[(RpcId, T)]) -> Vec<u8> {
    let mut outbox = Outbox::default();
    messages.iter().for_each(|(rpc, message)| outbox.push(*rpc, message));
    drain(&mut outbox)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn requests_read_back_however_the_stream_is_cut(
        requests in prop::collection::vec(request(), 1..6),
        reads in prop::collection::vec(1..200_000usize, 1..5),
    ) {
        let sent = numbered(requests);
        let received = receive::<Request>(&wire_of(&sent), &reads).unwrap();
        prop_assert_eq!(received, sent.into_iter().map(|(rpc, r)| (rpc, normal(r))).collect::<Vec<_>>());
    }

    #[test]
    fn responses_read_back_however_the_stream_is_cut(
        responses in prop::collection::vec(response(), 1..6),
        reads in prop::collection::vec(1..200_000usize, 1..5),
    ) {
        let sent = numbered(responses);
        prop_assert_eq!(receive::<Response>(&wire_of(&sent), &reads).unwrap(), sent);
    }

    #[test]
    fn random_bytes_are_an_error_or_nothing(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        let whole = noise.len() >= 32;
        prop_assert_eq!(receive::<Request>(&noise, &[64]).is_err(), whole);
        prop_assert_eq!(receive::<Response>(&noise, &[64]).is_err(), whole);
    }

    /// A peer that makes sound checksums over nonsense gets as far as the bodies.
    #[test]
    fn nonsense_with_sound_checksums_never_panics(
        kind in any::<u8>(),
        body in prop::collection::vec(any::<u8>(), 0..80),
        payload in 0..5u32,
    ) {
        let payload = payload * BLOCK_SIZE as u32;
        let head = head::Head { kind, rpc: RpcId(1), body: body.len() as u32, payload, body_crc: crc(&body) };
        let mut wire = head.encode().to_vec();
        wire.extend_from_slice(&body);
        wire.resize(wire.len() + payload as usize, 7);
        let _ = receive::<Request>(&wire, &[4096]);
        let _ = receive::<Response>(&wire, &[4096]);
        let mut inbox = Inbox::<Request, Vec<u8>>::default();
        let _ = feed(&mut inbox, &wire[..wire.len().min(4096)], &[4096], |inbox| inbox.hello().map(|_| ()));
        let _ = feed(&mut inbox, &wire[..wire.len().min(4096)], &[4096], |inbox| inbox.welcome().map(|_| ()));
    }

    #[test]
    fn every_altered_bit_of_head_and_body_is_noticed(request in request(), at in any::<prop::sample::Index>(), bit in 0..8) {
        let payload: usize = request.payload().iter().map(Bytes::len).sum();
        let mut wire = wire_of(&[(RpcId(5), request)]);
        let at = at.index(wire.len() - payload);
        wire[at] ^= 1u8 << bit;
        prop_assert!(receive::<Request>(&wire, &[usize::MAX]).is_err());
    }
}

#[test]
fn the_largest_messages_fit() {
    let extent = ExtentId { volume: VolumeId(1), seq: ExtentSeq(1) };
    let frame = Frame {
        header: blocks(1, 1),
        payload: whole(&[blocks(FRAME_BLOCKS_MAX as usize - 1, 2)].into_iter().collect()),
    };
    let copy = Copy::Open { length: 9, lac: Vseq(u64::MAX), damaged: true };
    let append = (RpcId(1), Request::Append { extent, epoch: Epoch(1), offset: 0, frame, early: true });
    let fence = Request::Fence {
        volume: VolumeId(1),
        epoch: Epoch(2),
        extents: (0..FENCE_EXTENTS_MAX as u64).map(ExtentSeq).collect(),
    };
    let requests = [append.clone(), (RpcId(2), fence), append];
    let fenced = Response::Fenced {
        lease: Duration::from_secs(2),
        extents: (0..FENCE_EXTENTS_MAX as u64).map(|i| (ExtentSeq(i), copy)).collect(),
    };
    let responses = [(RpcId(1), Response::Leased), (RpcId(2), fenced), (RpcId(3), Response::Leased)];
    for reads in [1000, TDP_STAGING_BYTES, usize::MAX] {
        assert_eq!(receive::<Request>(&wire_of(&requests), &[reads]).unwrap(), requests);
        assert_eq!(receive::<Response>(&wire_of(&responses), &[reads]).unwrap(), responses);
    }
}

#[test]
fn lengths_beyond_the_limits_are_refused_before_memory_is_taken() {
    let sound = head::Head { kind: 17, rpc: RpcId(1), body: 29, payload: 8192, body_crc: 0 };
    let cases = [
        head::Head { body: u32::MAX, ..sound },
        head::Head { body: 512 * 1024 + 1, ..sound },
        head::Head { payload: !4095, ..sound },
        head::Head { payload: (FRAME_BLOCKS_MAX + 1) * 4096, ..sound },
        head::Head { payload: 4097, ..sound },
        head::Head { kind: 18, ..sound },
        head::Head { kind: 66, ..sound },
    ];
    for case in cases {
        let (mut inbox, mut heap) = (Inbox::<Request, _>::default(), Heap::default());
        let mut wire = case.encode().to_vec();
        wire.extend_from_slice(&[0; 29]);
        let result = feed(&mut inbox, &wire, &[usize::MAX], |inbox| inbox.next(&mut heap).map(|_| ()));
        assert!(result.is_err(), "{case:?}");
        assert_eq!(heap.taken, 0, "{case:?}");
    }
}

#[test]
fn a_large_payload_is_read_straight_to_its_place() {
    let extent = ExtentId { volume: VolumeId(1), seq: ExtentSeq(1) };
    let frame = Frame { header: blocks(1, 1), payload: whole(&[blocks(200, 2)].into_iter().collect()) };
    let wire = wire_of(&[(RpcId(1), Request::Append { extent, epoch: Epoch(1), offset: 0, frame, early: false })]);
    let (mut inbox, mut heap) = (Inbox::<Request, Vec<u8>>::default(), Heap::default());
    feed(&mut inbox, &wire[..TDP_STAGING_BYTES], &[usize::MAX], |inbox| {
        inbox.next(&mut heap).map(|m| assert!(m.is_none()))
    })
    .unwrap();
    assert_eq!(inbox.space()[0].len(), wire.len() - TDP_STAGING_BYTES);
}

#[test]
fn little_is_read_ahead_of_a_payload_that_follows_a_large_one() {
    let (mut inbox, mut heap) = (Inbox::<Request, _>::default(), Heap::default());
    let ahead = |inbox: &mut Inbox<Request, _>| inbox.space()[1].len();
    assert_eq!(ahead(&mut inbox), TDP_STAGING_BYTES);
    let extent = ExtentId { volume: VolumeId(1), seq: ExtentSeq(1) };
    for (count, expected) in [(200, TDP_AHEAD_OF_LARGE_BYTES), (1, TDP_STAGING_BYTES)] {
        let frame = Frame { header: blocks(1, 1), payload: whole(&[blocks(count, 2)].into_iter().collect()) };
        let append = Request::Append { extent, epoch: Epoch(1), offset: 0, frame, early: true };
        let wire = wire_of(&[(RpcId(1), append)]);
        let mut taken = 0;
        feed(&mut inbox, &wire, &[usize::MAX], |inbox| {
            inbox.next(&mut heap).map(|message| taken += usize::from(message.is_some()))
        })
        .unwrap();
        assert_eq!((taken, ahead(&mut inbox)), (1, expected));
    }
}

#[test]
fn messages_without_payload_share_one_piece_and_a_payload_is_not_copied() {
    let mut outbox = Outbox::default();
    let bytes = blocks(2, 3);
    let data = Response::Data { crcs: bytes.chunks(BLOCK_SIZE).map(crc).collect(), bytes: bytes.clone() };
    outbox.push(RpcId(1), &Response::Leased);
    outbox.push(RpcId(2), &Response::Appended { length: 3 });
    outbox.push(RpcId(3), &data);
    outbox.push(RpcId(4), &Response::Leased);
    let mut slices = [IoSlice::new(&[]); 8];
    assert_eq!(outbox.slices(&mut slices), 3);
    assert_eq!(slices[1].as_ptr(), bytes.as_ptr());
}

const CLUSTER: ClusterId = ClusterId(0xc1);
const AGENT: AgentId = AgentId(0xa1);
const IDENTITY: Identity =
    Identity { cluster: CLUSTER, agent: AGENT, incarnation: Incarnation(7), extent_blocks: 16_384 };

/// A whole handshake over bytes: what the client ends up with.
fn greet(hello: &Hello) -> Result<Welcome, Refusal> {
    let mut client = Outbox::default();
    client.hello(hello);
    let mut server = Outbox::default();
    let mut inbox = Inbox::<Request, Vec<u8>>::default();
    feed(&mut inbox, &drain(&mut client), &[11], |inbox| {
        if let Some(read) = inbox.hello()? {
            assert_eq!(&read, hello);
            match IDENTITY.admit(&read) {
                Ok(welcome) => server.welcome(&welcome),
                Err(refusal) => server.refusal(&refusal),
            }
        }
        Ok(())
    })
    .unwrap();
    let (mut inbox, mut answer) = (Inbox::<Response, Vec<u8>>::default(), None);
    feed(&mut inbox, &drain(&mut server), &[13], |inbox| {
        answer = answer.take().or(inbox.welcome()?);
        Ok(())
    })
    .unwrap();
    answer.unwrap()
}

#[test]
fn strangers_are_refused_with_the_reason() {
    let hello = Hello::new(CLUSTER, Role::Owner, AGENT, "db-0 on n1".into());
    assert_eq!(greet(&hello), Ok(Welcome { version: VERSION_MAX, identity: IDENTITY }));
    let other = Hello { cluster: ClusterId(2), ..hello.clone() };
    assert_eq!(greet(&other), Err(Refusal::Cluster(CLUSTER)));
    let other = Hello { agent: AgentId(2), ..hello.clone() };
    assert_eq!(greet(&other), Err(Refusal::Agent(AGENT)));
    let newer = Hello { versions: (VERSION_MAX + 1, VERSION_MAX + 3), ..hello.clone() };
    assert_eq!(greet(&newer), Err(Refusal::Version(VERSION_MIN, VERSION_MAX)));
    let overlapping = Hello { versions: (VERSION_MIN, VERSION_MAX + 3), ..hello };
    assert_eq!(greet(&overlapping).unwrap().version, VERSION_MAX);
}

#[test]
fn a_client_checks_the_server_too() {
    let hello = Hello::new(CLUSTER, Role::Agent, AGENT, String::new());
    let welcome = Welcome { version: VERSION_MAX, identity: IDENTITY };
    assert_eq!(hello.accept(&welcome), Ok(()));
    let newer = Welcome { version: VERSION_MAX + 1, ..welcome };
    assert_eq!(hello.accept(&newer), Err(Refusal::Version(VERSION_MIN, VERSION_MAX)));
    let stranger = Welcome { identity: Identity { cluster: ClusterId(2), ..IDENTITY }, ..welcome };
    assert_eq!(hello.accept(&stranger), Err(Refusal::Cluster(CLUSTER)));
    let other = Welcome { identity: Identity { agent: AgentId(2), ..IDENTITY }, ..welcome };
    assert!(hello.accept(&other).is_err());
}

#[test]
fn a_last_word_in_mid_stream_is_heard_and_requests_are_no_greeting() {
    let mut outbox = Outbox::default();
    let last = Refusal::Unavailable("the agent is stopping".into());
    outbox.push(RpcId(1), &Response::Leased);
    outbox.refusal(&last);
    assert_eq!(receive::<Response>(&drain(&mut outbox), &[10]), Err(WireError::Refused(last)));
    let wire = wire_of(&[(RpcId(1), Request::Lease { volume: VolumeId(1), epoch: Epoch(1) })]);
    let mut inbox = Inbox::<Request, Vec<u8>>::default();
    let result = feed(&mut inbox, &wire, &[usize::MAX], |inbox| inbox.hello().map(|_| ()));
    assert_eq!(result, Err(WireError::Kind(24)));
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let why = "é".repeat(400);
    let sent = [(RpcId(1), Response::Rejected(Rejection::DiskFailed(why)))];
    let received = receive::<Response>(&wire_of(&sent), &[usize::MAX]).unwrap();
    assert_eq!(received[0].1, Response::Rejected(Rejection::DiskFailed("é".repeat(256))));
}
