//! The holder: a small process that keeps descriptors for agents, so that devices outlive them.
//!
//! ```text
//!   agent ── keep NAME + descriptor ──▶ holder          while the agent lives, it attends to it
//!     ✝                                    │             its connection closes: nobody does
//!   next agent ── take NAME ──────────────▶│             the same descriptor, and it attends to it now
//!                                          ▼
//!                      nobody came in time: closed, and with the last descriptor the device ends with errors
//! ```
//!
//! A FUSE filesystem ends with the last descriptor of its connection, and an agent's descriptors end with its process: with its
//! pod, on Kubernetes. The holder is a process of its own, in a pod of its own, that is not replaced when agents are. It does
//! nothing else: no I/O, no metadata, no configuration. When it ends before the agents, they hand their descriptors to the next
//! one; devices are lost only where both are gone at once.
//!
//! # Messages
//! On a unix socket whose messages keep their borders (`SOCK_SEQPACKET`, mode 0600), each question answered by one message:
//!
//! | question | answer | |
//! |---|---|---|
//! | `keep NAME`, with a descriptor | `ok`, or `no REASON` | it is kept, and this connection attends to it |
//! | `take NAME` | `ok`, with the descriptor, or `none` | this connection attends to it |
//! | `has NAME` | `ok` or `none` | |
//! | `drop NAME` | `ok` | it is closed |
//!
//! # Invariants
//! 1. What nobody attends to is closed after the dead time: no request to it waits for ever.
//! 2. At most [`HELD_MAX`](store::HELD_MAX) descriptors are kept and as many connections served; one more is refused.
//! 3. A client that says something else is cut off, and nothing else happens.

mod client;
mod message;
mod server;
mod store;

pub use client::{Connection, HolderError};
pub use server::serve;

use std::time::Duration;

/// Where it is, unless somebody wants otherwise.
pub const SOCKET: &str = "/run/torus/holder.sock";
/// How long a descriptor is kept that nobody attends to: as long as a kernel NBD device waits.
pub const DEAD_TIME: Duration = Duration::from_secs(300);
