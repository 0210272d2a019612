use super::*;
use tonic::Request;
use torus_agent::metadata::{Embedded, init_cluster, register_node};
use torus_core::meta::docs::NodeDoc;
use torus_proto::csi::controller_server::Controller as _;
use torus_proto::csi::volume_capability::access_mode::Mode;
use torus_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume};
use torus_proto::csi::{
    CapacityRange, ControllerGetVolumeRequest, ControllerUnpublishVolumeRequest, DeleteVolumeRequest,
    TopologyRequirement, VolumeCapability,
};

async fn controller() -> Controller {
    let store = Embedded::in_memory();
    init_cluster(&store, 16_384, 2).await.unwrap();
    for node in ["node-1", "node-2"] {
        register_node(&store, node, &NodeDoc { domain: node.into(), version: "1".into() }).await.unwrap();
    }
    Controller::new(Arc::new(store))
}

fn block() -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeSingleWriter.into() }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    }
}

fn request(name: &str, required_bytes: i64) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(CapacityRange { required_bytes, limit_bytes: 0 }),
        volume_capabilities: vec![block()],
        ..CreateVolumeRequest::default()
    }
}

async fn create(controller: &Controller, request: CreateVolumeRequest) -> Result<Volume, Status> {
    Ok(controller.create_volume(Request::new(request)).await?.into_inner().volume.unwrap())
}

fn publish(volume_id: &str, node_id: &str) -> Request<ControllerPublishVolumeRequest> {
    Request::new(ControllerPublishVolumeRequest {
        volume_id: volume_id.into(),
        node_id: node_id.into(),
        volume_capability: Some(block()),
        ..ControllerPublishVolumeRequest::default()
    })
}

fn unpublish(volume_id: &str, node_id: &str) -> Request<ControllerUnpublishVolumeRequest> {
    Request::new(ControllerUnpublishVolumeRequest {
        volume_id: volume_id.into(),
        node_id: node_id.into(),
        ..ControllerUnpublishVolumeRequest::default()
    })
}

fn delete(volume_id: &str) -> Request<DeleteVolumeRequest> {
    Request::new(DeleteVolumeRequest { volume_id: volume_id.into(), ..DeleteVolumeRequest::default() })
}

#[tokio::test]
async fn the_life_of_a_volume_with_every_call_twice() {
    let controller = controller().await;
    let made = create(&controller, request("pvc-1", 1_000_000)).await.unwrap();
    assert_eq!(made.capacity_bytes, 1_003_520, "rounded up to blocks");
    assert_eq!(create(&controller, request("pvc-1", 1_000_000)).await.unwrap(), made);
    let larger = create(&controller, request("pvc-1", 2_000_000)).await.unwrap_err();
    assert_eq!(larger.code(), Code::AlreadyExists);
    let id = made.volume_id.as_str();

    for _ in 0..2 {
        controller.controller_publish_volume(publish(id, "node-1")).await.unwrap();
    }
    let elsewhere = controller.controller_publish_volume(publish(id, "node-2")).await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::FailedPrecondition);
    assert!(elsewhere.message().contains("\"node-1\""), "{}", elsewhere.message());
    let held = controller.delete_volume(delete(id)).await.unwrap_err();
    assert_eq!(held.code(), Code::FailedPrecondition);
    let got = controller.controller_get_volume(Request::new(ControllerGetVolumeRequest { volume_id: id.into() })).await;
    assert_eq!(got.unwrap().into_inner().status.unwrap().published_node_ids, ["node-1"]);

    for _ in 0..2 {
        controller.controller_unpublish_volume(unpublish(id, "node-1")).await.unwrap();
    }
    controller.controller_publish_volume(publish(id, "node-2")).await.unwrap();
    controller.controller_unpublish_volume(unpublish(id, "")).await.unwrap();
    for _ in 0..2 {
        controller.delete_volume(delete(id)).await.unwrap();
    }
    let gone = controller.controller_publish_volume(publish(id, "node-1")).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
}

