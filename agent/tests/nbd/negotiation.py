"""The negotiation and the commands, from libnbd's side. Arguments: URI of db-0, URI of frozen, socket."""

import errno
import sys

import nbd

MIB = 1 << 20
uri, frozen_uri, socket = sys.argv[1:]
size = 64 * MIB


def connect(setup=lambda h: None, to=uri):
    h = nbd.NBD()
    setup(h)
    h.connect_uri(to)
    return h


def fails(want, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum == want, (error, errno.errorcode.get(error.errnum))
    else:
        raise AssertionError(f"{call} {args} succeeds")


# Every combination of what may be negotiated.
for structured in (False, True):
    for context in (False, True):
        for flags in (0, nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE, nbd.HANDSHAKE_FLAG_NO_ZEROES, 3):

            def setup(h):
                h.set_handshake_flags(flags)
                h.set_request_structured_replies(structured)
                if context:
                    h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)

            h = connect(setup)
            fixed = bool(flags & 1)
            assert h.get_protocol() == ("newstyle-fixed" if fixed else "newstyle"), h.get_protocol()
            assert h.get_size() == size
            assert h.get_structured_replies_negotiated() == (structured and fixed)
            assert h.can_df() == (structured and fixed)
            assert h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION) == (structured and context and fixed)
            assert h.can_flush() and h.can_fua() and h.can_trim() and h.can_zero() and h.can_multi_conn()
            assert h.can_cache() and h.can_fast_zero() and not h.is_read_only()
            h.pwrite(b"abc" * 171, 1000)
            assert h.pread(513, 1000) == b"abc" * 171
            h.zero(513, 1000)
            assert h.pread(513, 1000) == bytes(513)
            h.cache(4096, 0)
            h.flush()
            h.shutdown()

# Option by option.
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_unix(socket)
names = []
assert h.opt_list(lambda name, description: names.append((name, description)) or 0) == 2
assert names == [("db-0", "volume db-0"), ("frozen", "volume frozen")], names
h.set_export_name("nothing")
fails(errno.ENOENT, h.opt_info)
fails(errno.ENOENT, h.opt_go)
h.set_full_info(True)
h.set_export_name("frozen")
h.opt_info()
assert h.is_read_only() and h.get_canonical_export_name() == "frozen" and h.get_export_description() == "volume frozen"
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 * MIB
contexts = []
assert h.opt_list_meta_context(lambda name: contexts.append(name) or 0) == 1 and contexts == ["base:allocation"]
h.set_export_name("db-0")
h.add_meta_context("base:allocation")
h.add_meta_context("qemu:dirty-bitmap:none")
h.opt_go()
assert h.can_meta_context("base:allocation") and not h.can_meta_context("qemu:dirty-bitmap:none")
assert not h.is_read_only() and h.get_size() == size
h.shutdown()

h = nbd.NBD()
h.set_opt_mode(True)
h.connect_unix(socket)
h.opt_abort()

# Two exports, so there is no default one.
fails(errno.ENOENT, lambda: connect(to=f"nbd+unix:///?socket={socket}"))

# Holes and zeros, in the map and in what is read.
h = connect(lambda h: h.add_meta_context("base:allocation"))
h.trim(size, 0)
h.pwrite(b"x" * 8192, 2 * MIB)
h.zero(4096, 3 * MIB, nbd.CMD_FLAG_NO_HOLE)


def extents(count, offset, flags=0):
    found = []

    def extent(context, offset, entries, error):
        assert context == "base:allocation"
        found.extend(zip(entries[::2], entries[1::2]))
        return 0

    h.block_status(count, offset, extent, flags)
    return found


assert extents(size, 0) == [
    (2 * MIB, 3), (8192, 0), (MIB - 8192, 3), (4096, 2), (size - 3 * MIB - 4096, 3),
]
assert extents(size, 0, nbd.CMD_FLAG_REQ_ONE) == [(2 * MIB, 3)]
assert extents(100, 2 * MIB + 5000) == [(100, 0)]

chunks = []
h.pread_structured(
    MIB, 2 * MIB - 4096, lambda buf, offset, status, error: chunks.append((offset, len(buf), status)) or 0
)
assert sorted(chunks) == [
    (2 * MIB - 4096, 4096, nbd.READ_HOLE),
    (2 * MIB, 8192, nbd.READ_DATA),
    (2 * MIB + 8192, MIB - 12288, nbd.READ_HOLE),
], chunks
chunks.clear()
h.pread_structured(
    MIB, 2 * MIB - 4096, lambda buf, offset, status, error: chunks.append((offset, len(buf), status)) or 0,
    nbd.CMD_FLAG_DF,
)
assert chunks == [(2 * MIB - 4096, MIB, nbd.READ_DATA)], chunks

# What breaks the rules gets the number that the specification names, and the connection goes on.
h.set_strict_mode(0)
fails(errno.EINVAL, h.pread, 512, size)
fails(errno.EINVAL, h.pread, 512, (1 << 63) - 256)
fails(errno.ENOSPC, h.pwrite, b"x" * 512, size - 511)
fails(errno.ENOSPC, h.zero, 512, size)
fails(errno.EINVAL, h.trim, 512, size)
fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_NO_HOLE)
fails(errno.EINVAL, h.pwrite, b"x", 0, nbd.CMD_FLAG_DF)
fails(errno.EINVAL, extents, 512, size)
h.pwrite(b"x" * 512, 0, nbd.CMD_FLAG_FUA)
assert len(h.pread(32 * MIB, 0)) == 32 * MIB
# More than was told is taken too, up to what clients send at most.
assert len(h.pread(64 * MIB, 0)) == 64 * MIB
h.shutdown()

h = connect(to=frozen_uri)
h.set_strict_mode(0)
assert h.is_read_only() and not h.can_trim() and not h.can_zero()
for call, args in ((h.pwrite, (b"x" * 512, 0)), (h.trim, (512, 0)), (h.zero, (512, 0))):
    fails(errno.EPERM, call, *args)
assert h.pread(512, 0) == bytes(512)
h.shutdown()

# Many at once on several connections; each sees what the others wrote, and one flush covers all.
handles = [connect() for _ in range(4)]
for round in range(20):
    pending = []
    for i, h in enumerate(handles):
        for j in range(40):
            data = bytearray([(round + i + j) % 255 + 1]) * 4096
            buffer = nbd.Buffer.from_bytearray(data)
            pending.append((h, h.aio_pwrite(buffer, (i * 40 + j) * 4096), buffer))
    while pending:
        for h in handles:
            h.poll(0)
        pending = [p for p in pending if not p[0].aio_command_completed(p[1])]
    handles[round % 4].flush()
    for i in range(4):
        got = handles[(i + 1) % 4].pread(40 * 4096, i * 40 * 4096)
        assert got == b"".join(bytes([(round + i + j) % 255 + 1]) * 4096 for j in range(40))
for h in handles:
    h.shutdown()
print("done")
