//! Every bound, by name. A queue or a buffer without a line here is a defect.

use crate::ids::Blocks;
use crate::time::Duration;

/// Largest extent: a block's place in it must fit 16 bits in the address map.
pub const EXTENT_BLOCKS_MAX: Blocks = 1 << 16;
/// Extent size unless a cluster says otherwise: 64 MiB.
pub const EXTENT_BLOCKS_DEFAULT: Blocks = 16_384;
/// Smallest extent: room for one frame of the largest size and some more.
pub const EXTENT_BLOCKS_MIN: Blocks = 1024;

/// Records in one frame, so that its header block holds them all.
pub const FRAME_RECORDS_MAX: usize = 64;
/// Payload blocks in one frame (1 MiB), for the same reason.
pub const FRAME_PAYLOAD_BLOCKS_MAX: Blocks = 256;
/// Blocks of the largest frame, its header included.
pub const FRAME_BLOCKS_MAX: Blocks = FRAME_PAYLOAD_BLOCKS_MAX + 1;

/// Most blocks one read request asks a member for: the largest frame, so that a copy can go frame by frame.
pub const READ_BLOCKS_MAX: Blocks = FRAME_BLOCKS_MAX;
/// Most bytes of raw frames in one `Fill`: the largest frame always fits.
pub const FILL_BLOCKS_MAX: Blocks = FRAME_BLOCKS_MAX;

/// Most copies of an extent.
pub const REPLICAS_MAX: usize = 7;
/// Copies of an extent in a cluster that was not told how many.
pub const REPLICAS_DEFAULT: u8 = 2;
/// Agents that a ring can have.
pub const RING_AGENTS_MAX: usize = 4096;
/// Largest weight of an agent in a ring: far more than it can have slots, and all of them together still fit 64 bits.
pub const RING_WEIGHT_MAX: u64 = 1 << 48;
/// Changes of the ring that may be under way at once: one more waits until data has followed.
pub const RINGS_BEFORE_MAX: usize = 4;
/// Extents that one volume appends to at the same time.
pub const OPEN_EXTENTS_DEFAULT: usize = 4;

/// Volumes whose fence one disk can remember.
pub const FENCED_VOLUMES_MAX: usize = 16_384;

/// Volumes of which an agent remembers the newest epoch, fenced or not.
pub const GATE_VOLUMES_MAX: usize = 4 * FENCED_VOLUMES_MAX;

/// Fewest slots a disk is used with.
pub const SLOTS_MIN: u32 = 4;
/// Slots of a disk that only [`Class::Reserve`](crate::peer::Class) may take: this many, or this share if it is more,
/// but never more than a quarter.
pub const RESERVE_SLOTS: u32 = 4;
/// See [`RESERVE_SLOTS`].
pub const RESERVE_PERCENT: u32 = 2;

/// Slots of a disk with so many that only [`Class::Reserve`](crate::peer::Class) may take.
#[must_use]
pub fn reserve_slots(slots: u32) -> u32 {
    let share = u64::from(slots) * u64::from(RESERVE_PERCENT) / 100;
    RESERVE_SLOTS.max(share as u32).min(slots / 4)
}

/// Memory for the footers of sealed extents, per disk: 64 MiB speak for 60 GiB of data.
pub const FOOTER_CACHE_BYTES: usize = 64 << 20;
/// Requests an agent keeps until its disks have recorded its start; more are refused.
pub const HELD_AT_START_MAX: usize = 1024;

/// How long a member promises an owner that it serves no newer one, counted on the owner from the sending of the
/// request, on the member from its receipt.
pub const READ_LEASE: Duration = Duration::from_millis(2_000);
/// What an owner takes off a lease for clocks that run at different speeds.
pub const READ_LEASE_MARGIN: Duration = Duration::from_millis(200);

/// Largest volume: 64 TiB, in blocks.
pub const VOLUME_BLOCKS_MAX: u64 = 1 << 34;

