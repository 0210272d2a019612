//! Calls that come twice at once, in any order, given up midway, and with the node service replaced in between: in the end
//! there is what was asked for last, and nothing beside.

use crate::world::{NODE, World, block, code, mounted};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tonic::{Code, Request, Status};
use torus_agent::node::mounts;
use torus_csi::node::Plugin;
use torus_proto::csi::node_server::Node as _;
use torus_proto::csi::volume_capability::access_mode::Mode;
use torus_proto::csi::{
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
    VolumeCapability,
};

/// The calls for one volume.
#[derive(Clone)]
struct Calls {
    plugin: Plugin,
    id: String,
    staging: String,
    target: String,
    capability: VolumeCapability,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Stage,
    Publish,
    Unpublish,
    Unstage,
}

impl Calls {
    fn new(world: &World, name: &str, capability: VolumeCapability) -> Self {
        let id = world.create(name, &capability);
        world.permit(&id, &capability);
        let staging = world.path(&format!("{name}-staging"));
        fs::create_dir_all(&staging).unwrap();
        Self { plugin: world.plugin.clone(), id, staging, target: world.path(&format!("{name}-target")), capability }
    }

    async fn make(self, call: Call) -> Result<(), Status> {
        let Self { plugin, id: volume_id, staging, target: target_path, capability } = self;
        let (staging_target_path, volume_capability) = (staging, Some(capability));
        match call {
            Call::Stage => {
                let request = NodeStageVolumeRequest {
                    volume_id,
                    staging_target_path,
                    volume_capability,
                    ..NodeStageVolumeRequest::default()
                };
                plugin.node_stage_volume(Request::new(request)).await.map(drop)
            }
            Call::Publish => {
                let request = NodePublishVolumeRequest {
                    volume_id,
                    staging_target_path,
                    target_path,
                    volume_capability,
                    ..NodePublishVolumeRequest::default()
                };
                plugin.node_publish_volume(Request::new(request)).await.map(drop)
            }
            Call::Unpublish => {
                let request = NodeUnpublishVolumeRequest { volume_id, target_path };
                plugin.node_unpublish_volume(Request::new(request)).await.map(drop)
            }
            Call::Unstage => {
                let request = NodeUnstageVolumeRequest { volume_id, staging_target_path };
                plugin.node_unstage_volume(Request::new(request)).await.map(drop)
            }
        }
    }

    /// Again and again until it is done, as a kubelet does.
    fn until_done(&self, world: &World, call: Call) {
        for _ in 0..600 {
            match world.runtime.block_on(self.clone().make(call)) {
                Ok(()) => return,
                Err(status) if matches!(status.code(), Code::Aborted | Code::Unavailable) => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(status) => panic!("{call:?}: {status}"),
            }
        }
        panic!("{call:?} is never done");
    }

    fn end(self, world: &World) {
        self.until_done(world, Call::Unpublish);
        self.until_done(world, Call::Unstage);
        assert!(!Path::new(&self.target).exists(), "the target is left");
        world.forbid_and_delete(&self.id);
    }
}

const ORDER: [Call; 4] = [Call::Stage, Call::Publish, Call::Unpublish, Call::Unstage];

#[test]
fn many_at_once() {
    let world = World::new();
    for capability in [mounted("ext4", Mode::SingleNodeWriter), block()] {
        let calls = Calls::new(&world, "pvc-many", capability);
        for call in ORDER {
            let all: Vec<_> = (0..16).map(|_| world.runtime.spawn(calls.clone().make(call))).collect();
            let ended: Vec<_> = all.into_iter().map(|one| world.runtime.block_on(one).unwrap()).collect();
            assert!(ended.iter().any(Result::is_ok), "{call:?}: {ended:?}");
            for status in ended.into_iter().filter_map(Result::err) {
                assert_eq!(status.code(), Code::Aborted, "{call:?}: {status}");
            }
            assert!(world.loop_devices() <= 1, "several devices for one volume");
            let points = mounts::all().into_iter().filter(|mount| mount.directory == Path::new(&calls.target)).count();
            assert!(points <= 1, "mounted {points} times at one place");
        }
        world.must_be_bare();
        calls.end(&world);
    }
}

#[test]
fn in_every_order() {
    let world = World::new();
    let calls = Calls::new(&world, "pvc-order", mounted("xfs", Mode::SingleNodeWriter));
    // Each of the four after each of the four, with what came before still there.
    for first in ORDER {
        for second in ORDER {
            for call in [first, second, first] {
                match world.runtime.block_on(calls.clone().make(call)) {
                    Ok(()) => {}
                    // Too early or too late, with the reason.
                    Err(status) => {
                        assert_eq!(status.code(), Code::FailedPrecondition, "{first:?}, {second:?}: {status}");
                        assert!(status.message().contains("first"), "{status}");
                    }
                }
            }
        }
    }
    calls.until_done(&world, Call::Unpublish);
    calls.until_done(&world, Call::Unstage);
    world.must_be_bare();
    calls.end(&world);
}

#[test]
fn given_up_midway() {
    let world = World::new();
    let calls = Calls::new(&world, "pvc-impatient", mounted("ext4", Mode::SingleNodeWriter));
    for round in 0..8u64 {
        for call in ORDER {
            // A caller that waits for a few milliseconds only.
            let wait = Duration::from_millis(round * round * 3);
            let given_up = world.runtime.block_on(async { tokio::time::timeout(wait, calls.clone().make(call)).await });
            if let Ok(ended) = given_up {
                assert!(matches!(code(ended.clone()), Code::Ok | Code::Aborted), "{call:?}: {ended:?}");
            }
            calls.until_done(&world, call);
        }
        world.must_be_bare();
    }
    calls.end(&world);
}

#[test]
fn with_another_node_service_after_each_call() {
    let mut world = World::new();
    let calls = Calls::new(&world, "pvc-restarts", mounted("ext4", Mode::SingleNodeWriter));
    for round in 0..2 {
        for call in ORDER {
            calls.until_done(&world, call);
            if call == Call::Publish {
                fs::write(Path::new(&calls.target).join(format!("file-{round}")), b"data").unwrap();
            }
            world.stop_node();
            world.start_node();
            // What an earlier service has done is done.
            calls.until_done(&world, call);
            if call == Call::Publish {
                let kept = fs::read(Path::new(&calls.target).join(format!("file-{round}"))).unwrap();
                assert_eq!(kept, b"data");
            }
        }
        world.must_be_bare();
    }
    assert_eq!(NODE, "node-1");
    calls.end(&world);
}
