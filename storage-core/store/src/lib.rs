//! Disks: see the crate description.
pub mod buffer;
