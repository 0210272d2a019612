//! The operator, the schemas and the chart against a real apiserver, controller manager and scheduler; with a real etcd and real agents
//! on the side of the metadata.
//!
//! There are no kubelets; [`kubelets`] stand in for them where a test says so. What waits asks the apiserver itself ([`client`]): a
//! `kubectl` for each question would cost more than all the rest. Each test has a Kubernetes of its own, and as many run at a time as there
//! are processors; the longest, [`changes`], sorts among the first and so begins early.

#![allow(clippy::unwrap_used, reason = "a step that fails here fails the test")]

mod asked;
mod changes;
mod chart;
mod client;
mod killed;
mod kubelets;
mod many;
mod objects;
mod refused;
mod rights;
mod schema;
mod world;
