//! TDP on sockets: what [`torus_core::tdp`] says in bytes, carried over TCP; and the same without bytes between an owner
//! and the agent of its own process ([`LocalDoor`]).
//!
//! Each end lives on one thread, as tasks of a `LocalSet`, beside the task that owns the core they serve: within an end, a
//! request or an answer never changes threads. A connection's task only moves bytes between its socket and a queue; the core's
//! task takes everything that has come in from all connections, steps the core, queues what is to be said, and then
//! writes once per connection. tokio runs tasks in the order in which they were woken, so by the time the core's task
//! runs, everything that was ready in this turn has been read: batches form by themselves under load, and a lone
//! request waits for nobody.
//!
//! 1. What a connection may hold in memory is bounded (`TDP_INFLIGHT_BYTES_MAX`): beyond it, it is not read.
//! 2. The end of a connection is told at once: everything outstanding on it is then unanswered.
//! 3. Nothing here retries a request. Whether that is right only the core knows.

mod client;
mod line;
mod link;
mod local;
mod memory;
mod server;
#[cfg(test)]
mod tests;

pub use client::{PeerEvent, Peers};
pub use local::{Doorway, LocalDoor};
pub use memory::Aligned;
pub use server::{Server, ServerStats};
