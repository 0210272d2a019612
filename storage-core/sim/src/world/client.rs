//! The workload: what clients ask of an owner, and what they make of the answers.

use super::phases::Phase;
use super::{Event, World};
use crate::check::Violation;
use crate::check::history::{FlushBegun, ReadBegun};
use crate::owner::{Done, Input, Op, Run};
use crate::payload::{self, Content, WriteNo};
use torus_core::ids::{BLOCK_SIZE, Lba};
use torus_core::meta::docs::AckMode;

/// Blocks that are read back at a time.
const READ_BACK_BLOCKS: u64 = 16;

/// An operation under way.
#[derive(Debug)]
pub(super) enum Pending {
    /// `stable`: to outlive its owner once it is acknowledged; `data`: it has a payload.
    Write {
        no: WriteNo,
        stable: bool,
        data: bool,
    },
    Read(ReadBegun),
    Flush(FlushBegun),
}

/// What clients have done so far.
#[derive(Debug)]
pub(super) struct Workload {
    /// Size of the volume, in blocks.
    pub(super) blocks: u64,
    /// Operations issued.
    pub(super) issued: u32,
    /// The next operation's number.
    ids: u64,
    /// A small range that takes most operations, for a while.
    hot: u64,
    /// Where the reading back is.
    pub(super) read_back: u64,
}

impl Workload {
    pub(super) fn new(blocks: u64) -> Self {
        Self { blocks, issued: 0, ids: 0, hot: 0, read_back: 0 }
    }
}

impl World {
    /// A client of this owner issues, if there is room.
    pub(super) fn client(&mut self, run: Run) -> Result<(), Violation> {
        let in_flight_max = self.options.in_flight;
        let Some(node) = self.owners.get_mut(&run) else { return Ok(()) };
        if node.serving.is_none() {
            return Ok(());
        }
        if node.pending.len() >= in_flight_max {
            node.client_waits = true;
            return Ok(());
        }
        let op = match self.phase {
            Phase::Faults if self.workload.issued >= self.options.operations => return Ok(()),
            Phase::Faults => self.draw_operation(),
            Phase::Progress { .. } | Phase::ReadBack { .. } if self.newest_serving() != Some(run) => return Ok(()),
            Phase::Progress { target, .. } if self.workload.issued >= target => return Ok(()),
            Phase::Progress { .. } => self.draw_operation(),
            Phase::ReadBack { .. } => match self.next_read_back() {
                Some(op) => op,
                None => return Ok(()),
            },
            Phase::Healed { .. } | Phase::Closing { .. } | Phase::Over => return Ok(()),
        };
        self.workload.issued += 1;
        let think =
            if matches!(self.phase, Phase::ReadBack { .. }) { 0 } else { self.options.think_max.as_micros() as u64 };
        let pause = std::time::Duration::from_micros(self.rng.within(0..think + 1));
        self.push(pause, Event::Client { run });
        self.issue(run, op)
    }

    fn draw_operation(&mut self) -> Op {
        let blocks = self.workload.blocks;
        if self.rng.one_in(60) {
            self.workload.hot = self.rng.within(0..blocks);
        }
        let most = self.options.operation_blocks_max.min(blocks);
        let length = if self.rng.percent(50) { 1 } else { self.rng.within(1..most + 1) };
        let lba = if self.rng.percent(60) { self.workload.hot + self.rng.within(0..24) } else { self.rng.bits() };
        let lba = Lba(lba % (blocks - length + 1));
        let length = length as u32;
        if !self.rng.percent(self.options.write_percent) {
            return Op::Read { lba, blocks: length };
        }
        match self.rng.within(0..100) {
            0..6 => Op::Flush,
            6..12 => Op::Zero { lba, blocks: length, trim: true },
            12..16 => Op::Zero { lba, blocks: length, trim: false },
            draw => {
                let data = payload::build(self.seed, lba, self.history.next_write(), length);
                Op::Write { lba, data, fua: draw < 22 }
            }
        }
    }

    fn next_read_back(&mut self) -> Option<Op> {
        let lba = self.workload.read_back;
        let left = self.workload.blocks - lba;
        let blocks = left.min(READ_BACK_BLOCKS);
        self.workload.read_back += blocks;
        (blocks > 0).then_some(Op::Read { lba: Lba(lba), blocks: blocks as u32 })
    }