/// Extents that one `Fence` names.
pub const FENCE_EXTENTS_MAX: usize = 16_384;
/// Extents that one answer to `List` names.
pub const LIST_EXTENTS_MAX: usize = 4096;
/// Deletions that the removal of a volume has under way at one agent.
pub const REMOVAL_DELETES_MAX: usize = 64;
/// Header blocks in one answer to `Frames` (1 MiB).
pub const FRAMES_HEADERS_MAX: usize = 256;
/// Largest body of a TDP message: an answer to the largest `Fence`.
pub const TDP_BODY_BYTES_MAX: usize = 512 * 1024;
/// Largest payload of a TDP message: the largest frame.
pub const TDP_PAYLOAD_BYTES_MAX: usize = FRAME_BLOCKS_MAX as usize * crate::ids::BLOCK_SIZE;
/// Largest body before the handshake is done.
pub const TDP_GREETING_BYTES_MAX: usize = 4096;
/// Longest text in a TDP message; longer ones are cut.
pub const TDP_TEXT_BYTES_MAX: usize = 512;
/// What a TDP connection reads ahead.
pub const TDP_STAGING_BYTES: usize = 128 * 1024;
/// The same after a payload that would have filled all of it.
pub const TDP_AHEAD_OF_LARGE_BYTES: usize = 4096;
/// Bytes of buffers that an agent keeps for later use.
pub const AGENT_BUFFERS_IDLE_BYTES: usize = 32 << 20;
/// Bytes of buffers that an owner keeps for what agents send.
pub const OWNER_BUFFERS_IDLE_BYTES: usize = 16 << 20;
/// Questions that wait for an agent's data plane.
pub const AGENT_COMMANDS_MAX: usize = 16;
/// Connections that an agent takes.
pub const TDP_CONNECTIONS_MAX: usize = 1024;
/// Bytes of requests and answers that an agent holds for one connection before it reads no more from it: four times
/// what fills a 10 Gbit/s network for 5 ms.
pub const TDP_INFLIGHT_BYTES_MAX: usize = 24 << 20;
/// The same, for all connections together.
pub const TDP_SERVER_BYTES_MAX: usize = 256 << 20;
/// How much memory for heads and bodies a TDP connection takes at a time.
pub const TDP_HEADS_BYTES: usize = 8 * 1024;
/// Most bytes that one NBD READ or WRITE may carry, as told to clients: what they assume of a server that says nothing.
pub const NBD_REQUEST_BYTES_TOLD: u32 = 32 << 20;
/// Most bytes that one NBD READ or WRITE carries. More than is told, for clients that do not ask (as nbdkit takes, too).
pub const NBD_REQUEST_BYTES_MAX: u32 = 64 << 20;
/// Most bytes of data with one NBD option. More is thrown away as it comes, and refused.
pub const NBD_OPTION_BYTES_MAX: usize = 64 << 10;
/// Longest string in the NBD protocol, names and messages alike: the specification's.
pub const NBD_STRING_BYTES_MAX: usize = 4096;
/// Options that an NBD client may send before it chooses an export.
pub const NBD_OPTIONS_MAX: usize = 4096;
/// Queries in one NBD option that lists or selects metadata contexts.
pub const NBD_CONTEXT_QUERIES_MAX: usize = 256;
/// Extents in one answer to NBD BLOCK_STATUS; a client asks again for the rest.
pub const NBD_STATUS_EXTENTS_MAX: usize = 1 << 16;
/// How long an NBD client may take to negotiate.
pub const NBD_HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(30);
/// NBD connections that one server keeps; more are closed as they come.
pub const NBD_CONNECTIONS_MAX: usize = 128;
/// Exports of one NBD server.
pub const NBD_EXPORTS_MAX: usize = 1024;
/// NBD requests of one connection that are under way. Beyond it the socket is not read.
pub const NBD_IN_FLIGHT_REQUESTS_MAX: usize = 256;
/// Payload bytes of one NBD connection that are under way, from the request's header to the reply's last byte. Beyond
/// it the socket is not read; one request always fits.
pub const NBD_IN_FLIGHT_BYTES_MAX: usize = NBD_REQUEST_BYTES_MAX as usize;
/// Bytes of buffers for large payloads that an NBD server keeps for later use.
pub const NBD_BUFFERS_IDLE_BYTES: usize = 16 << 20;
/// What one NBD connection reads at once: many small requests in one system call.
pub const NBD_RECEIVE_BYTES: usize = 256 << 10;
/// The same after a write whose payload has a buffer of its own: little more than the next header.
pub const NBD_AHEAD_OF_LARGE_BYTES: usize = 4096;
/// What one NBD connection leaves with the kernel to be sent, where the kernel allows it: some large replies.
pub const NBD_SEND_BUFFER_BYTES: usize = 2 << 20;

