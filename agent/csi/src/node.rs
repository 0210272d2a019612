//! The node plugin: what the kubelet asks for, asked of the agent on this host.

use crate::TOPOLOGY_CLUSTER;
use crate::capability::{Access, Shape};
use crate::identity::Health;
use std::collections::HashMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, async_trait};
use torus_agent::grpc::Failure;
use torus_core::ids::VolumeId;
use torus_proto::csi::node_server::Node;
use torus_proto::csi::node_service_capability::{self, Rpc, rpc};
use torus_proto::csi::volume_usage::Unit;
use torus_proto::csi::{
    NodeExpandVolumeRequest, NodeExpandVolumeResponse, NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse,
    NodeGetInfoRequest, NodeGetInfoResponse, NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse,
    NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
    NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest,
    NodeUnstageVolumeResponse, Topology, VolumeCondition, VolumeUsage,
};
use torus_proto::node::node_client::NodeClient;
use torus_proto::node::{
    AttachRequest, DetachRequest, GrowRequest, InfoReply, InfoRequest, MountRequest, StatusRequest, UnmountRequest,
};

/// How long the agent's socket may take to accept.
const CONNECT: Duration = Duration::from_secs(5);
/// What is advertised.
const CAPABILITIES: [rpc::Type; 5] = [
    rpc::Type::StageUnstageVolume,
    rpc::Type::GetVolumeStats,
    rpc::Type::ExpandVolume,
    rpc::Type::VolumeCondition,
    rpc::Type::SingleNodeMultiWriter,
];

/// The node service of CSI.
#[derive(Clone)]
pub struct Plugin {
    agent: Channel,
    socket: PathBuf,
    /// What the agent must say that this node is called.
    name: Option<String>,
}

#[async_trait]
impl Health for Plugin {
    async fn is_ready(&self) -> bool {
        self.info().await.is_ok()
    }
}

impl Plugin {
    /// One on the node service at `socket`, which need not be there yet.
    ///
    /// # Errors
    /// When that is no path for a socket.
    pub fn new(socket: &Path, name: Option<String>) -> Result<Self, String> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()));
        let endpoint = endpoint.map_err(|error| format!("{} is no path for a socket: {error}", socket.display()))?;
        Ok(Self { agent: endpoint.connect_timeout(CONNECT).connect_lazy(), socket: socket.into(), name })
    }

    fn agent(&self) -> NodeClient<Channel> {
        NodeClient::new(self.agent.clone())
    }

    async fn info(&self) -> Result<InfoReply, Status> {
        let asked = self.agent().info(InfoRequest {}).await;
        let info = asked.map_err(|status| self.failed(status))?.into_inner();
        match &self.name {
            Some(name) if *name != info.node => Err(Failure::not_now(format!(
                "the agent on this host calls it {:?}, and not {name:?}: give both the same --node-name",
                info.node
            ))
            .into()),
            _ => Ok(info),
        }
    }

    /// The agent's own words, or ours where it is not there, or went away in the middle of a call: then nothing is known of what
    /// became of that, and the kubelet has to ask again. A status that was made on this side has a source, its connection's end.
    fn failed(&self, status: Status) -> Status {
        let is_its_own = status.code() != Code::Unavailable || status.message().contains("volume");
        if is_its_own && status.source().is_none() {
            return status;
        }
        let text = format!(
            "the agent at {} does not answer ({}): start torus-agent with role `node` on this host",
            self.socket.display(),
            status.message()
        );
        Status::unavailable(text)
    }
}

fn required<'a>(what: &str, text: &'a str) -> Result<&'a str, Status> {
    if text.is_empty() { Err(Failure::invalid(format!("the {what} is missing")).into()) } else { Ok(text) }
}

