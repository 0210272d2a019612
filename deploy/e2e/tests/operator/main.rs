//! The operator, the schemas and the chart against a real apiserver, controller manager and scheduler; with a real etcd and real agents
//! on the side of the metadata.
//!
//! There are no kubelets: [`world::World::settle`] stands in for them where a test says so, by writing that pods are ready, and by taking
//! away pods that were deleted. What pods really do is the business of the scenarios on real nodes.

#![allow(clippy::unwrap_used, reason = "a step that fails here fails the test")]

mod chart;
mod killed;
mod many;
mod objects;
mod refused;
mod rights;
mod schema;
mod walk;
mod world;
