//! CSI on a real host: a controller, a node plugin, a node service, agents with real files, FUSE, loop devices and filesystems. It
//! takes root.

#![allow(clippy::unwrap_used, reason = "a step that fails here fails the test")]

mod hostile;
mod life;
mod order;
mod world;
