//! Negotiations, as a client sees them.

use super::*;
use bytes::{Buf, BufMut, BytesMut};

struct Two;

impl Exports for Two {
    fn find(&self, name: &str) -> Option<ExportInfo> {
        let (name, read_only) = match name {
            "" | "db-0" => ("db-0", false),
            "frozen" => ("frozen", true),
            _ => return None,
        };
        Some(ExportInfo {
            name: name.into(),
            description: format!("volume {name}"),
            size_bytes: 1 << 30,
            read_only,
            block_min_bytes: 1,
            block_preferred_bytes: 4096,
        })
    }
    fn list(&self, each: &mut dyn FnMut(&str, &str)) {
        each("db-0", "volume db-0");
        each("frozen", "volume frozen");
    }
}

const ACK: u32 = 1;
const ERR_UNSUP: u32 = 0x8000_0001;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_UNKNOWN: u32 = 0x8000_0006;
const ERR_TOO_BIG: u32 = 0x8000_0009;

/// A negotiation seen from the client.
struct Client {
    server: Handshake,
    input: BytesMut,
    out: BytesMut,
}

impl Client {
    fn new(flags: u32) -> Self {
        let mut out = BytesMut::new();
        let server = Handshake::new(&mut out);
        assert_eq!(&out.split()[..], b"NBDMAGICIHAVEOPT\0\x03");
        let mut client = Self { server, input: BytesMut::new(), out };
        client.input.put_u32(flags);
        assert_eq!(client.step(), Ok(Progress::Taken));
        client
    }

    fn step(&mut self) -> Result<Progress, HandshakeError> {
        self.server.step(&mut self.input, &Two, &mut self.out)
    }

    fn send(&mut self, option: u32, data: &[u8]) -> Result<Progress, HandshakeError> {
        self.input.put_slice(b"IHAVEOPT");
        self.input.put_u32(option);
        self.input.put_u32(data.len() as u32);
        self.input.put_slice(data);
        self.step()
    }

    /// Sends an option that leaves the negotiation going, and gives its replies: (type, data).
    fn ask(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        assert_eq!(self.send(option, data), Ok(Progress::Taken));
        self.replies(option)
    }

    fn replies(&mut self, option: u32) -> Vec<(u32, Vec<u8>)> {
        let mut replies = Vec::new();
        while !self.out.is_empty() {
            assert_eq!(self.out.get_u64(), 0x3_e889_0455_65a9);
            assert_eq!(self.out.get_u32(), option);
            let (kind, len) = (self.out.get_u32(), self.out.get_u32() as usize);
            replies.push((kind, self.out.split_to(len).to_vec()));
        }
        replies
    }

    /// The one answer's type.
    fn verdict(&mut self, option: u32, data: &[u8]) -> u32 {
        let replies = self.ask(option, data);
        assert_eq!(replies.len(), 1, "{replies:?}");
        replies[0].0
    }
}

fn info(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = Vec::new();
    data.put_u32(name.len() as u32);
    data.put_slice(name.as_bytes());
    data.put_u16(wanted.len() as u16);
    wanted.iter().for_each(|w| data.put_u16(*w));
    data
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = Vec::new();
    data.put_u32(name.len() as u32);
    data.put_slice(name.as_bytes());
    data.put_u32(queries.len() as u32);
    for query in queries {
        data.put_u32(query.len() as u32);
        data.put_slice(query.as_bytes());
    }
    data
}

const FIXED: u32 = 3;

#[test]
fn flags_not_offered_end_it() {
    let mut out = BytesMut::new();
    let mut server = Handshake::new(&mut out);
    let mut input = BytesMut::from(&[0, 0, 0, 7][..]);
    assert_eq!(server.step(&mut input, &Two, &mut out), Err(HandshakeError::Flags(7)));
}

#[test]
fn export_name_answers_with_and_without_padding() {
    for (flags, len) in [(1, 134), (3, 10), (0, 134)] {
        let mut client = Client::new(flags);
        let Ok(Progress::Ready(session)) = client.send(1, b"frozen") else { panic!("refused") };
        assert_eq!(session, Session { export: "frozen".into(), structured: false, base_allocation: false });
        assert_eq!(client.out.len(), len);
        assert_eq!(client.out.get_u64(), 1 << 30);
        // Flags, read-only, flush, FUA, multi-conn, cache.
        assert_eq!(client.out.get_u16(), 1 | 2 | 4 | 8 | 1 << 8 | 1 << 10);
        assert!(client.out.iter().all(|b| *b == 0));
    }
    assert_eq!(Client::new(FIXED).send(1, b"nope"), Err(HandshakeError::UnknownExport("nope".into())));
    assert_eq!(Client::new(FIXED).send(1, &[b'x'; 4097]), Err(HandshakeError::NameTooLong(4097)));
}

#[test]
fn without_fixed_newstyle_only_export_name_is_taken() {
    assert_eq!(Client::new(0).send(3, b""), Err(HandshakeError::NotFixed(3)));
}

