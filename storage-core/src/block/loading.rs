//! Between recovery and serving: the checkpoint is read.

use super::checkpoint::load::{BadCheckpoint, Loading};
use super::map::Map;
use crate::ids::{AgentId, RpcId, VolumeId};
use crate::log::recover::{OpenError, Patience, Progress, Recovered};
use crate::log::{AgentView, Call, Calls, Effects, MetaCall, Peers, Table};
use crate::meta::docs::HeadDoc;
use crate::peer::{Rejection, Response, Unanswered};
use crate::time::{Duration, Instant};

/// An owner that reads its volume's checkpoint.
#[derive(Debug)]
pub struct Load {
    recovered: Recovered,
    loading: Loading,
    peers: Peers,
    calls: Calls<Call, MetaCall>,
    patience: Patience<1>,
}

/// All that there is to serve from.
pub(super) struct Loaded {
    pub recovered: Recovered,
    pub map: Map,
    pub table: Table,
    pub peers: Peers,
    /// The number of the next request.
    pub next_call: u64,
}

impl Load {
    /// About to read the checkpoint that `head` names. Requests are numbered from `next_call` on.
    pub fn new(volume: VolumeId, head: HeadDoc, recovered: Recovered, peers: Peers, next_call: u64) -> Load {
        let loading = Loading::new(volume, recovered.epoch, head, recovered.meta.size.0);
        Load { recovered, loading, peers, calls: Calls::from(next_call), patience: Patience::default() }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.loading.progress()
    }

    /// The cluster's view has changed.
    pub fn on_agents(&mut self, now: Instant, views: &[AgentView]) {
        self.peers.update(now, views);
    }

    /// A connection to `agent` stands.
    pub fn on_peer_up(&mut self, now: Instant, agent: AgentId) {
        self.peers.heard(now, agent);
    }

    /// An agent has answered.
    ///
    /// # Errors
    /// When the volume has a newer owner, or what a checkpoint cannot hold has come.
    pub fn on_answer(
        &mut self,
        now: Instant,
        rpc: RpcId,
        result: Result<Response, Unanswered>,
    ) -> Result<(), OpenError> {
        let Some(call) = self.calls.answered(rpc) else { return Ok(()) };
        match &result {
            Ok(Response::Rejected(Rejection::Fenced { epoch })) => {
                let name = self.recovered.meta.name.clone();
                return Err(OpenError::Overtaken { name, epoch: *epoch });
            }
            Ok(_) => self.peers.heard(now, call.to),
            Err(Unanswered) => self.peers.suspect(now, call.to),
        }
        self.loading.on_answer(now, result).map_err(|error| bad(&error))
    }

    /// Asks for what is next; `Some` when all of it is there.
    ///
    /// # Errors
    /// When it has not got ahead for `patience`.
    pub(super) fn turn(
        &mut self,
        now: Instant,
        patience: Duration,
        out: &mut Effects,
    ) -> Result<Option<Loaded>, OpenError> {
        while let Some(call) = self.calls.expired(now) {
            self.peers.suspect(now, call.to);
            self.loading.on_answer(now, Err(Unanswered)).map_err(|error| bad(&error))?;
        }
        if self.loading.is_done() {
            return Ok(Some(self.finish()));
        }
        if self.patience.is_over(now, [self.progress().done], patience) {
            return Err(self.loading.give_up(|agent| self.peers.name(agent)));
        }
        self.loading.turn(now, &self.peers, &mut self.calls, out);
        Ok(None)
    }

    fn finish(&mut self) -> Loaded {
        self.loading.adopt();
        Loaded {
            recovered: self.recovered.clone(),
            map: std::mem::replace(&mut self.loading.map, Map::new(0)),
            table: std::mem::take(&mut self.loading.table),
            peers: std::mem::take(&mut self.peers),
            next_call: self.calls.next(),
        }
    }
}

