//! The life of a volume on a real host: a controller, a node plugin, a node service, agents with real files, FUSE, loop devices
//! and filesystems. Every call is made twice, some too early, and the node service is ended in the middle.

#![allow(clippy::unwrap_used, reason = "a step that fails here fails the test")]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::{Code, Request, Status};
use torus_agent::metadata::{Embedded, init_cluster};
use torus_agent::node::{Attachments, mounts};
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
    CapacityRange, ControllerExpandVolumeRequest, ControllerPublishVolumeRequest, ControllerUnpublishVolumeRequest,
    CreateVolumeRequest, DeleteVolumeRequest, NodeExpandVolumeRequest, NodeGetInfoRequest, NodeGetVolumeStatsRequest,
    NodeGetVolumeStatsResponse, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, VolumeCapability,
};
use torus_store::Fill;

const NODE: &str = "node-1";
const MIB: i64 = 1 << 20;

/// A cluster and one host, all in this process.
struct World {
    dir: TempDir,
    store: Arc<dyn MetadataStore>,
    controller: Controller,
    plugin: Plugin,
    node: Option<NodePart>,
    agents: Vec<Agent>,
    runtime: Runtime,
}

impl World {
    fn new() -> World {
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

    fn start_node(&mut self) {
        let config = NodeConfig {
            name: NODE.into(),
            domain: NODE.into(),
            socket: self.dir.path().join("node.sock"),
            attached_dir: self.dir.path().join("attached"),
            kubelet_dir: self.kubelet(),
            flexvolume_dir: None,
            holder: None,
        };
        let started = self.runtime.block_on(NodePart::start(config, Arc::clone(&self.store)));
        self.node = Some(started.unwrap_or_else(|error| panic!("{}", told(&error))));
    }

    fn stop_node(&mut self) {
        self.runtime.block_on(self.node.take().unwrap().stop());
    }

    fn kubelet(&self) -> PathBuf {
        self.dir.path().join("kubelet")
    }

    /// A path that the kubelet would give; its parent is there.
    fn path(&self, name: &str) -> String {
        self.kubelet().join(name).display().to_string()
    }

    fn create(&self, name: &str, capability: &VolumeCapability) -> String {
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

    fn permit(&self, id: &str, capability: &VolumeCapability) {
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

    fn forbid_and_delete(&self, id: &str) {
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

    fn stage(&self, id: &str, staging: &str, capability: &VolumeCapability) -> Result<(), Status> {
        let request = NodeStageVolumeRequest {
            volume_id: id.into(),
            staging_target_path: staging.into(),
            volume_capability: Some(capability.clone()),
            ..NodeStageVolumeRequest::default()
        };
        self.runtime.block_on(self.plugin.node_stage_volume(Request::new(request))).map(drop)
    }

    fn unstage(&self, id: &str, staging: &str) -> Result<(), Status> {
        let request = NodeUnstageVolumeRequest { volume_id: id.into(), staging_target_path: staging.into() };
        self.runtime.block_on(self.plugin.node_unstage_volume(Request::new(request))).map(drop)
    }

    fn publish(
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

    fn unpublish(&self, id: &str, target: &str) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest { volume_id: id.into(), target_path: target.into() };
        self.runtime.block_on(self.plugin.node_unpublish_volume(Request::new(request))).map(drop)
    }

    fn stats(&self, id: &str, path: &str) -> Result<NodeGetVolumeStatsResponse, Status> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: id.into(),
            volume_path: path.into(),
            ..NodeGetVolumeStatsRequest::default()
        };
        Ok(self.runtime.block_on(self.plugin.node_get_volume_stats(Request::new(request)))?.into_inner())
    }

    fn expand(&self, id: &str, path: &str, required_bytes: i64) -> Result<i64, Status> {
        self.runtime.block_on(async {
            let request = ControllerExpandVolumeRequest {
                volume_id: id.into(),
                capacity_range: Some(CapacityRange { required_bytes, limit_bytes: 0 }),
                ..ControllerExpandVolumeRequest::default()
            };
            let grown = self.controller.controller_expand_volume(Request::new(request)).await.unwrap().into_inner();
            assert!(grown.node_expansion_required);
            let request = NodeExpandVolumeRequest {
                volume_id: id.into(),
                volume_path: path.into(),
                ..NodeExpandVolumeRequest::default()
            };
            Ok(self.plugin.node_expand_volume(Request::new(request)).await?.into_inner().capacity_bytes)
        })
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

fn mounted(fs_type: &str, mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume { fs_type: fs_type.into(), ..MountVolume::default() })),
    }
}

fn block() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeSingleWriter.into() }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    }
}

