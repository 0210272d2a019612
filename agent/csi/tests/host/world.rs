//! A cluster and one host, all in this process: a controller, a node plugin, a node service, agents with real files, FUSE, loop
//! devices and filesystems.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::{Code, Request, Status};
use torus_agent::metadata::{Embedded, init_cluster};
use torus_agent::node::{Attachments, mounts};
use torus_agent::owner::Owned;
use torus_agent::process::node::NodePart;
use torus_agent::process::{Agent, Config, NodeConfig, told};
use torus_core::limits::EXTENT_BLOCKS_MIN;
use torus_core::meta::MetadataStore;
use torus_csi::controller::Controller;
use torus_csi::node::Plugin;
use torus_proto::csi::controller_server::Controller as _;
use torus_proto::csi::node_server::Node as _;
use torus_proto::csi::volume_capability::access_mode::Mode;
use torus_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use torus_proto::csi::{
    CapacityRange, ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest, CreateVolumeRequest, DeleteVolumeRequest, NodeExpandVolumeRequest,
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodeStageVolumeRequest,
    NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest, VolumeCapability,
};
use torus_store::Fill;

pub const NODE: &str = "node-1";
pub const MIB: i64 = 1 << 20;

/// A cluster and one host, all in this process.
pub struct World {
    pub dir: TempDir,
    pub store: Arc<dyn MetadataStore>,
    pub controller: Controller,
    pub plugin: Plugin,
    node: Option<NodePart>,
    agents: Vec<Agent>,
    pub runtime: Runtime,
}

impl World {
    pub fn new() -> World {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn MetadataStore> = Arc::new(Embedded::in_memory());
        runtime.block_on(init_cluster(&*store, EXTENT_BLOCKS_MIN, 2)).unwrap();
        let start = |number: usize| {
            let name = format!("agent-{number}");
            let config = Config {
                data_dir: Some(dir.path().join(&name)),
                domain: name.clone(),
                size_bytes: 512 << 20,
                fill: Fill::Reserve,
                // Not all filesystems that tests run on have direct I/O.
                buffered: true,
                port: 0,
                control_address: Some("127.0.0.1:0".into()),
                http_address: None,
                auto_join: true,
                ..Config::new(Some(name))
            };
            let started = runtime.block_on(Agent::start(config, Arc::clone(&store)));
            started.unwrap_or_else(|error| panic!("{}", told(&error)))
        };
        let agents = (0..2).map(start).collect();
        fs::create_dir(dir.path().join("kubelet")).unwrap();
        let socket = dir.path().join("node.sock");
        let plugin = {
            let _inside = runtime.enter();
            Plugin::new(&socket, Some(NODE.into())).unwrap()
        };
        let controller = Controller::new(Arc::clone(&store));
        let mut world = World { dir, store, controller, plugin, node: None, agents, runtime };
        world.start_node();
        world
    }

    pub fn start_node(&mut self) {
        let config = NodeConfig {
            name: NODE.into(),
            domain: NODE.into(),
            socket: self.dir.path().join("node.sock"),
            attached_dir: self.dir.path().join("attached"),
            kubelet_dir: self.kubelet(),
            flexvolume_dir: None,
            holder: None,
        };
        let started = self.runtime.block_on(NodePart::start(config, Arc::clone(&self.store), None, Owned::default()));
        self.node = Some(started.unwrap_or_else(|error| panic!("{}", told(&error))));
    }

    pub fn stop_node(&mut self) {
        self.runtime.block_on(self.node.take().unwrap().stop());
    }

    pub fn kubelet(&self) -> PathBuf {
        self.dir.path().join("kubelet")
    }

    /// A path that the kubelet would give; its parent is there.
    pub fn path(&self, name: &str) -> String {
        self.kubelet().join(name).display().to_string()
    }

    /// The loop devices on files of this host.
    pub fn loop_devices(&self) -> usize {
        let attached = fs::canonicalize(self.dir.path()).unwrap().join("attached");
        let entries = fs::read_dir("/sys/block").unwrap().flatten();
        let files = entries.filter_map(|entry| fs::read_to_string(entry.path().join("loop/backing_file")).ok());
        files.filter(|file| Path::new(file).starts_with(&attached)).count()
    }

    /// Fails when a mount, a device or a record is left.
    pub fn must_be_bare(&self) {
        let here = fs::canonicalize(self.dir.path()).unwrap();
        let left: Vec<_> = mounts::all().into_iter().filter(|mount| mount.directory.starts_with(&here)).collect();
        assert!(left.is_empty(), "mounts are left: {left:?}");
        assert_eq!(self.loop_devices(), 0, "devices are left");
        let records: Vec<_> = fs::read_dir(self.dir.path().join("attached")).into_iter().flatten().flatten().collect();
        assert!(records.is_empty(), "records are left: {records:?}");
    }

    pub fn create(&self, name: &str, capability: &VolumeCapability) -> String {
        let request = || CreateVolumeRequest {
            name: name.into(),
            capacity_range: Some(CapacityRange { required_bytes: 64 * MIB, limit_bytes: 0 }),
            volume_capabilities: vec![capability.clone()],
            parameters: HashMap::from([("replicas".into(), "2".into())]),
            ..CreateVolumeRequest::default()
        };
        self.runtime.block_on(async {
            let first = self.controller.create_volume(Request::new(request())).await.unwrap().into_inner();
            let second = self.controller.create_volume(Request::new(request())).await.unwrap().into_inner();
            assert_eq!(first, second);
            first.volume.unwrap().volume_id
        })
    }