#[tokio::test]
async fn bad_requests_are_refused_with_a_sentence() {
    let controller = controller().await;
    type Change = fn(&mut CreateVolumeRequest);
    let cases: [(Change, Code, &str); 9] = [
        (|r| r.name.clear(), Code::InvalidArgument, "name is missing"),
        (|r| r.name = "a\0b".into(), Code::InvalidArgument, "is not a name"),
        (|r| r.volume_capabilities.clear(), Code::InvalidArgument, "capabilities are missing"),
        (
            |r| r.capacity_range = Some(CapacityRange { required_bytes: -1, limit_bytes: 0 }),
            Code::InvalidArgument,
            "-1",
        ),
        (|r| r.capacity_range = Some(CapacityRange { required_bytes: 9, limit_bytes: 5 }), Code::OutOfRange, "from 9"),
        (
            |r| r.capacity_range = Some(CapacityRange { required_bytes: i64::MAX, limit_bytes: 0 }),
            Code::OutOfRange,
            "64 TiB",
        ),
        (|r| drop(r.parameters.insert("replica".into(), "3".into())), Code::InvalidArgument, "\"replica\""),
        (|r| drop(r.parameters.insert("replicas".into(), "9".into())), Code::InvalidArgument, "9 replicas"),
        (|r| r.volume_content_source = Some(Default::default()), Code::InvalidArgument, "dataSource"),
    ];
    for (change, code, words) in cases {
        let mut asked = request("pvc-1", 1 << 20);
        change(&mut asked);
        let status = create(&controller, asked).await.unwrap_err();
        assert_eq!(status.code(), code, "{}", status.message());
        assert!(status.message().contains(words), "{}", status.message());
    }
    let far = Topology { segments: HashMap::from([(TOPOLOGY_CLUSTER.into(), "0000000000000001".into())]) };
    let requirement = TopologyRequirement { requisite: vec![far], ..TopologyRequirement::default() };
    let asked = CreateVolumeRequest { accessibility_requirements: Some(requirement), ..request("pvc-1", 1 << 20) };
    assert_eq!(create(&controller, asked).await.unwrap_err().code(), Code::ResourceExhausted);
    for handle in ["made-up", "../../etc", "-rf", "a\0b", "pvc-1", "0"] {
        let status = controller.controller_publish_volume(publish(handle, "node-1")).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{handle:?}");
        controller.delete_volume(delete(handle)).await.unwrap();
    }
}

#[tokio::test]
async fn volumes_are_listed_in_pages() {
    let controller = controller().await;
    for name in ["c", "a", "b"] {
        create(&controller, request(name, 4096)).await.unwrap();
    }
    let list = |max_entries, starting_token: &str| {
        let asked = ListVolumesRequest { max_entries, starting_token: starting_token.into() };
        controller.list_volumes(Request::new(asked))
    };
    let first = list(2, "").await.unwrap().into_inner();
    assert_eq!((first.entries.len(), first.next_token.as_str()), (2, "after:b"));
    let last = list(2, &first.next_token).await.unwrap().into_inner();
    assert_eq!((last.entries.len(), last.next_token.as_str()), (1, ""));
    assert_eq!(list(0, "").await.unwrap().into_inner().entries.len(), 3);
    assert_eq!(list(0, "invalid-token").await.unwrap_err().code(), Code::Aborted);
    assert_eq!(list(-1, "").await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_volume_grows_and_never_shrinks() {
    let controller = controller().await;
    let id = create(&controller, request("v", 8192)).await.unwrap().volume_id;
    let expand = |required_bytes, limit_bytes| {
        controller.controller_expand_volume(Request::new(ControllerExpandVolumeRequest {
            volume_id: id.clone(),
            capacity_range: Some(CapacityRange { required_bytes, limit_bytes }),
            ..ControllerExpandVolumeRequest::default()
        }))
    };
    for _ in 0..2 {
        let grown = expand(10_000, 0).await.unwrap().into_inner();
        assert_eq!((grown.capacity_bytes, grown.node_expansion_required), (12_288, true));
    }
    for (required_bytes, limit_bytes) in [(4096, 0), (0, 0), (0, 1 << 30)] {
        assert_eq!(expand(required_bytes, limit_bytes).await.unwrap().into_inner().capacity_bytes, 12_288);
    }
    assert_eq!(expand(4096, 8192).await.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test]
async fn a_second_call_for_a_volume_is_aborted() {
    let controller = controller().await;
    let _underway = controller.busy.begin(&"v".to_owned()).unwrap();
    let status = create(&controller, request("v", 4096)).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    create(&controller, request("w", 4096)).await.unwrap();
}
