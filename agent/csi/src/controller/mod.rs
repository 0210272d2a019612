//! The controller: volumes made, deleted, grown, listed, and published to nodes.
//!
//! All state is in the metadata store, and every change there is a transaction, so that any number of controllers may run,
//! and be killed, at any time.
//!
//! Here: what each call comes to. How they come is in `service`, what they ask for in `asked`.

mod asked;
mod service;
#[cfg(test)]
mod tests;

use crate::TOPOLOGY_CLUSTER;
use crate::capability::{Access, Shape};
use crate::identity::Health;
use crate::parameters::Parameters;
use asked::{Size, is_here, reachable, same};
use std::collections::HashMap;
use std::sync::Arc;
use tonic::{Code, Response, Status, async_trait};
use torus_agent::busy::Busy;
use torus_agent::grpc::Failure;
use torus_agent::metadata::{
    self, NewVolume, VolumeError, VolumeInfo, create_volume, find_volume, list_agents, load_cluster, load_ring,
    load_volume, publish_volume, resize_volume,
};
use torus_agent::node::Filesystem;
use torus_agent::owner::delete_volume;
use torus_core::ids::{BLOCK_BYTES, Lba, VolumeId};
use torus_core::limits::VOLUME_BLOCKS_MAX;
use torus_core::meta::MetadataStore;
use torus_core::meta::docs::{ClusterDoc, PublishedDoc};
use torus_core::peer::FreeSpace;
use torus_proto::csi::validate_volume_capabilities_response::Confirmed;
use torus_proto::csi::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerGetVolumeResponse,
    ControllerPublishVolumeRequest, ControllerPublishVolumeResponse, CreateVolumeRequest, CreateVolumeResponse,
    DeleteVolumeResponse, GetCapacityRequest, GetCapacityResponse, ListVolumesRequest, ListVolumesResponse, Topology,
    ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse, Volume, controller_get_volume_response,
    list_volumes_response,
};

/// What begins a token of `ListVolumes`; the name of the volume that came last follows.
const TOKEN: &str = "after:";

/// The controller service.
#[derive(Clone)]
pub struct Controller {
    store: Arc<dyn MetadataStore>,
    busy: Busy<String>,
}

#[async_trait]
impl Health for Controller {
    async fn is_ready(&self) -> bool {
        load_cluster(&*self.store).await.is_ok()
    }
}

impl Controller {
    /// One on `store`.
    #[must_use]
    pub fn new(store: Arc<dyn MetadataStore>) -> Self {
        Self { store, busy: Busy::default() }
    }

