use super::*;
use crate::health::Copies;
use proptest::prelude::*;
use serde_json::json;
use torus_api::{ConditionStatus, TorusVolumeStatus};

fn who() -> Identity {
    Identity { name: "pg1".into(), namespace: "db".into(), uid: "3f1c2d9e-0000-4000-8000-000000000001".into() }
}

fn spec(more: Value) -> TorusVolumeSpec {
    let mut spec = json!({"size": "20Gi", "claim": {"name": "pg1"}});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    serde_json::from_value(spec).unwrap()
}

fn open() -> OpenPool {
    OpenPool { replicas: 2, min_replicas: 1, agents: 3, total_bytes: 1 << 40, class: "torus".into(), volume: None }
}

fn volume(owner: Option<&str>) -> Volume {
    let copies = Some(Copies { have: 2, asked: 2 });
    Volume {
        id: "00000000000000aa".into(),
        size_bytes: 20 << 30,
        owner: owner.map(str::to_owned),
        epoch: Some(3),
        copies,
        used_bytes: Some(3 << 29),
        fenced_from: None,
        is_deleting: false,
    }
}

/// A pool and a Kubernetes that do what the actions say.
struct World {
    seen: Seen,
    spec: TorusVolumeSpec,
}

impl World {
    fn new(spec: TorusVolumeSpec) -> World {
        World { seen: Seen { pool: Pool::Open(open()), ..Seen::default() }, spec }
    }

    fn pool(&mut self) -> &mut OpenPool {
        let Pool::Open(pool) = &mut self.seen.pool else { panic!("not open") };
        pool
    }

    fn plan(&self) -> Plan {
        plan(&who(), &self.spec, &self.seen)
    }

    fn apply(&mut self, action: &Action) {
        match action {
            Action::AddFinalizer => self.seen.has_finalizer = true,
            Action::RemoveFinalizer => self.seen.has_finalizer = false,
            Action::CreateVolume { blocks, .. } => {
                let size_bytes = blocks * 4096;
                self.pool().volume = Some(Volume { size_bytes, epoch: None, ..volume(None) });
            }
            Action::Resize { blocks, .. } => self.pool().volume.as_mut().unwrap().size_bytes = blocks * 4096,
            Action::Create(object) => {
                let mut body = object.body.clone();
                body["metadata"]["uid"] = json!("u");
                body["status"] = json!({"phase": "Bound"});
                match object.key.kind {
                    crate::objects::Kind::PersistentVolume => self.seen.persistent_volume = Some(body),
                    _ => self.seen.claim = Some(body),
                }
            }
            Action::GrowClaim { size, .. } => {
                self.seen.claim.as_mut().unwrap()["spec"]["resources"]["requests"]["storage"] = json!(size);
            }
            Action::Delete { key, .. } => match key.kind {
                crate::objects::Kind::PersistentVolume => self.seen.persistent_volume = None,
                _ => self.seen.claim = None,
            },
            Action::DeleteVolume { .. } => self.pool().volume = None,
        }
        let before = TorusVolumeStatus { volume_id: self.seen.recorded_id.clone(), ..TorusVolumeStatus::default() };
        let status = volume_status(&who(), &self.spec, 1, &self.seen, &self.plan(), &before, "t");
        self.seen.recorded_id = status.volume_id;
    }

    fn converge(&mut self) {
        for _ in 0..12 {
            let actions = self.plan().actions;
            if actions.is_empty() {
                return;
            }
            for action in &actions {
                self.apply(action);
            }
        }
        panic!("does not come to rest: {:?}", self.plan());
    }
}

#[test]
fn a_volume_and_its_claim_are_made_and_then_left_alone() {
    let mut world = World::new(spec(json!({})));
    world.converge();
    let plan = world.plan();
    assert_eq!((plan.state, plan.waits), (VolumeState::Available, None));
    let found = world.seen.persistent_volume.as_ref().unwrap();
    assert_eq!(
        found["spec"]["csi"],
        json!({"driver": "csi.torus.storage", "volumeHandle": "00000000000000aa", "fsType": "ext4"})
    );
    assert_eq!(found["spec"]["claimRef"]["name"], "pg1");
    assert_eq!(found["spec"]["persistentVolumeReclaimPolicy"], "Retain");
    assert_eq!(world.seen.claim.as_ref().unwrap()["spec"]["volumeName"], found["metadata"]["name"]);
}

