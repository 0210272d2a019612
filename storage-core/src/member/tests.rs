//! Tests of a whole member over disks that keep exactly what a real one must keep.

mod golden;
mod random;
mod restart;
mod serve;
mod world;
