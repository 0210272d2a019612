//! Disks: preallocated files and raw partitions, opened for direct I/O, driven by io_uring or by threads.
//!
//! [`Disk`] carries out what `torus_core::member` asks of a disk: commits (write all, make durable, then report) and
//! reads. It decides nothing: a failed operation is reported, never repeated. It knows no runtime either; its
//! descriptor is polled by whoever drives it.
//!
//! | module | what it does |
//! |---|---|
//! | [`buffer`] | aligned memory that is pooled and becomes `Bytes` without a copy |
//! | [`open`] | finding, making, locking and measuring a disk |
//! | `gather` | few device writes from many |
//! | `uring`, `threads` | the two ways to have the kernel do it, with one behaviour |
//! | [`scan`] | start-up reads, ahead of who asks |
//!
//! This is the only crate of the project with `unsafe` code, and it is in `uring` alone: handing the kernel memory that
//! must outlive the request.

pub mod buffer;
mod disk;
mod errors;
mod gather;
pub mod open;
mod pace;
pub mod scan;
mod signal;
mod threads;
mod uring;

pub use buffer::{AlignedBuf, BufferPool};
pub use disk::Disk;
pub use open::{DiskOptions, Engine, Fill, OpenError};
pub use scan::Scan;
