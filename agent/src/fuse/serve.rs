//! The device's side: jobs carried out, many at a time, and answered.

use super::errno;
use super::filesystem::Job;
use crate::device::{BlockDevice, IoError};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use smallvec::smallvec;
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
        Job::Read { offset, len, reply } => match read(device, offset, len).await {
            Ok(pieces) => match &pieces[..] {
                [piece] => reply.data(piece),
                pieces => reply.data(&pieces.concat()),
            },
            Err(error) => reply.error(told("read", &error)),
        },
        Job::Write { offset, data, reply } => {
            let len = data.len() as u32;
            match device.write(offset, smallvec![data], false).await {
                Ok(()) => reply.written(len),
                Err(error) => reply.error(told("write", &error)),
            }
        }
        Job::Flush { reply } => done("flush", device.flush().await, reply),
        Job::Trim { offset, len, reply } => done("trim", device.trim(offset, len, false).await, reply),
        Job::Zero { offset, len, no_hole, reply } => {
            done("zero", device.write_zeroes(offset, len, no_hole, false).await, reply);
        }
        Job::Look(reply) => {
            let info = device.info();
            reply.answer(info.size_bytes, info.read_only);
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

fn done(what: &str, result: Result<(), IoError>, reply: fuser::ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(told(what, &error)),
    }
}

fn told(what: &str, error: &IoError) -> fuser::Errno {
    tracing::debug!(what, "a request failed: {error}");
    errno(error.kind)
}
