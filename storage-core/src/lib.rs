//! The decisions of Torus, with no I/O.
//!
//! Everything that must be right lives here as state machines of the shape
//! `step(&mut self, now, event, &mut effects)`: no await, no clock, no thread, no file, no hash order. A driver (in
//! `torus-agent`) owns each machine and carries out its effects on real disks and sockets; `torus-sim` does the same
//! in a seeded world with faults. Both run exactly this code.
//!
//! From the bottom up:
//!
//! | module | what it decides |
//! |---|---|
//! | [`ids`], [`limits`], [`time`] | the vocabulary |
//! | [`format`] | bytes on disk: frames, slots |
//! | [`ring`] | which agents a key belongs to |
//! | [`peer`] | what an owner and an agent say to each other |
//! | [`tdp`] | the bytes in which they say it |
//! | [`member`] | an agent's half of an extent: append, fence, seal, read, restart |
//! | [`meta`] | what is kept in etcd, and under which conditions it changes |
//! | [`log`] | an owner's half: the replicated single-writer log, its recovery and its repair |
//! | [`block`] | a block volume on top of a log: address map, reads, garbage collection, checkpoints |
//! | [`nbd`] | the NBD protocol's bytes |
//!
//! `log` and everything below it carry records of a kind they do not look into; what makes a volume a *block* volume
//! is in `block` alone.

pub mod block;
pub mod format;
pub mod ids;
pub mod limits;
pub mod log;
pub mod member;
pub mod meta;
pub mod mutation;
pub mod nbd;
pub mod peer;
pub mod ring;
pub mod tdp;
pub mod time;
