//! An agent's data plane: owners' connections, the [`Member`] that decides, the disks that keep. One thread.
//!
//! A turn takes every request and every disk completion that is there, steps the member through them, hands each disk
//! its operations in one system call, and writes to each connection once. Everything that came in during a turn shares
//! the next commit. Nothing is polled: an idle plane sleeps in `epoll`.
//!
//! 1. What the member says is sent after what it wants of the disks is under way, never before.
//! 2. The thread blocks for nothing but `epoll`, and for a small operation of an only disk while it has nothing else to do
//!    ([`alone`]). Metadata, metrics, health: all that lives on the control side, which
//!    asks here by [`Command`] and gives up on an answer rather than wait.

mod alone;
mod plane;
mod report;

pub use plane::{Command, Plane, PlaneEnd};
pub use report::{DiskReport, Report};
