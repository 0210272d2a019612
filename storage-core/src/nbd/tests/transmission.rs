//! Requests and replies.

use super::*;
use bytes::{BufMut, BytesMut};

const SIZE: u64 = 1 << 30;

fn shape() -> Shape {
    Shape { size_bytes: SIZE, block_min_bytes: 1, read_only: false, structured: true, base_allocation: true }
}

fn header(flags: u16, kind: u16, offset: u64, len: u32) -> RequestHeader {
    let mut bytes = Vec::new();
    bytes.put_u32(0x2560_9513);
    bytes.put_u16(flags);
    bytes.put_u16(kind);
    bytes.put_u64(42);
    bytes.put_u64(offset);
    bytes.put_u32(len);
    let header = RequestHeader::decode(bytes.first_chunk().unwrap()).unwrap();
    assert_eq!(header.cookie, Cookie(42));
    header
}

#[test]
fn commands_mean_what_the_specification_says() {
    let (offset, len) = (4096, 512);
    for (flags, kind, want) in [
        (0, 0, Command::Read { offset, len, whole: false }),
        (4, 0, Command::Read { offset, len, whole: true }),
        (1, 0, Command::Read { offset, len, whole: false }),
        (0, 1, Command::Write { offset, len, fua: false }),
        (1, 1, Command::Write { offset, len, fua: true }),
        (0, 2, Command::Disconnect),
        (0xffff, 2, Command::Disconnect),
        (0, 3, Command::Flush),
        (1, 3, Command::Flush),
        (1, 4, Command::Trim { offset, len, fua: true }),
        (0, 5, Command::Nothing),
        (0, 6, Command::WriteZeroes { offset, len, no_hole: false, fua: false }),
        (1 | 2 | 16, 6, Command::WriteZeroes { offset, len, no_hole: true, fua: true }),
        (0, 7, Command::BlockStatus { offset, len, one: false }),
        (8, 7, Command::BlockStatus { offset, len, one: true }),
    ] {
        assert_eq!(header(flags, kind, offset, len).command(&shape()), Ok(want), "{flags} {kind}");
    }
}

#[test]
fn refusals_carry_the_number_that_the_specification_asks_for() {
    let plain = shape();
    let coarse = Shape { block_min_bytes: 4096, ..plain };
    let frozen = Shape { read_only: true, ..plain };
    let simple = Shape { structured: false, base_allocation: false, ..plain };
    let big = NBD_REQUEST_BYTES_MAX + 1;
    for (shape, flags, kind, offset, len, want) in [
        (plain, 0, 8, 0, 512, Errno::Inval),
        (plain, 0, 999, 0, 512, Errno::Inval),
        (plain, 2, 1, 0, 512, Errno::Inval),
        (plain, 4, 1, 0, 512, Errno::Inval),
        (plain, 8, 0, 0, 512, Errno::Inval),
        (plain, 32, 1, 0, 512, Errno::Inval),
        (simple, 4, 0, 0, 512, Errno::Inval),
        (simple, 0, 7, 0, 512, Errno::Inval),
        (plain, 0, 7, 0, 0, Errno::Inval),
        (plain, 0, 0, 0, big, Errno::Inval),
        (plain, 0, 1, 0, big, Errno::Inval),
        (plain, 0, 0, SIZE, 1, Errno::Inval),
        (plain, 0, 0, u64::MAX, 1, Errno::Inval),
        (plain, 0, 0, u64::MAX, 0, Errno::Inval),
        (plain, 0, 1, SIZE - 1, 2, Errno::NoSpc),
        (plain, 0, 1, u64::MAX - 1, 2, Errno::NoSpc),
        (plain, 0, 4, SIZE - 1, 2, Errno::Inval),
        (plain, 0, 5, SIZE - 1, 2, Errno::Inval),
        (plain, 0, 6, SIZE - 1, 2, Errno::NoSpc),
        (plain, 0, 7, SIZE - 1, 2, Errno::Inval),
        (coarse, 0, 0, 512, 4096, Errno::Inval),
        (coarse, 0, 1, 4096, 512, Errno::Inval),
        (frozen, 0, 1, 0, 512, Errno::Perm),
        (frozen, 0, 4, 0, 512, Errno::Perm),
        (frozen, 0, 6, 0, 512, Errno::Perm),
    ] {
        let got = header(flags, kind, offset, len).command(&shape).map_err(|r| r.errno);
        assert_eq!(got, Err(want), "{flags} {kind} {offset} {len}");
    }
    // Requests without payload may be longer.
    assert!(header(0, 4, 0, big).command(&plain).is_ok());
    assert!(header(0, 6, 0, big).command(&plain).is_ok());
    assert_eq!(header(0, 0, 0, 0).command(&plain), Ok(Command::Nothing));
}