    pub fn permit(&self, id: &str, capability: &VolumeCapability) {
        for _ in 0..2 {
            let request = ControllerPublishVolumeRequest {
                volume_id: id.into(),
                node_id: NODE.into(),
                volume_capability: Some(capability.clone()),
                ..ControllerPublishVolumeRequest::default()
            };
            self.runtime.block_on(self.controller.controller_publish_volume(Request::new(request))).unwrap();
        }
    }

    pub fn forbid_and_delete(&self, id: &str) {
        self.runtime.block_on(async {
            for _ in 0..2 {
                let request = ControllerUnpublishVolumeRequest {
                    volume_id: id.into(),
                    node_id: NODE.into(),
                    ..ControllerUnpublishVolumeRequest::default()
                };
                self.controller.controller_unpublish_volume(Request::new(request)).await.unwrap();
            }
            for _ in 0..2 {
                let request = DeleteVolumeRequest { volume_id: id.into(), ..DeleteVolumeRequest::default() };
                self.controller.delete_volume(Request::new(request)).await.unwrap();
            }
        });
    }

    pub fn stage(&self, id: &str, staging: &str, capability: &VolumeCapability) -> Result<(), Status> {
        let request = NodeStageVolumeRequest {
            volume_id: id.into(),
            staging_target_path: staging.into(),
            volume_capability: Some(capability.clone()),
            ..NodeStageVolumeRequest::default()
        };
        self.runtime.block_on(self.plugin.node_stage_volume(Request::new(request))).map(drop)
    }

    pub fn unstage(&self, id: &str, staging: &str) -> Result<(), Status> {
        let request = NodeUnstageVolumeRequest { volume_id: id.into(), staging_target_path: staging.into() };
        self.runtime.block_on(self.plugin.node_unstage_volume(Request::new(request))).map(drop)
    }

    pub fn publish(
        &self,
        id: &str,
        staging: &str,
        target: &str,
        capability: &VolumeCapability,
        readonly: bool,
    ) -> Result<(), Status> {
        let request = NodePublishVolumeRequest {
            volume_id: id.into(),
            staging_target_path: staging.into(),
            target_path: target.into(),
            volume_capability: Some(capability.clone()),
            readonly,
            ..NodePublishVolumeRequest::default()
        };
        self.runtime.block_on(self.plugin.node_publish_volume(Request::new(request))).map(drop)
    }

    pub fn unpublish(&self, id: &str, target: &str) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest { volume_id: id.into(), target_path: target.into() };
        self.runtime.block_on(self.plugin.node_unpublish_volume(Request::new(request))).map(drop)
    }

    pub fn stats(&self, id: &str, path: &str) -> Result<NodeGetVolumeStatsResponse, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: id.into(),
            volume_path: path.into(),
            ..NodeGetVolumeStatsRequest::default()
        };
        Ok(self.runtime.block_on(self.plugin.node_get_volume_stats(Request::new(request)))?.into_inner())
    }

    /// By the controller alone.
    pub fn grow(&self, id: &str, required_bytes: i64) -> Result<ControllerExpandVolumeResponse, Status> {
        let request = ControllerExpandVolumeRequest {
            volume_id: id.into(),
            capacity_range: Some(CapacityRange { required_bytes, limit_bytes: 0 }),
            ..ControllerExpandVolumeRequest::default()
        };
        Ok(self.runtime.block_on(self.controller.controller_expand_volume(Request::new(request)))?.into_inner())
    }

    pub fn expand(&self, id: &str, path: &str, required_bytes: i64) -> Result<i64, Status> {
        assert!(self.grow(id, required_bytes).unwrap().node_expansion_required);
        let request = NodeExpandVolumeRequest {
            volume_id: id.into(),
            volume_path: path.into(),
            ..NodeExpandVolumeRequest::default()
        };
        let expanded = self.runtime.block_on(self.plugin.node_expand_volume(Request::new(request)))?;
        Ok(expanded.into_inner().capacity_bytes)
    }
}

/// Nothing is left of a test, whatever became of it.
impl Drop for World {
    fn drop(&mut self) {
        let kubelet = fs::canonicalize(self.kubelet()).unwrap();
        let mut left: Vec<_> =
            mounts::all().into_iter().filter(|mount| mount.directory.starts_with(&kubelet)).collect();
        left.reverse();
        for mount in left {
            let _ = nix::mount::umount2(&mount.directory, nix::mount::MntFlags::MNT_DETACH);
        }
        if let Some(node) = self.node.take() {
            self.runtime.block_on(node.stop());
        }
        for agent in self.agents.drain(..) {
            self.runtime.block_on(agent.stop());
        }
        // What is still there is dead: seen to as by the next process of this host.
        let attachments = Attachments::at(self.dir.path().join("attached"));
        for left in attachments.list().unwrap_or_default() {
            let _ = self.runtime.block_on(attachments.settle(left.record.volume));
        }
    }
}

pub fn mounted(fs_type: &str, mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume { fs_type: fs_type.into(), ..MountVolume::default() })),
    }
}

pub fn block() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeSingleWriter.into() }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    }
}

pub fn code(result: Result<(), Status>) -> Code {
    result.map_or_else(|status| status.code(), |()| Code::Ok)
}

pub fn abnormal(stats: NodeGetVolumeStatsResponse) -> Option<String> {
    let condition = stats.volume_condition.unwrap();
    condition.abnormal.then_some(condition.message)
}
