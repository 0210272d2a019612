//! What is kept in the metadata store, and the one narrow port to it.
//!
//! A store is a set of keys with revisions: get, list, watch, a transaction that compares and writes, leases. Everything
//! that must not go wrong across machines is a compare-and-swap here ([`Txn`]), a fenced append, or a copy of an immutable
//! extent. All volume and ring logic is plain functions above the port ([`keys`], [`docs`]), so that the `etcd` and the
//! `embedded` store, and the simulated one, cannot differ in it.
//!
//! etcd holds O(volumes + agents), never O(blocks): see [`keys`] for every key there is.

pub mod docs;
pub mod keys;
mod port;

pub use port::{
    BoxFuture, Change, Compare, Entry, LeaseId, MetaError, MetaOp, MetaReply, MetadataStore, Revision, Txn, Watch,
    WatchEvent, Write,
};