#[test]
fn payload_follows_a_refused_write_too() {
    assert_eq!(header(0x20, 1, u64::MAX, u32::MAX).payload_len(), u32::MAX);
    assert_eq!(header(0, 0, 0, 4096).payload_len(), 0);
}

#[test]
fn bad_magic_is_named() {
    let error = RequestHeader::decode(&[0x11; 28]).unwrap_err();
    assert!(error.to_string().contains("0x11111111"), "{error}");
}

proptest! {
    #[test]
    fn a_command_lies_inside_the_export(
        flags in any::<u16>(), kind in 0..10u16, offset in any::<u64>(), near in any::<bool>(), len in any::<u32>(),
        block in prop::sample::select(vec![1u32, 512, 4096]),
    ) {
        let offset = if near { offset % (2 * SIZE) } else { offset };
        let shape = Shape { block_min_bytes: block, ..shape() };
        for flags in [flags, 0] {
            match header(flags, kind, offset, len).command(&shape) {
                Ok(Command::Read { offset, len, .. } | Command::Write { offset, len, .. }) => {
                    prop_assert!(len > 0 && len <= NBD_REQUEST_BYTES_MAX && offset + u64::from(len) <= SIZE);
                    prop_assert!(offset.is_multiple_of(block.into()) && len.is_multiple_of(block));
                }
                Ok(
                    Command::Trim { offset, len, .. }
                    | Command::WriteZeroes { offset, len, .. }
                    | Command::BlockStatus { offset, len, .. },
                ) => prop_assert!(len > 0 && offset + u64::from(len) <= SIZE),
                Ok(Command::Disconnect | Command::Flush | Command::Nothing) => {}
                Err(refusal) => prop_assert!(!refusal.message.is_empty()),
            }
        }
    }
}

#[test]
fn replies_have_the_bytes_of_the_specification() {
    let cookie = Cookie(0x0102_0304_0506_0708);
    let c = [1, 2, 3, 4, 5, 6, 7, 8];
    assert_eq!(reply::simple(cookie, None)[..], [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &c].concat());
    assert_eq!(reply::simple(cookie, Some(Errno::Shutdown))[4..8], [0, 0, 0, 108]);
    let head = |flags: u8, kind: [u8; 2], len: u32| {
        [&[0x66, 0x8e, 0x33, 0xef, 0, flags][..], &kind, &c, &len.to_be_bytes()].concat()
    };
    assert_eq!(reply::none(cookie)[..], head(1, [0, 0], 0));
    let offset = 0x1000u64.to_be_bytes();
    assert_eq!(reply::data(cookie, 0x1000, 512, false)[..], [&head(0, [0, 1], 520)[..], &offset].concat());
    assert_eq!(reply::hole(cookie, 0x1000, 512, true)[..], [&head(1, [0, 2], 12)[..], &offset, &[0, 0, 2, 0]].concat());

    let mut out = BytesMut::new();
    reply::error(cookie, Errno::Io, "gone", &mut out);
    assert_eq!(out[..], [&head(1, [0x80, 1], 10)[..], &[0, 0, 0, 5, 0, 4], b"gone"].concat());
    out.clear();
    reply::error(cookie, Errno::Io, &"ü".repeat(4000), &mut out);
    assert_eq!(out.len(), 20 + 6 + 4096, "a long reason is cut");

    out.clear();
    let extents = [(4096, true, true), (512, false, true), (1, false, false)];
    let extents = extents.map(|(len, hole, zero)| reply::Extent { len, hole, zero });
    reply::block_status(cookie, extents.into_iter(), &mut out);
    let body = [[0, 0, 0, 1], [0, 0, 16, 0], [0, 0, 0, 3], [0, 0, 2, 0], [0, 0, 0, 2], [0, 0, 0, 1], [0; 4]].concat();
    assert_eq!(out[..], [&head(1, [0, 5], 28)[..], &body].concat());
}
