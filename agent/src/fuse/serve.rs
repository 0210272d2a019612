//! The device's side: jobs carried out, many at a time, and answered.

use super::errno;
use super::filesystem::Job;
use super::session::Answer;
use super::wire;
use crate::device::{BlockDevice, IoError, IoErrorKind};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use smallvec::{SmallVec, smallvec};
use std::rc::Rc;
use tokio::sync::mpsc;
use torus_core::format::Pieces;
use torus_core::limits::FUSE_IN_FLIGHT_REQUESTS_MAX;

/// Carries out jobs until there can be no more.
pub(super) async fn serve<D: BlockDevice>(device: Rc<D>, mut jobs: mpsc::Receiver<Job>) {
    let device = &*device;
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            job = jobs.recv(), if running.len() < usize::from(FUSE_IN_FLIGHT_REQUESTS_MAX) => match job {
                Some(job) => running.push(carry_out(device, job)),
                None => break,
            },
            Some(()) = running.next(), if !running.is_empty() => {}
        }
    }
    while running.next().await.is_some() {}
}

async fn carry_out<D: BlockDevice>(device: &D, job: Job) {
    match job {
        Job::Read { offset, len, answer } => match read(device, offset, len).await {
            Ok(pieces) => answer.data(&pieces.iter().map(|piece| &piece[..]).collect::<SmallVec<[_; 8]>>()),
            Err(error) => fail("read", &error, answer),
        },
        Job::Write { offset, data, answer } => {
            let len = data.len() as u32;
            match device.write(offset, smallvec![data], false).await {
                Ok(()) => answer.data(&[&wire::written(len)]),
                Err(error) => fail("write", &error, answer),
            }
        }
        Job::Flush { answer } => done("flush", device.flush().await, answer),
        Job::Trim { offset, len, answer } => done("trim", device.trim(offset, len, false).await, answer),
        Job::Zero { offset, len, no_hole, answer } => {
            done("zero", device.write_zeroes(offset, len, no_hole, false).await, answer);
        }
        Job::Look(look, answer) => {
            let info = device.info();
            look.answer(info.size_bytes, info.read_only, answer);
        }
    }
}

/// What is there of a range: a file ends where it ends.
async fn read<D: BlockDevice>(device: &D, offset: u64, len: u32) -> Result<Pieces, IoError> {
    let there = device.info().size_bytes.saturating_sub(offset).min(len.into());
    match there {
        0 => Ok(Pieces::new()),
        there => device.read(offset, there as u32).await,
    }
}

fn done(what: &str, result: Result<(), IoError>, answer: Answer) {
    match result {
        Ok(()) => answer.done(),
        Err(error) => fail(what, &error, answer),
    }
}

fn fail(what: &str, error: &IoError, answer: Answer) {
    tracing::debug!(what, "a request failed: {error}");
    match error.kind {
        IoErrorKind::ShuttingDown => answer.ended(),
        kind => answer.error(errno(kind)),
    }
}