    pub(super) fn issue(&mut self, run: Run, op: Op) -> Result<(), Violation> {
        let Some(node) = self.owners.get_mut(&run) else { return Ok(()) };
        let Some(epoch) = node.serving else { return Ok(()) };
        let durable = self.options.ack_mode == AckMode::Durable;
        let pending = match &op {
            Op::Write { lba, data, fua } => {
                let no =
                    self.history.write_begins(epoch, *lba, (data.len() / BLOCK_SIZE) as u32, false, durable || !*fua);
                Pending::Write { no, stable: *fua || durable, data: true }
            }
            Op::Zero { lba, blocks, .. } => {
                let no = self.history.write_begins(epoch, *lba, *blocks, true, true);
                Pending::Write { no, stable: durable, data: false }
            }
            Op::Read { lba, blocks } => Pending::Read(self.history.read_begins(epoch, *lba, *blocks)),
            Op::Flush => Pending::Flush(self.history.flush_begins(epoch)),
        };
        self.workload.ids += 1;
        let id = self.workload.ids;
        node.pending.insert(id, pending);
        self.trace.note(self.now, &[30, run.0, id], || format!("{run:?} is asked {id}: {}", brief(&op)));
        self.step_owner(run, Input::Io { id, op })
    }

    /// An operation has ended: was that right?
    pub(super) fn judge(&mut self, run: Run, pending: Pending, done: Done) -> Result<(), Violation> {
        self.trace.note(self.now, &[31, run.0, u64::from(matches!(done, Done::Ok | Done::Data(_)))], || {
            format!("{run:?} ends {}: {}", brief_pending(&pending), brief_done(&done))
        });
        match (&pending, done) {
            (_, Done::Failed(why)) => {
                self.counts.lost += 1;
                if let Pending::Write { no, .. } = pending {
                    self.history.write_failed(no);
                }
                return self.may_fail(run, &why);
            }
            (_, Done::Unreadable) => {
                return Violation::new("I1", "a read fails for good, although a good copy must be left".into());
            }
            (Pending::Write { no, stable, data }, Done::Ok) => {
                self.history.write_acked(*no, *stable)?;
                if *stable && *data {
                    self.extents.write_acked(*no, &self.history, &self.frames)?;
                }
            }
            (Pending::Flush(flush), Done::Ok) => {
                for no in self.history.flush_acked(flush)? {
                    self.extents.flush_covers(no, &self.history, &self.frames)?;
                }
            }
            (Pending::Read(read), Done::Data(bytes)) => {
                let seed = self.seed;
                let contents: Vec<Content> =
                    bytes.chunks(BLOCK_SIZE).map(|block| payload::judge(seed, block)).collect();
                self.history.read_returns(read, &contents, &self.frames)?;
            }
            (pending, done) => {
                return Violation::new("I2", format!("{pending:?} ended as {}", brief_done(&done)));
            }
        }
        self.counts.acked += 1;
        Ok(())
    }

    /// Operations may fail while there are faults, or on an owner that is not the newest. The newest one that serves need not
    /// be: another may have raised the epoch, fenced it and died. It must not acknowledge anything then, and learns of it
    /// by its next request.
    fn may_fail(&self, run: Run, why: &str) -> Result<(), Violation> {
        let newest = self.newest_serving() == Some(run) && self.owners[&run].serving == Some(self.raised_epoch());
        match self.phase {
            Phase::Progress { .. } | Phase::ReadBack { .. } if newest => {
                Violation::new("I22", format!("an operation fails although everything is healed: {why}"))
            }
            _ => Ok(()),
        }
    }
}

fn brief(op: &Op) -> String {
    match op {
        Op::Write { lba, data, fua } => format!("write {} blocks at {lba}, fua {fua}", data.len() / BLOCK_SIZE),
        other => format!("{other:?}"),
    }
}

fn brief_pending(pending: &Pending) -> String {
    match pending {
        Pending::Write { no, .. } => format!("write {}", no.0),
        Pending::Read(_) => "a read".into(),
        Pending::Flush(_) => "a flush".into(),
    }
}

fn brief_done(done: &Done) -> String {
    match done {
        Done::Data(bytes) => format!("{} bytes", bytes.len()),
        other => format!("{other:?}"),
    }
}
