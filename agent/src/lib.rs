//! The Torus agent: see the crate description.

pub mod busy;
pub mod clock;
pub mod device;
pub mod fuse;
pub mod grpc;
pub mod holder;
pub mod kernel_nbd;
pub mod listen;
pub mod metadata;
pub mod nbd;
pub mod node;
pub mod owner;
pub mod process;
pub mod serving;
pub mod storage;
pub mod tdp;
pub mod units;
