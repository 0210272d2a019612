//! Torus's gRPC services: control only. Data travels by TDP (see `docs/PROTOCOL.md`).

#![allow(missing_docs, reason = "generated from commented .proto files")]

/// Control of one agent.
pub mod agent {
    tonic::include_proto!("torus.agent.v1");
}