    /// Carries `call` out, alone for the volume `key`, and to its end even if the caller gives up.
    async fn alone<T: Send + 'static>(
        &self,
        key: &str,
        call: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let Some(underway) = self.busy.begin(&key.to_owned()) else {
            return Err(Failure::underway(format_args!("volume {key:?}")).into());
        };
        let task = tokio::spawn(async move {
            let _underway = underway;
            call.await
        });
        let result = task.await.map_err(|error| Status::internal(format!("the call ended by a defect: {error}")))?;
        Ok(Response::new(result?))
    }

    async fn create(&self, name: String, asked: CreateVolumeRequest) -> Result<CreateVolumeResponse, Failure> {
        let store = &*self.store;
        let accesses = Access::read_all(&asked.volume_capabilities)?;
        if asked.volume_content_source.is_some() {
            return Err(Failure::invalid(
                "volumes are not made from snapshots or other volumes yet: leave dataSource out",
            ));
        }
        if !asked.mutable_parameters.is_empty() {
            return Err(Failure::invalid(
                "no parameter of a volume can be changed later: use no VolumeAttributesClass",
            ));
        }
        let parameters = Parameters::read(&asked.parameters)?;
        let mut size = Size::read(asked.capacity_range.as_ref())?;
        let is_xfs = |access: &Access| matches!(&access.shape, Shape::Mount { filesystem, .. } if filesystem == "xfs");
        if accesses.iter().any(is_xfs) || parameters.filesystem == Some(Filesystem::Xfs) {
            size.for_xfs()?;
        }
        let cluster = load_cluster(store).await?;
        reachable(&cluster, asked.accessibility_requirements.as_ref())?;
        let ring = load_ring(store).await?;
        let usual = ring.map_or(cluster.replicas, |ring| ring.doc.now.replicas);
        let replicas = parameters.replicas.unwrap_or(usual);
        let new = NewVolume {
            name: name.clone(),
            size: Lba(size.blocks),
            replicas,
            min_replicas: parameters.min_replicas.unwrap_or(replicas.saturating_sub(1).max(1)),
            ack_mode: parameters.ack_mode,
        };
        self.fits(&new.name, new.size, new.replicas, &cluster).await?;
        let id = match create_volume(store, new.clone()).await {
            Err(VolumeError::Exists { id, .. }) => id,
            created => created?,
        };
        let info = load_volume(store, id).await?.ok_or_else(|| VolumeError::NotFound(name.clone()))?;
        let doc = &info.meta.doc;
        if doc.deleting {
            return Err(Failure::Refused(Code::Aborted, format!("volume {name:?} is being deleted: try again later")));
        }
        same(doc, &new, &size)?;
        Ok(CreateVolumeResponse { volume: Some(volume(&info, &cluster)) })
    }

    /// Volumes are thin, but one that could never be filled is a mistake.
    async fn fits(&self, name: &str, size: Lba, replicas: u8, cluster: &ClusterDoc) -> Result<(), Failure> {
        let agents = list_agents(&*self.store).await?;
        // What an agent that is down has, nobody knows.
        if agents.is_empty() || agents.iter().any(|agent| agent.alive.is_none()) {
            return Ok(());
        }
        let total: FreeSpace = agents.iter().filter_map(|agent| Some(agent.alive.as_ref()?.space)).sum();
        let room = |slots: u32| u64::from(slots) * u64::from(cluster.extent_blocks);
        let copies = u64::from(replicas.max(1));
        if size.0 > room(total.total) / copies {
            return Err(Failure::Refused(
                Code::OutOfRange,
                format!(
                    "volume {name:?} of {} bytes in {copies} copies is larger than the pool, which has {} bytes in all, \
                     of which {} are free: ask for less, or add disks",
                    size.0 * BLOCK_BYTES,
                    room(total.total) * BLOCK_BYTES,
                    room(total.free) * BLOCK_BYTES
                ),
            ));
        }
        Ok(())
    }

    async fn delete(&self, handle: &str) -> Result<DeleteVolumeResponse, Failure> {
        let store = &*self.store;
        let Ok(id) = handle.parse::<VolumeId>() else { return Ok(DeleteVolumeResponse {}) };
        let Some(info) = load_volume(store, id).await? else { return Ok(DeleteVolumeResponse {}) };
        let name = &info.meta.doc.name;
        if let Some(published) = &info.published {
            let node = &published.node;
            return Err(Failure::not_now(format!("volume {name:?} is published to node {node:?}: unpublish it first")));
        }
        let removed = delete_volume(store, &info, &[], false).await.map_err(Failure::from)?;
        let left: Vec<_> = removed
            .iter()
            .filter_map(|agent| Some(format!("agent {:?} {}", agent.name, agent.left.as_ref()?)))
            .collect();
        if left.is_empty() {
            return Ok(DeleteVolumeResponse {});
        }
        let sentence = format!(
            "volume {name:?} is marked for deletion, but not gone: {}. It is tried again; if an agent will never come \
             back, run `torusctl volume delete {name} --without AGENT`",
            left.join("; ")
        );
        Err(Failure::Refused(Code::Unavailable, sentence))
    }

    async fn publish(&self, asked: ControllerPublishVolumeRequest) -> Result<ControllerPublishVolumeResponse, Failure> {
        let access = Access::read(asked.volume_capability.as_ref())?;
        let info = self.find(&asked.volume_id).await?;
        let to = PublishedDoc { node: asked.node_id, read_only: asked.readonly || access.read_only };
        publish_volume(&*self.store, info.id, &to).await?;
        Ok(ControllerPublishVolumeResponse::default())
    }

    async fn expand(&self, asked: ControllerExpandVolumeRequest) -> Result<ControllerExpandVolumeResponse, Failure> {
        let range = asked.capacity_range.ok_or_else(|| Failure::invalid("the volume's new size is missing"))?;
        if let Some(capability) = &asked.volume_capability {
            Access::read(Some(capability))?;
        }
        let size = Size::read(Some(&range))?;
        let info = self.find(&asked.volume_id).await?;
        let now = info.meta.doc.size.0;
        if size.blocks_max.is_some_and(|max| max < now) {
            let name = &info.meta.doc.name;
            let text =
                format!("volume {name:?} has {} bytes, which is above the limit, and cannot shrink", now * BLOCK_BYTES);
            return Err(Failure::Refused(Code::OutOfRange, text));
        }
        // Who says only how large it may be asks for nothing.
        let wanted = if range.required_bytes == 0 { now } else { size.blocks };
        if wanted > now {
            let doc = &info.meta.doc;
            let cluster = load_cluster(&*self.store).await?;
            self.fits(&doc.name, Lba(wanted), doc.replicas, &cluster).await?;
        }
        // Larger already: nothing is left to do.
        let grown = resize_volume(&*self.store, info.id, Lba(wanted.max(now))).await?;
        Ok(ControllerExpandVolumeResponse { capacity_bytes: bytes(grown.size), node_expansion_required: true })
    }

    async fn validate(
        &self,
        asked: ValidateVolumeCapabilitiesRequest,
    ) -> Result<ValidateVolumeCapabilitiesResponse, Failure> {
        if asked.volume_capabilities.is_empty() {
            return Err(Failure::invalid("the volume's capabilities are missing"));
        }
        let info = self.find(&asked.volume_id).await?;
        let checked = || {
            Access::read_all(&asked.volume_capabilities)?;
            let parameters = Parameters::read(&asked.parameters)?;
            let doc = &info.meta.doc;
            let new = NewVolume {
                name: doc.name.clone(),
                size: doc.size,
                replicas: parameters.replicas.unwrap_or(doc.replicas),
                min_replicas: parameters.min_replicas.unwrap_or(doc.min_replicas),
                ack_mode: if asked.parameters.contains_key("ackMode") { parameters.ack_mode } else { doc.ack_mode },
            };
            same(doc, &new, &Size { blocks: doc.size.0, blocks_max: None })
        };
        Ok(match checked() {
            Ok(()) => ValidateVolumeCapabilitiesResponse {
                confirmed: Some(Confirmed {
                    volume_context: asked.volume_context,
                    volume_capabilities: asked.volume_capabilities,
                    parameters: asked.parameters,
                    mutable_parameters: HashMap::new(),
                }),
                message: String::new(),
            },
            Err(failure) => ValidateVolumeCapabilitiesResponse { confirmed: None, message: failure.to_string() },
        })
    }

    async fn list(&self, asked: ListVolumesRequest) -> Result<ListVolumesResponse, Failure> {
        let most = usize::try_from(asked.max_entries)
            .map_err(|_| Failure::invalid(format!("{} volumes cannot be listed: give 0 for all", asked.max_entries)))?;
        let after = match asked.starting_token.as_str() {
            "" => "",
            token => token.strip_prefix(TOKEN).filter(|name| metadata::check_name(name).is_ok()).ok_or_else(|| {
                Failure::Refused(Code::Aborted, "the starting token is none of ours: list from the beginning".into())
            })?,
        };
        let cluster = load_cluster(&*self.store).await?;
        let (mut volumes, _) = metadata::list_volumes(&*self.store).await?;
        volumes.retain(|info| info.meta.doc.name.as_str() > after && !info.meta.doc.deleting);
        let more = most > 0 && volumes.len() > most;
        if more {
            volumes.truncate(most);
        }
        let next = volumes.last().filter(|_| more).map(|last| format!("{TOKEN}{}", last.meta.doc.name));
        let entries = volumes.iter().map(|info| list_volumes_response::Entry {
            volume: Some(volume(info, &cluster)),
            status: Some(list_volumes_response::VolumeStatus {
                published_node_ids: nodes(info),
                volume_condition: None,
            }),
        });
        Ok(ListVolumesResponse { entries: entries.collect(), next_token: next.unwrap_or_default() })
    }

    async fn capacity(&self, asked: GetCapacityRequest) -> Result<GetCapacityResponse, Failure> {
        let parameters = Parameters::read(&asked.parameters)?;
        let cluster = load_cluster(&*self.store).await?;
        let none = GetCapacityResponse::default();
        let supported = asked.volume_capabilities.iter().all(|one| Access::read(Some(one)).is_ok());
        if !supported || asked.accessible_topology.is_some_and(|topology| !is_here(&cluster, &topology)) {
            return Ok(none);
        }
        let ring = load_ring(&*self.store).await?;
        let usual = ring.map_or(cluster.replicas, |ring| ring.doc.now.replicas);
        let copies = u64::from(parameters.replicas.unwrap_or(usual).max(1));
        let agents = list_agents(&*self.store).await?;
        let space: FreeSpace = agents.iter().filter_map(|agent| Some(agent.alive.as_ref()?.space)).sum();
        let free = u64::from(space.free) * u64::from(cluster.extent_blocks) / copies;
        Ok(GetCapacityResponse {
            available_capacity: bytes(Lba(free)),
            maximum_volume_size: Some(bytes(Lba(VOLUME_BLOCKS_MAX))),
            minimum_volume_size: None,
        })
    }

    async fn get(&self, handle: &str) -> Result<ControllerGetVolumeResponse, Failure> {
        let info = self.find(handle).await?;
        let cluster = load_cluster(&*self.store).await?;
        let published_node_ids = nodes(&info);
        let status = controller_get_volume_response::VolumeStatus { published_node_ids, volume_condition: None };
        Ok(ControllerGetVolumeResponse { volume: Some(volume(&info, &cluster)), status: Some(status) })
    }

    /// The volume of a handle: its id, and nothing else.
    async fn find(&self, handle: &str) -> Result<VolumeInfo, Failure> {
        let none = || Failure::from(VolumeError::NotFound(handle.chars().take(64).collect()));
        let id: VolumeId = handle.parse().map_err(|_| none())?;
        let info = find_volume(&*self.store, &id.to_string()).await?;
        if info.id == id { Ok(info) } else { Err(none()) }
    }
}

fn volume(info: &VolumeInfo, cluster: &ClusterDoc) -> Volume {
    let segments = HashMap::from([(TOPOLOGY_CLUSTER.to_owned(), cluster.id.to_string())]);
    Volume {
        capacity_bytes: bytes(info.meta.doc.size),
        volume_id: info.id.to_string(),
        accessible_topology: vec![Topology { segments }],
        ..Volume::default()
    }
}

fn nodes(info: &VolumeInfo) -> Vec<String> {
    info.published.iter().map(|published| published.node.clone()).collect()
}

fn bytes(size: Lba) -> i64 {
    i64::try_from(size.0.saturating_mul(BLOCK_BYTES)).unwrap_or(i64::MAX)
}