#[test]
fn bodies_are_what_kubernetes_knows() {
    for spec in [spec(json!({})), spec(json!({"volumeMode": "Block", "accessMode": "ReadWriteOncePod"}))] {
        let made = persistent_volume(&who(), &spec, "00000000000000aa", "torus");
        let typed: k8s_openapi::api::core::v1::PersistentVolume = serde_json::from_value(made.body.clone()).unwrap();
        assert!(crate::cluster::covers(&serde_json::to_value(typed).unwrap(), &made.body));
        let made = claim(&who(), &spec, "torus").unwrap();
        let typed: k8s_openapi::api::core::v1::PersistentVolumeClaim =
            serde_json::from_value(made.body.clone()).unwrap();
        assert!(crate::cluster::covers(&serde_json::to_value(typed).unwrap(), &made.body));
    }
}

#[test]
fn names_in_the_pool_are_sound_and_tell_objects_apart() {
    let long = Identity { name: "a".repeat(253), ..who() };
    let name = long.volume_name(&spec(json!({})));
    assert_eq!(name.len(), 63);
    assert!(name.ends_with(&who().uid));
    assert_eq!(who().volume_name(&spec(json!({"volumeName": "old"}))), "old");
}

#[test]
fn a_volume_grows_with_its_claim_and_is_never_cut_back() {
    let mut world = World::new(spec(json!({})));
    world.converge();
    world.spec = spec(json!({"size": "30Gi"}));
    world.converge();
    assert_eq!(world.pool().volume.as_ref().unwrap().size_bytes, 30 << 30);
    assert_eq!(world.seen.claim.as_ref().unwrap()["spec"]["resources"]["requests"]["storage"], "30Gi");
    world.pool().volume.as_mut().unwrap().size_bytes = 50 << 30;
    world.seen.claim.as_mut().unwrap()["spec"]["resources"]["requests"]["storage"] = json!("50Gi");
    assert_eq!(world.plan().actions, []);
}

#[test]
fn what_cannot_be_made_is_said() {
    type Change = fn(&mut World);
    let cases: [(Change, &str, &str); 9] = [
        (|w| w.spec = spec(json!({"size": "0.6Ti"})), "LargerThanPool", "do not fit the pool"),
        (|w| w.spec = spec(json!({"size": "1e9"})), "BadSize", "not an amount"),
        (|w| w.spec = spec(json!({"replicas": 4})), "TooFewAgents", "3 run"),
        (|w| w.spec = spec(json!({"volumeName": "old"})), "VolumeMissing", "\"old\""),
        (|w| w.seen.recorded_id = Some("00000000000000bb".into()), "VolumeLost", "00000000000000bb"),
        (|w| w.seen.pool = Pool::None("there is no TorusCluster".into()), "NoCluster", "no TorusCluster"),
        (|w| w.seen.pool = Pool::Failed("etcd is away".into()), "PoolUnreachable", "etcd is away"),
        (
            |w| {
                w.pool().volume = Some(volume(None));
                w.seen.recorded_id = Some("00000000000000bb".into());
            },
            "OtherVolume",
            "00000000000000aa",
        ),
        (
            |w| {
                w.spec = spec(json!({"volumeName": "old"}));
                w.pool().volume = Some(volume(None));
                w.seen.taken_by = Some("db/pg0".into());
            },
            "VolumeTaken",
            "db/pg0",
        ),
    ];
    for (change, reason, words) in cases {
        let mut world = World::new(spec(json!({})));
        world.seen.has_finalizer = true;
        change(&mut world);
        let plan = world.plan();
        assert_eq!(plan.actions, [], "{reason}");
        let obstacle = plan.waits.unwrap();
        assert_eq!(obstacle.reason, reason);
        assert!(obstacle.message.contains(words), "{}", obstacle.message);
    }
}

#[test]
fn a_claim_of_somebody_else_is_not_touched() {
    let mut world = World::new(spec(json!({})));
    world.seen.claim = Some(json!({"metadata": {"name": "pg1", "uid": "x"}, "status": {"phase": "Bound"}}));
    world.converge();
    assert_eq!(world.plan().waits.unwrap().reason, "ClaimExists");
    world.seen.is_deleting = true;
    world.converge();
    assert!(!world.seen.has_finalizer);
    assert_eq!(world.seen.claim.unwrap()["metadata"]["uid"], "x");
}