#[test]
fn abort_is_acked() {
    let mut client = Client::new(FIXED);
    assert_eq!(client.send(2, b"ignored"), Ok(Progress::Aborted));
    assert_eq!(client.replies(2), [(ACK, vec![])]);
}

#[test]
fn list_names_every_export() {
    let mut client = Client::new(FIXED);
    let replies = client.ask(3, b"");
    assert_eq!(replies.iter().map(|r| r.0).collect::<Vec<_>>(), [2, 2, ACK]);
    assert_eq!(replies[0].1, b"\0\0\0\x04db-0volume db-0");
    assert_eq!(client.verdict(3, b"x"), ERR_INVALID);
}

#[test]
fn info_tells_what_is_wanted_and_go_goes() {
    let mut client = Client::new(FIXED);
    let replies = client.ask(6, &info("", &[3, 1, 2, 1, 77]));
    let kinds: Vec<_> = replies.iter().map(|(kind, data)| (*kind, data.get(1).copied())).collect();
    assert_eq!(kinds, [(3, Some(0)), (3, Some(3)), (3, Some(1)), (3, Some(2)), (ACK, None)]);
    // Flags, flush, FUA, trim, write zeroes, multi-conn, cache, fast zero; no DF without structured replies.
    assert_eq!(replies[0].1[10..], (1 | 4 | 8 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10 | 1u16 << 11).to_be_bytes());
    assert_eq!(replies[1].1[2..], [[0, 0, 0, 1], [0, 0, 16, 0], [2, 0, 0, 0]].concat());
    assert_eq!(&replies[2].1[2..], b"db-0");
    assert_eq!(&replies[3].1[2..], b"volume db-0");

    assert_eq!(client.verdict(8, b""), ACK);
    let go = client.send(7, &info("db-0", &[])).unwrap();
    assert_eq!(go, Progress::Ready(Session { export: "db-0".into(), structured: true, base_allocation: false }));
    let replies = client.replies(7);
    assert_eq!(replies.len(), 2);
    assert_ne!(u16::from_be_bytes([replies[0].1[10], replies[0].1[11]]) & TransmissionFlags::DF.0, 0);
}

#[test]
fn info_and_go_refuse_what_is_not_there_or_malformed() {
    let good = info("db-0", &[1]);
    for option in [6, 7] {
        let mut client = Client::new(FIXED);
        assert_eq!(client.verdict(option, &info("nope", &[])), ERR_UNKNOWN);
        assert_eq!(client.verdict(option, b""), ERR_INVALID);
        for cut in 0..good.len() {
            assert_eq!(client.verdict(option, &good[..cut]), ERR_INVALID, "cut at {cut}");
        }
        assert_eq!(client.verdict(option, &[&good[..], b"x"].concat()), ERR_INVALID);
        assert_eq!(client.verdict(option, &[0xff; 30]), ERR_TOO_BIG);
        assert_eq!(client.verdict(option, &info(&"x".repeat(4097), &[])), ERR_TOO_BIG);
        assert_eq!(client.verdict(option, b"\0\0\0\x01\xff\0\0"), ERR_INVALID);
    }
}

#[test]
fn options_that_are_not_known_are_unsupported() {
    let mut client = Client::new(FIXED);
    for option in [0, 4, 5, 11, 12, u32::MAX] {
        assert_eq!(client.verdict(option, b"some data"), ERR_UNSUP, "option {option}");
    }
    assert_eq!(client.verdict(8, b"x"), ERR_INVALID);
}

#[test]
fn contexts_need_structured_replies_and_are_selected_per_export() {
    let mut client = Client::new(FIXED);
    assert_eq!(client.verdict(10, &contexts("db-0", &["base:allocation"])), ERR_INVALID);
    assert_eq!(client.verdict(9, &contexts("db-0", &[])), ERR_INVALID);
    client.ask(8, b"");

    // (option, queries, found)
    for (option, queries, found) in [
        (9, &[][..], true),
        (9, &["base:"], true),
        (9, &["base:allocation"], true),
        (9, &["qemu:dirty-bitmap:x"], false),
        (10, &[], false),
        (10, &["base:"], false),
        (10, &["other:thing", "base:allocation", "base:allocation"], true),
    ] {
        let replies = client.ask(option, &contexts("", queries));
        assert_eq!(replies.last(), Some(&(ACK, vec![])));
        assert_eq!(replies.len() == 2, found, "{option} {queries:?}");
        if found {
            assert_eq!((replies[0].0, &replies[0].1[4..]), (4, &b"base:allocation"[..]));
        }
    }
    assert_eq!(client.verdict(9, &contexts("nope", &[])), ERR_UNKNOWN);
    assert_eq!(client.verdict(9, &contexts("db-0", &[&"x".repeat(4097)])), ERR_TOO_BIG);
    assert_eq!(client.verdict(9, &contexts("db-0", &["x:"; NBD_CONTEXT_QUERIES_MAX + 1])), ERR_TOO_BIG);
    let good = contexts("db-0", &["base:allocation"]);
    for cut in 0..good.len() {
        assert_eq!(client.verdict(9, &good[..cut]), ERR_INVALID, "cut at {cut}");
    }

    // Selected for the default export, which is db-0, so it holds for that name too.
    let Ok(Progress::Ready(session)) = client.send(7, &info("db-0", &[])) else { panic!("refused") };
    assert!(session.base_allocation);
}

