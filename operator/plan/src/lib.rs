//! What the operator decides, as pure functions: no client, no clock, no chance, no hash order.
//!
//! A crate of its own, so that none of that can come in by the way, and so that all of it can be tried in a second: what objects
//! are to be ([`objects`]), what is to be done for a TorusCluster ([`cluster`]) and for a TorusVolume ([`volume`]), what a dead
//! node is ([`failover`]), who leads ([`lease`]), how the data is ([`health`]), what a status says ([`status`]), what is told of it
//! ([`story`]). `torus-operator` carries it out.

pub mod cluster;
pub mod contract;
pub mod failover;
pub mod health;
pub mod lease;
pub mod objects;
pub mod status;
pub mod story;
pub mod time;
pub mod volume;
