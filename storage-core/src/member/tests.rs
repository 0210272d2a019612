//! Tests of a whole member over disks that keep exactly what a real one must keep.

mod serve;
mod world;
