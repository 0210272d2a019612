//! Real processes for tests and benchmarks.
//!
//! What is here starts programs, waits for conditions, kills by process id, and measures. It knows nothing of Torus's
//! insides: it sees what a person at a terminal would.
//!
//! Invariants:
//! 1. Nothing outlives its handle: dropping a [`process::Process`] kills it and collects it. Where nothing is dropped, as in a test that
//!    is killed, [`guard`] kills it.
//! 2. A wait is for a condition, has a limit, and ends at once, with the end of its log, when the process it is for dies.
//! 3. Processes are killed by the id of a child that has not been collected yet, so never by an id that is another's; those
//!    that `torusctl attach` leaves in the background, by the id in its record where the program is the one that was built.

pub mod bad_disk;
pub mod binaries;
pub mod cache;
pub mod cluster;
pub mod etcd;
pub mod fio;
pub mod flexvolume;
pub mod guard;
pub mod guest;
pub mod http;
pub mod kube;
pub mod load;
pub mod nbd;
pub mod node;
pub mod pauses;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod scenarios;
pub mod scratch;
pub mod stalls;
pub mod usage;
pub mod writer;