#[test]
fn deletion_goes_from_the_outside_in_and_says_what_holds_it() {
    let mut world = World::new(spec(json!({})));
    world.converge();
    world.seen.is_deleting = true;
    world.pool().volume = Some(volume(Some("node-b")));
    // The claim is asked to go, and pods keep it.
    assert!(matches!(&world.plan().actions[..], [Action::Delete { key, .. }] if key.name == "pg1"));
    world.seen.claim.as_mut().unwrap()["metadata"]["deletionTimestamp"] = json!("t");
    let plan = world.plan();
    assert_eq!((plan.actions.len(), plan.held.unwrap().reason), (0, "ClaimInUse"));
    world.seen.claim = None;
    let plan = world.plan();
    let held = plan.held.unwrap();
    assert_eq!((plan.actions.len(), held.reason), (0, "Attached"));
    assert!(held.message.contains("node-b"), "{}", held.message);
    world.pool().volume = Some(volume(None));
    assert!(matches!(&world.plan().actions[..], [Action::Delete { key, .. }] if key.name.starts_with("torus-")));
    world.seen.persistent_volume = None;
    assert!(matches!(&world.plan().actions[..], [Action::DeleteVolume { .. }]));
    world.converge();
    assert!(!world.seen.has_finalizer);
}

#[test]
fn data_that_is_to_stay_stays_and_a_pool_that_is_gone_holds_nothing() {
    let mut kept = World::new(spec(json!({"deletionPolicy": "Retain"})));
    kept.converge();
    kept.seen.is_deleting = true;
    kept.converge();
    assert!(kept.pool().volume.is_some() && !kept.seen.has_finalizer);
    for (pool, goes) in [(Pool::None("gone".into()), true), (Pool::Failed("away".into()), false)] {
        let mut world = World::new(spec(json!({})));
        world.converge();
        world.seen.is_deleting = true;
        world.seen.pool = pool;
        world.converge();
        assert_eq!(!world.seen.has_finalizer, goes);
        assert_eq!(world.plan().held.is_some(), !goes);
    }
}

#[test]
fn data_of_another_object_or_another_volume_is_never_deleted() {
    type Change = fn(&mut World);
    let own = |id: &str| Some(Volume { id: id.into(), ..volume(None) });
    let cases: [(Change, &str); 3] = [
        (|w| w.seen.taken_by = Some("db/pg0".into()), "another object has it"),
        (|w| w.seen.recorded_id = Some("00000000000000bb".into()), "the name went to another volume meanwhile"),
        (|w| w.seen.recorded_id = None, "it was deleted before it adopted anything"),
    ];
    for (change, why) in cases {
        let mut world = World::new(spec(json!({"volumeName": "old"})));
        world.pool().volume = own("00000000000000aa");
        world.seen.recorded_id = Some("00000000000000aa".into());
        world.converge();
        change(&mut world);
        world.seen.is_deleting = true;
        world.converge();
        assert!(!world.seen.has_finalizer && world.seen.claim.is_none(), "{why}");
        assert_eq!(world.pool().volume, own("00000000000000aa"), "{why}");
        // Nor is it waited for whoever has it open.
        world.seen.has_finalizer = true;
        world.pool().volume.as_mut().unwrap().owner = Some("node-b".into());
        assert_eq!(world.plan().actions, [Action::RemoveFinalizer], "{why}");
    }
    let mut adopted = World::new(spec(json!({"volumeName": "old"})));
    adopted.pool().volume = own("00000000000000aa");
    adopted.seen.recorded_id = Some("00000000000000aa".into());
    adopted.converge();
    adopted.seen.is_deleting = true;
    adopted.converge();
    assert_eq!(adopted.pool().volume, None, "it adopted that one, and is told to delete it");
}

#[test]
fn a_volume_belongs_to_whom_it_was_made_for_then_to_who_recorded_it_then_to_the_oldest() {
    let object = |uid: &str, adopts: Option<&str>, created: &str, recorded: bool| -> TorusVolume {
        serde_json::from_value(json!({
            "apiVersion": "torus.storage/v1alpha1", "kind": "TorusVolume",
            "metadata": {"name": "pg", "namespace": uid, "uid": uid, "creationTimestamp": created},
            "spec": {"size": "1Gi", "volumeName": adopts},
            "status": {"volumeId": recorded.then_some("00000000000000aa")},
        }))
        .unwrap()
    };
    let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z");
    // Each is the first that has it, the second wants it as well; both in either order.
    for (has, wants, name) in [
        (object("z", None, late, true), object("a", Some("pg-z"), late, false), "pg-z"),
        (object("z", None, late, false), object("a", Some("pg-z"), early, true), "pg-z"),
        (object("z", Some("old"), late, true), object("a", Some("old"), late, false), "old"),
        (object("z", Some("old"), late, true), object("a", Some("old"), early, false), "old"),
        (object("z", Some("old"), early, false), object("a", Some("old"), late, false), "old"),
    ] {
        for objects in [[&has, &wants], [&wants, &has]] {
            assert_eq!(holders(objects)[name], Identity::from(&has), "{wants:?}");
        }
    }
}

