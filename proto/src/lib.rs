//! Torus's gRPC services, and those of others that it serves: control only. Data travels by TDP (see `docs/PROTOCOL.md`).

#![allow(missing_docs, reason = "generated from commented .proto files")]

/// Control of one agent.
pub mod agent {
    tonic::include_proto!("torus.agent.v1");
}

/// Volumes on one host.
pub mod node {
    tonic::include_proto!("torus.node.v1");
}

/// The Container Storage Interface, as far as Torus serves it.
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// How a plugin makes itself known to a kubelet.
pub mod registration {
    tonic::include_proto!("pluginregistration");
}