/// Most bytes of one FUSE read or write: what kernels take at most, too.
pub const FUSE_REQUEST_BYTES_MAX: u32 = 1 << 20;
/// FUSE requests of one volume that are under way, and as many again that wait for their turn. Beyond it the kernel keeps
/// them.
pub const FUSE_IN_FLIGHT_REQUESTS_MAX: u16 = 64;
/// Questions that wait for the thread of a volume that is attached.
pub const KEEPER_QUESTIONS_MAX: usize = 4;

/// Conditions, and writes, in one metadata transaction. (etcd's own default is 128.)
pub const META_TXN_OPS_MAX: usize = 100;
/// Bytes of keys and values in one metadata transaction. (etcd's default is 1.5 MiB for the encoded request.)
pub const META_TXN_BYTES_MAX: usize = 1_310_720;
/// Keys that one page of a list asks etcd for.
pub const META_LIST_PAGE_KEYS: i64 = 512;
/// Bytes of one answer that is taken from etcd: a page of a list, a batch of a watch.
pub const META_ANSWER_BYTES_MAX: usize = 16 << 20;
/// Events that wait for the reader of one watch.
pub const META_WATCH_EVENTS_MAX: usize = 256;
/// Requests that wait for the embedded store, and the most that share one commit.
pub const META_REQUESTS_MAX: usize = 256;
/// Revisions that the embedded store keeps for watches that begin in the past.
pub const META_HISTORY_REVISIONS_MAX: usize = 4096;
/// Bytes of keys and values in that history.
pub const META_HISTORY_BYTES_MAX: usize = 8 << 20;
/// How long an owner waits for an append before it goes on without that member.
pub const APPEND_WAIT: Duration = Duration::from_millis(1_500);
/// How long an owner waits for any other answer of an agent before it asks again or elsewhere.
pub const PEER_WAIT: Duration = Duration::from_secs(3);
/// How long a read waits for one member before it asks another as well.
pub const HEDGE_WAIT: Duration = Duration::from_millis(200);
/// Pause before something that failed is tried again.
pub const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// The same for what is not urgent: deletions, and copies on agents that are away.
pub const SLOW_RETRY_PAUSE: Duration = Duration::from_secs(2);
/// Extents that one owner copies at the same time to restore redundancy.
pub const REPAIRS_MAX: usize = 2;
/// Extent keys in one metadata transaction.
pub const EXTENT_KEYS_PER_TXN: usize = 60;
/// A checkpoint is due after so many extents' worth of log, or after a 64th of the volume's size if that is more.
pub const CHECKPOINT_EXTENTS_MIN: u64 = 16;
/// How long a few extents of garbage may wait for a checkpoint that gives them back.
pub const TIDY_PAUSE: Duration = Duration::from_secs(20);
/// Blocks of a checkpoint that are on their way at the same time (4 MiB).
pub const CHECKPOINT_BLOCKS_UNDERWAY_MAX: Blocks = 1024;
/// Extents whose frames an opening asks for at the same time. One answer may cost an agent some 10 MiB of reading, and all
/// of them must come within [`PEER_WAIT`] also from a disk that does no more than 30 MiB in a second.
pub const INDEX_READS_MAX: usize = 8;
/// Reads that garbage collection has under way.
pub const GC_READS_MAX: usize = 8;
/// Records that garbage collection has appended and not seen acknowledged, before it reads on.
pub const GC_RECORDS_MAX: usize = 512;
/// Frames of moved records that are on their way at the same time: clients' frames wait behind them.
pub const COLD_FRAMES_MAX: usize = 4;
/// How long clients' writes keep pace with a collection that does not get ahead.
pub const PACE_PATIENCE: Duration = Duration::from_millis(200);
/// How long an extent that could not be emptied is left alone.
pub const GC_SKIP_PAUSE: Duration = Duration::from_secs(10);
/// How long writes wait for room, with nothing to collect, before they are refused.
pub const FULL_PAUSE: Duration = Duration::from_secs(1);
/// How often an agent that owes an answer is asked whether it is there.
pub const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// How often an owner looks over all its extents, beside when it has emptied one.
pub const SURVEY_PAUSE: Duration = Duration::from_millis(50);
/// Slots of an agent that repair leaves to garbage collection and checkpoints.
pub const CHECKPOINT_SLOTS: u32 = 2;
