//! Disks: see the crate description.