fn bad(error: &BadCheckpoint) -> OpenError {
    OpenError::Inconsistent(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::checkpoint::table::{Title, encode};
    use crate::block::record::BlockRecord;
    use crate::format::{Digest, FrameHeader, Stream, crc};
    use crate::ids::{BLOCK_SIZE, Epoch, ExtentId, ExtentSeq, Lba, Vseq};
    use crate::log::Send;
    use crate::meta::docs::{AckMode, SealedExtent, VolumeDoc};
    use crate::peer::Request;
    use bytes::Bytes;

    const VOLUME: VolumeId = VolumeId(7);
    const PATIENCE: Duration = Duration::from_secs(4);

    /// A checkpoint of five extents on agents 1 and 2.
    fn load() -> Load {
        let meta = VolumeDoc {
            name: "v".into(),
            size: Lba(1024),
            replicas: 2,
            min_replicas: 1,
            ack_mode: AckMode::Durable,
            deleting: false,
        };
        let members = vec![AgentId(1), AgentId(2)];
        let extent = |n| SealedExtent { seq: ExtentSeq(n), members: members.clone(), length: 2, digest: Digest(n) };
        let head = HeadDoc { epoch: Epoch(1), vseq: Vseq(9), extents: (1..=5).map(extent).collect(), bytes: 0 };
        let recovered = Recovered {
            meta,
            epoch: Epoch(2),
            epoch_doc: Vec::new(),
            head: None,
            extents: Vec::new(),
            next: Vseq(10),
            witness: false,
        };
        let mut load = Load::new(VOLUME, head, recovered, Peers::default(), 1);
        let view = |id| AgentView {
            id: AgentId(id),
            name: format!("node-{id}"),
            up: true,
            incarnation: Default::default(),
            space: Default::default(),
        };
        load.on_agents(Instant::default(), &[view(1), view(2)]);
        load
    }

    /// What a member answers that has what it is asked for: one piece of the table, which lists nothing.
    fn piece(send: &Send) -> Response {
        let Request::Read { extent, epoch, offset, .. } = send.request else { panic!("{send:?}") };
        assert_eq!((extent.volume, epoch, offset), (VOLUME, Epoch(2), 0));
        let (mut payload, _) = encode(&Title { volume: VOLUME, size: 1024, vseq: Vseq(9) }, &[], BLOCK_SIZE);
        let record = BlockRecord::Table { bytes: payload.len() as u32 }.encode();
        payload.resize(BLOCK_SIZE, 0);
        let header = FrameHeader {
            extent: ExtentId { volume: VOLUME, seq: extent.seq },
            offset: 0,
            stream: Stream::Checkpoint,
            epoch: Epoch(1),
            base: Vseq(1),
            lac: Vseq(0),
            records: [record].into_iter().collect(),
            crcs: [crc(&payload)].into_iter().collect(),
        };
        let bytes = Bytes::from([&header.encode()[..], &payload].concat());
        Response::Data { crcs: bytes.chunks(BLOCK_SIZE).map(crc).collect(), bytes }
    }

    /// Asks for what is next at second `secs`.
    fn turn(load: &mut Load, secs: u64) -> Result<Option<Send>, OpenError> {
        let mut out = Effects::default();
        let now = Instant::default() + Duration::from_secs(100 + secs);
        load.turn(now, PATIENCE, &mut out).map(|loaded| {
            assert!(loaded.is_none(), "it is not all there");
            out.sends.pop()
        })
    }

    fn answer(load: &mut Load, secs: u64, send: &Send, answer: Response) -> Result<(), OpenError> {
        load.on_answer(Instant::default() + Duration::from_secs(100 + secs), send.rpc, Ok(answer))
    }

    #[test]
    fn a_checkpoint_is_read_for_as_long_as_that_gets_ahead() {
        let mut load = load();
        for n in 0..5 {
            assert_eq!(load.progress().to_string(), format!("reading the checkpoint, {} %", 20 * n));
            let asked = turn(&mut load, 3 * n).unwrap().expect("the next extent is asked for");
            answer(&mut load, 3 * n + 2, &asked, piece(&asked)).unwrap();
        }
        let mut out = Effects::default();
        let loaded = load.turn(Instant::default() + Duration::from_secs(115), PATIENCE, &mut out).unwrap();
        let loaded = loaded.expect("all of it is there");
        assert_eq!(loaded.table.iter().filter(|(_, entry)| entry.pinned).count(), 5);
    }

    #[test]
    fn a_reading_that_stands_still_says_who_is_to_be_started() {
        let mut load = load();
        let asked = turn(&mut load, 0).unwrap().unwrap();
        answer(&mut load, 2, &asked, piece(&asked)).unwrap();
        let nothing = || Response::Rejected(Rejection::NoSuchExtent);
        // One of the two says that it has nothing, the other one says nothing at all.
        let asked = turn(&mut load, 3).unwrap().unwrap();
        answer(&mut load, 3, &asked, nothing()).unwrap();
        let silent = if asked.to == AgentId(1) { 2 } else { 1 };
        let other = turn(&mut load, 4).unwrap().unwrap();
        assert_eq!(other.to, AgentId(silent));
        assert!(turn(&mut load, 6).unwrap().is_none(), "it is waited for");
        let _ = turn(&mut load, 7).unwrap();
        let OpenError::Missing { extent, remedy } = turn(&mut load, 8).unwrap_err() else { panic!("another error") };
        assert_eq!(extent, ExtentSeq(2));
        assert!(remedy.starts_with(&format!("start node-{silent} ")) && !remedy.contains(" or "), "{remedy}");
    }

    #[test]
    fn an_owner_that_is_overtaken_while_it_reads_says_so_at_once() {
        let mut load = load();
        let asked = turn(&mut load, 0).unwrap().unwrap();
        let fenced = Response::Rejected(Rejection::Fenced { epoch: Epoch(3) });
        let error = answer(&mut load, 1, &asked, fenced).unwrap_err();
        assert_eq!(error, OpenError::Overtaken { name: "v".into(), epoch: Epoch(3) });
    }
}