fn code(result: Result<(), Status>) -> Code {
    result.map_or_else(|status| status.code(), |()| Code::Ok)
}

fn abnormal(stats: NodeGetVolumeStatsResponse) -> Option<String> {
    let condition = stats.volume_condition.unwrap();
    condition.abnormal.then_some(condition.message)
}

#[test]
fn a_filesystem_from_its_making_to_its_end() {
    let mut world = World::new();
    let use_ = mounted("ext4", Mode::SingleNodeMultiWriter);
    let id = world.create("pvc-1", &use_);
    let (staging, target) = (world.path("globalmount"), world.path("pod-1"));
    let (staging, target) = (staging.as_str(), target.as_str());
    fs::create_dir(staging).unwrap();

    assert_eq!(code(world.stage(&id, staging, &use_)), Code::FailedPrecondition, "not published to this node");
    world.permit(&id, &use_);
    assert_eq!(code(world.publish(&id, staging, target, &use_, false)), Code::FailedPrecondition, "not staged");
    for _ in 0..2 {
        world.stage(&id, staging, &use_).unwrap();
    }
    for _ in 0..2 {
        world.publish(&id, staging, target, &use_, false).unwrap();
    }
    assert_eq!(code(world.publish(&id, staging, target, &use_, true)), Code::AlreadyExists, "in another way");
    fs::write(Path::new(target).join("kept"), b"data").unwrap();
    let reader = world.path("pod-2");
    world.publish(&id, staging, &reader, &use_, true).unwrap();
    assert_eq!(fs::read(Path::new(&reader).join("kept")).unwrap(), b"data");
    assert!(fs::write(Path::new(&reader).join("kept"), b"no").is_err(), "it was published for reading");

    let stats = world.stats(&id, target).unwrap();
    assert!(stats.usage.iter().all(|usage| usage.total > 0) && stats.usage.len() == 2, "{stats:?}");
    assert_eq!(abnormal(stats.clone()), None);
    assert_eq!(code(world.stats(&id, &world.path("nowhere")).map(drop)), Code::NotFound);
    // Without CAP_SYS_RESOURCE, as in most containers, the kernel lets a mounted ext4 not grow.
    match world.expand(&id, target, 96 * MIB) {
        Ok(bytes) => assert_eq!(bytes, 96 * MIB),
        Err(status) => {
            assert_eq!(status.code(), Code::FailedPrecondition, "{}", status.message());
            assert!(status.message().contains("mounted next"), "{}", status.message());
        }
    }

    assert_eq!(code(world.unstage(&id, staging)), Code::FailedPrecondition, "pods have it");
    for path in [&reader, target] {
        for _ in 0..2 {
            world.unpublish(&id, path).unwrap();
        }
        assert!(!Path::new(path).exists());
    }
    for _ in 0..2 {
        world.unstage(&id, staging).unwrap();
    }
    assert!(!world.dir.path().join("attached").join(&id).exists());

    // A second time, and the process that serves it ends in the middle: its device is dead, and comes back.
    world.stage(&id, staging, &use_).unwrap();
    world.publish(&id, staging, target, &use_, false).unwrap();
    let grown = world.stats(&id, target).unwrap();
    assert!(grown.usage[0].total > stats.usage[0].total + 20 * MIB, "{grown:?}");
    assert_eq!(fs::read(Path::new(target).join("kept")).unwrap(), b"data");
    fs::write(Path::new(target).join("more"), b"again").unwrap();
    world.stop_node();
    world.start_node();
    assert_eq!(fs::read(Path::new(target).join("more")).unwrap(), b"again", "mounted again where it was");
    let why = abnormal(world.stats(&id, target).unwrap()).unwrap();
    assert!(why.contains("started again"), "{why}");
    world.stage(&id, staging, &use_).unwrap();
    world.publish(&id, staging, target, &use_, false).unwrap();
    world.unpublish(&id, target).unwrap();
    assert_eq!(abnormal(world.stats(&id, staging).unwrap()), None);
    world.unstage(&id, staging).unwrap();
    world.forbid_and_delete(&id);
}

