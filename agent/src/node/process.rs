//! Processes that serve volumes: what they are to the kernel, and how they are ended.

use super::record::{Record, Records, Role};
use super::{NodeError, POLL};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, configure_io_flusher_behavior, pidfd_open, pidfd_send_signal};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How unlikely the kernel is to choose a process that serves devices when memory runs out.
const OOM_SCORE: &str = "-900";

/// Tells the kernel that this process serves block devices: it must not wait for its own devices to be written to when it
/// needs memory, and should not be killed first when there is none. Call it before threads are started. What the kernel
/// does not permit is left out.
pub fn prepare() {
    if let Err(error) = configure_io_flusher_behavior(true) {
        tracing::debug!("cannot become a flusher of I/O (CAP_SYS_RESOURCE): {error}");
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        tracing::debug!("cannot lower the chance of being killed for memory: {error}");
    }
}

fn has_ended(process: &OwnedFd) -> bool {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&at_once)), Ok(1..))
}

/// Ends the process in the background that serves a volume, in order, and waits for that.
///
/// # Errors
/// When it is an agent's, cannot be told, or takes longer than `limit`.
pub async fn end(records: &Records, record: &Record, limit: Duration) -> Result<(), NodeError> {
    let pid = record.keeper.pid;
    if record.keeper.role == Role::Agent {
        return Err(NodeError::OfAnAgent { volume: record.name.clone(), pid });
    }
    let signal = |source: io::Error| NodeError::Signal { volume: record.name.clone(), pid, source };
    let gone = || signal(io::Error::other("its number is not seen here: is it in another container?"));
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
    let process = pidfd_open(number, PidfdFlags::empty()).map_err(|error| signal(error.into()))?;
    // Looked at after the descriptor was taken: it is this process and will be no other.
    if !record.keeper.is_this_one() {
        return Err(gone());
    }
    pidfd_send_signal(&process, Signal::TERM).map_err(|error| signal(error.into()))?;
    let deadline = Instant::now() + limit;
    // Until it has ended it may still remove what is of no use any more, and must not meet the next one's.
    while records.is_served(record.volume) || !has_ended(&process) {
        if Instant::now() >= deadline {
            let log = records.place(record.volume).join("log");
            return Err(NodeError::Slow { volume: record.name.clone(), pid, limit, log });
        }
        sleep(POLL).await;
    }
    Ok(())
}
