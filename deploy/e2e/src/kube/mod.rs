//! A real Kubernetes on this machine, for tests and for play.
//!
//! Kubernetes, helm and the CSI sidecars are built from Go modules ([`go`]). [`ControlPlane`] is one without nodes, up in
//! about five seconds and without root. [`Cluster`] has nodes as well, each in namespaces of its own.
//!
//! Invariants:
//! 1. No port, address range, namespace, bridge or group has a fixed name: several run at once.
//! 2. Everything is removed when its handle is dropped; what a killed run has left, by the next run ([`run`]).
//! 3. Only what this module has started is ended, by its id and the time of its start, or by the control group it is in.

mod cluster;
mod control_plane;
pub mod go;
pub mod image;
mod kernel;
pub mod kubectl;
mod network;
pub mod node;
pub mod objects;
mod pki;
pub mod progress;
pub mod residue;
pub mod run;
mod shell;
pub mod torus;

pub use cluster::{Cluster, Options};
pub use control_plane::{ControlPlane, Place};
pub use kubectl::Kubectl;
pub use network::Network;
pub use node::Node;
pub use pki::Pki;
pub use progress::Progress;
pub use shell::thrice;