/// The volume of a handle, which is its id and nothing else: the agent would take a name as well.
fn volume(handle: String) -> Result<String, Status> {
    match handle.parse::<VolumeId>() {
        Ok(_) => Ok(handle),
        Err(_) => {
            let shown: String = handle.chars().take(64).collect();
            Err(Failure::not_found(format!("there is no volume {shown:?}: a handle is 16 hexadecimal digits")).into())
        }
    }
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[async_trait]
impl Node for Plugin {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let asked = request.into_inner();
        required("volume's id", &asked.volume_id)?;
        required("staging target path", &asked.staging_target_path)?;
        let access = Access::read(asked.volume_capability.as_ref())?;
        let volume_id = volume(asked.volume_id)?;
        let (directory, filesystem, mount_flags) = match access.shape {
            Shape::Block => Default::default(),
            Shape::Mount { filesystem, flags } => (asked.staging_target_path, filesystem, flags),
        };
        let attach = AttachRequest {
            volume: volume_id,
            read_only: access.read_only,
            must_be_published: true,
            directory,
            filesystem,
            mount_flags,
            make_directory: false,
        };
        self.agent().attach(attach).await.map_err(|status| self.failed(status))?;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        let asked = request.into_inner();
        required("volume's id", &asked.volume_id)?;
        required("staging target path", &asked.staging_target_path)?;
        let volume_id = match volume(asked.volume_id) {
            // What no volume has was never staged.
            Err(status) if status.code() == Code::NotFound => return Ok(Response::new(NodeUnstageVolumeResponse {})),
            found => found?,
        };
        let detach = DetachRequest { volume: volume_id, directory: asked.staging_target_path };
        self.agent().detach(detach).await.map_err(|status| self.failed(status))?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let asked = request.into_inner();
        required("volume's id", &asked.volume_id)?;
        required("target path", &asked.target_path)?;
        let access = Access::read(asked.volume_capability.as_ref())?;
        required("staging target path", &asked.staging_target_path)?;
        let volume_id = volume(asked.volume_id)?;
        let mount = MountRequest {
            volume_id,
            staging: if access.shape == Shape::Block { String::new() } else { asked.staging_target_path },
            target: asked.target_path,
            read_only: asked.readonly || access.read_only,
            alone: access.alone,
        };
        self.agent().mount(mount).await.map_err(|status| self.failed(status))?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        let asked = request.into_inner();
        required("volume's id", &asked.volume_id)?;
        required("target path", &asked.target_path)?;
        let volume_id = volume(asked.volume_id)?;
        let unmount = UnmountRequest { volume_id, target: asked.target_path };
        self.agent().unmount(unmount).await.map_err(|status| self.failed(status))?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Result<Response<NodeGetVolumeStatsResponse>, Status> {
        let asked = request.into_inner();
        required("volume's id", &asked.volume_id)?;
        required("volume path", &asked.volume_path)?;
        let volume_id = volume(asked.volume_id)?;
        let question = StatusRequest { volume: volume_id, path: asked.volume_path };
        let found = self.agent().status(question).await.map_err(|status| self.failed(status))?.into_inner();
        let usage = match found.usage {
            Some(used) => vec![
                VolumeUsage {
                    available: number(used.bytes_available),
                    total: number(used.bytes_total),
                    used: number(used.bytes_used),
                    unit: Unit::Bytes.into(),
                },
                VolumeUsage {
                    available: number(used.inodes_free),
                    total: number(used.inodes_total),
                    used: number(used.inodes_total.saturating_sub(used.inodes_free)),
                    unit: Unit::Inodes.into(),
                },
            ],
            None => vec![VolumeUsage {
                total: number(found.size_bytes),
                unit: Unit::Bytes.into(),
                ..VolumeUsage::default()
            }],
        };
        let abnormal = !found.abnormal.is_empty();
        let message = if abnormal { found.abnormal } else { "the volume is served".into() };
        let volume_condition = Some(VolumeCondition { abnormal, message });
        Ok(Response::new(NodeGetVolumeStatsResponse { usage, volume_condition }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Result<Response<NodeExpandVolumeResponse>, Status> {
        let asked = request.into_inner();
        required("volume's id", &asked.volume_id)?;
        required("volume path", &asked.volume_path)?;
        let volume_id = volume(asked.volume_id)?;
        let grow = GrowRequest { volume_id, path: asked.volume_path };
        let grown = self.agent().grow(grow).await.map_err(|status| self.failed(status))?.into_inner();
        Ok(Response::new(NodeExpandVolumeResponse { capacity_bytes: number(grown.size_bytes) }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let capability = |kind: rpc::Type| NodeServiceCapability {
            r#type: Some(node_service_capability::Type::Rpc(Rpc { r#type: kind.into() })),
        };
        Ok(Response::new(NodeGetCapabilitiesResponse {
            capabilities: CAPABILITIES.into_iter().map(capability).collect(),
        }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        let info = self.info().await?;
        let segments = HashMap::from([(TOPOLOGY_CLUSTER.to_owned(), info.cluster)]);
        Ok(Response::new(NodeGetInfoResponse {
            node_id: info.node,
            max_volumes_per_node: 0,
            accessible_topology: Some(Topology { segments }),
        }))
    }
}
