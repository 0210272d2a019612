//! The Torus agent: see the crate description.

pub mod device;
pub mod metadata;