#[test]
fn a_device_for_one_pod() {
    let world = World::new();
    let id = world.create("pvc-block", &block());
    let (staging, target, other) = (world.path("staging"), world.path("device-1"), world.path("device-2"));
    fs::create_dir(&staging).unwrap();
    world.permit(&id, &block());
    for _ in 0..2 {
        world.stage(&id, &staging, &block()).unwrap();
        world.publish(&id, &staging, &target, &block(), false).unwrap();
    }
    assert_eq!(code(world.publish(&id, &staging, &other, &block(), false)), Code::FailedPrecondition);
    let mut device = fs::File::options().read(true).write(true).open(&target).unwrap();
    {
        use std::io::{Read, Seek, Write};
        device.write_all(b"raw bytes").unwrap();
        device.sync_all().unwrap();
        device.rewind().unwrap();
        let mut read = [0; 9];
        device.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"raw bytes");
    }
    drop(device);
    let stats = world.stats(&id, &target).unwrap();
    assert_eq!(stats.usage[0].total, 64 * MIB);
    assert_eq!(world.expand(&id, &target, 80 * MIB).unwrap(), 80 * MIB);
    world.unpublish(&id, &target).unwrap();
    assert!(!Path::new(&target).exists());
    for _ in 0..2 {
        world.unstage(&id, &staging).unwrap();
    }

    // What holds data that is no filesystem is never formatted.
    let as_files = mounted("ext4", Mode::SingleNodeSingleWriter);
    let refused = world.stage(&id, &staging, &as_files).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{}", refused.message());
    assert!(refused.message().contains("nothing was changed"), "{}", refused.message());
    world.unstage(&id, &staging).unwrap();
    world.forbid_and_delete(&id);
}

#[test]
fn nothing_is_touched_outside() {
    let world = World::new();
    let use_ = mounted("", Mode::SingleNodeWriter);
    let id = world.create("pvc-paths", &use_);
    world.permit(&id, &use_);
    let outside = world.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), b"data").unwrap();
    let staging = world.path("staging");
    fs::create_dir(&staging).unwrap();
    std::os::unix::fs::symlink(&outside, world.path("link")).unwrap();
    let through = world.path("link/target");
    let up = world.path("../outside");
    let bad = [outside.to_str().unwrap(), &up, &world.path("link"), &through, "relative", "-o", "/", "/etc", "a\0b"]
        .map(str::to_owned);
    for path in &bad {
        assert_eq!(code(world.stage(&id, path, &use_)), Code::InvalidArgument, "{path:?}");
    }
    world.stage(&id, &staging, &use_).unwrap();
    for path in &bad {
        assert_eq!(code(world.publish(&id, &staging, path, &use_, false)), Code::InvalidArgument, "{path:?}");
        assert_eq!(code(world.unpublish(&id, path)), Code::InvalidArgument, "{path:?}");
    }
    for handle in ["made-up", "../../etc", "-rf", "pvc-paths", "0123456789abcdef"] {
        assert_eq!(
            code(world.publish(handle, &staging, &world.path("t"), &use_, false)),
            if handle.len() == 16 { Code::FailedPrecondition } else { Code::NotFound },
            "{handle}"
        );
        assert_eq!(code(world.unstage(handle, &world.path("other"))), Code::Ok, "{handle}");
    }
    let flags = VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume {
            mount_flags: vec!["bind".into()],
            ..MountVolume::default()
        })),
        ..use_.clone()
    };
    assert_eq!(code(world.stage(&id, &staging, &flags)), Code::InvalidArgument);
    assert_eq!(fs::read(outside.join("precious")).unwrap(), b"data");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    world.unstage(&id, &staging).unwrap();
    world.forbid_and_delete(&id);
    let info = world.runtime.block_on(world.plugin.node_get_info(Request::new(NodeGetInfoRequest {}))).unwrap();
    assert_eq!(info.into_inner().node_id, NODE);
}