#[test]
fn a_namespace_that_is_deleted_does_not_wait_for_a_pool_that_is_gone_and_no_data_goes_unasked() {
    let mut world = World::new(spec(json!({})));
    world.converge();
    world.seen.is_deleting = true;
    world.seen.is_namespace_deleting = true;
    // A pool that answers deletes the data first.
    let mut asked = World { seen: world.seen.clone(), spec: world.spec.clone() };
    asked.converge();
    assert!(asked.pool().volume.is_none() && !asked.seen.has_finalizer);
    world.seen.pool = Pool::Failed("away".into());
    // Pods that use it go first in any case.
    assert!(matches!(&world.plan().actions[..], [Action::Delete { key, .. }] if key.name == "pg1"));
    world.seen.claim = None;
    let plan = world.plan();
    assert!(matches!(&plan.actions[..], [Action::Delete { .. }, Action::RemoveFinalizer]), "{plan:?}");
    world.seen.persistent_volume.as_mut().unwrap()["metadata"]["deletionTimestamp"] = json!("t");
    assert_eq!(world.plan().actions, [Action::RemoveFinalizer]);
}

#[test]
fn an_operator_that_goes_for_good_lets_go_of_volumes_and_a_later_one_takes_them_up() {
    for is_deleting in [false, true] {
        let mut world = World::new(spec(json!({})));
        world.converge();
        let there = world.seen.clone();
        world.seen.is_deleting = is_deleting;
        world.seen.is_farewell = true;
        assert_eq!(world.plan().actions, [Action::RemoveFinalizer]);
        world.converge();
        assert!(!world.seen.has_finalizer);
        assert_eq!((&world.seen.claim, &world.seen.pool), (&there.claim, &there.pool));
        if !is_deleting {
            world.seen.is_farewell = false;
            world.converge();
            assert_eq!(world.seen, there);
        }
    }
}

#[test]
fn the_status_says_it_and_says_it_once() {
    let mut world = World::new(spec(json!({})));
    world.converge();
    world.pool().volume = Some(volume(Some("node-b")));
    let status = |before: &TorusVolumeStatus, now: &str| {
        volume_status(&who(), &world.spec, 2, &world.seen, &world.plan(), before, now)
    };
    let first = status(&TorusVolumeStatus::default(), "t1");
    assert_eq!(status(&first, "t2"), first);
    assert_eq!(first.state, VolumeState::Attached);
    assert_eq!(first.size.as_deref(), Some("20Gi"));
    assert_eq!(first.node.as_deref(), Some("node-b"));
    assert_eq!(first.redundancy.as_deref(), Some("2/2"));
    assert!(first.conditions.iter().any(|c| c.kind == "Ready" && c.status == ConditionStatus::True));
}

proptest! {
    /// Stopped after any action and deleted at any time: nothing is deleted that somebody has open, no volume is made twice, and
    /// the end is the same.
    #[test]
    fn interrupted_anywhere_it_ends_the_same(
        moves in proptest::collection::vec((0..4_usize, 0..6_u8), 0..25),
        retains in any::<bool>()
    ) {
        let policy = if retains { "Retain" } else { "Delete" };
        let mut world = World::new(spec(json!({"deletionPolicy": policy})));
        let mut made = 0;
        for (carried_out, change) in moves {
            if let Pool::Open(OpenPool { volume: Some(volume), .. }) = &mut world.seen.pool {
                volume.owner = (change == 1).then(|| "node-b".into());
            }
            if change == 2 && world.seen.has_finalizer {
                world.seen.is_deleting = true;
            }
            let is_open = matches!(&world.seen.pool, Pool::Open(OpenPool { volume: Some(Volume { owner: Some(_), .. }), .. }));
            for action in world.plan().actions.iter().take(carried_out) {
                let deletes = matches!(action, Action::DeleteVolume { .. });
                let ends = *action == Action::RemoveFinalizer;
                prop_assert!(!(is_open && (deletes || ends)));
                prop_assert!(!(retains && deletes));
                made += i32::from(matches!(action, Action::CreateVolume { .. }));
                world.apply(action);
            }
            prop_assert!(made <= 1);
        }
        if let Pool::Open(OpenPool { volume: Some(volume), .. }) = &mut world.seen.pool {
            volume.owner = None;
        }
        world.converge();
        prop_assert_eq!(world.seen.has_finalizer, !world.seen.is_deleting);
        prop_assert_eq!(world.seen.claim.is_some(), world.seen.has_finalizer);
    }
}