#[test]
fn a_selection_is_dropped_by_a_failed_one_and_for_another_export() {
    for (last, go, kept) in
        [("db-0", "db-0", true), ("nope", "db-0", false), ("frozen", "db-0", false), ("frozen", "frozen", true)]
    {
        let mut client = Client::new(FIXED);
        client.ask(8, b"");
        client.ask(10, &contexts("db-0", &["base:allocation"]));
        client.ask(10, &contexts(last, &["base:allocation"]));
        let Ok(Progress::Ready(session)) = client.send(7, &info(go, &[])) else { panic!("refused") };
        assert_eq!(session.base_allocation, kept, "{last} {go}");
    }
}

#[test]
fn too_much_data_is_thrown_away_as_it_comes() {
    let mut client = Client::new(FIXED);
    client.input.put_slice(b"IHAVEOPT");
    client.input.put_u32(3);
    client.input.put_u32(u32::MAX);
    let mut left = u32::MAX as usize;
    let chunk = vec![0x55; 64 << 20];
    assert_eq!(client.step(), Ok(Progress::Taken));
    while left > 0 {
        let n = left.min(chunk.len());
        client.input.put_slice(&chunk[..n]);
        left -= n;
        let progress = client.step().unwrap();
        assert_eq!(progress, if left > 0 { Progress::Incomplete } else { Progress::Taken });
        assert!(client.input.is_empty(), "thrown away at once");
    }
    assert_eq!(client.replies(3)[0].0, ERR_TOO_BIG);
    assert_eq!(client.ask(3, b"").len(), 3, "and the negotiation goes on");
}

#[test]
fn negotiating_for_ever_ends() {
    let mut client = Client::new(FIXED);
    for _ in 0..NBD_OPTIONS_MAX {
        client.verdict(99, b"");
    }
    assert_eq!(client.send(99, b""), Err(HandshakeError::TooManyOptions));
}

#[test]
fn garbage_for_an_option_ends_it() {
    let mut client = Client::new(FIXED);
    client.input.put_slice(b"GET / HTTP/1.1\r\n\r\n");
    assert!(matches!(client.step(), Err(HandshakeError::Magic(_))));
}

proptest! {
    #[test]
    fn random_bytes_never_panic_nor_pile_up(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..40),
        valid_head in any::<bool>(),
        option in 0..13u32,
    ) {
        let mut client = Client::new(FIXED);
        client.ask(8, b"");
        if valid_head {
            client.input.put_slice(b"IHAVEOPT");
            client.input.put_u32(option);
        }
        'all: for chunk in chunks {
            client.input.put_slice(&chunk);
            loop {
                match client.step() {
                    Ok(Progress::Incomplete) => break,
                    Ok(Progress::Taken) => client.out.clear(),
                    Ok(Progress::Aborted | Progress::Ready(_)) | Err(_) => break 'all,
                }
            }
            prop_assert!(client.input.len() <= NBD_OPTION_BYTES_MAX + 16);
        }
    }

    #[test]
    fn options_of_random_data_are_answered_once(option in 2..13u32, data in prop::collection::vec(0..6u8, 0..64)) {
        let mut client = Client::new(FIXED);
        client.ask(8, b"");
        match client.send(option, &data).unwrap() {
            Progress::Taken => {
                let replies = client.replies(option);
                let finals = replies.iter().filter(|(kind, _)| *kind == ACK || *kind >= 1 << 31).count();
                prop_assert_eq!(finals, 1);
            }
            Progress::Aborted => prop_assert_eq!(option, 2),
            Progress::Ready(_) => prop_assert_eq!(option, 7),
            Progress::Incomplete => prop_assert!(false, "the option was whole"),
        }
    }

    #[test]
    fn the_wire_may_cut_anywhere(cuts in prop::collection::vec(1..20usize, 1..80)) {
        let mut stream = Vec::new();
        for (option, data) in [(8u32, vec![]), (10, contexts("", &["base:allocation"])), (7, info("db-0", &[1, 3]))] {
            stream.put_slice(b"IHAVEOPT");
            stream.put_u32(option);
            stream.put_u32(data.len() as u32);
            stream.put_slice(&data);
        }
        let mut client = Client::new(FIXED);
        let mut rest = &stream[..];
        let mut cuts = cuts.into_iter().cycle();
        let session = loop {
            match client.step().unwrap() {
                Progress::Ready(session) => break session,
                Progress::Incomplete => {
                    let n = cuts.next().unwrap().min(rest.len());
                    prop_assert!(n > 0, "all was sent and it waits for more");
                    client.input.put_slice(&rest[..n]);
                    rest = &rest[n..];
                }
                Progress::Taken => {}
                Progress::Aborted => prop_assert!(false),
            }
        };
        prop_assert_eq!(session, Session { export: "db-0".into(), structured: true, base_allocation: true });
    }
}
