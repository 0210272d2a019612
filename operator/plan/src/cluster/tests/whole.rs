//! A pool from its first object on, whatever comes in between.

use super::*;
use proptest::prelude::*;

#[test]
fn every_kind_of_cluster_comes_to_rest_and_stays_there() {
    for spec in specs() {
        let mut world = World::new(spec.clone());
        world.converge();
        assert!(world.plan().actions.is_empty());
        let agents = world.seen.pods.values().filter(|pod| pod.set == "main-agent").count();
        assert_eq!(agents, usize::try_from(spec.storage.count).unwrap());
        let labelled = world.seen.nodes.values().filter(|node| node.labels.contains_key(LABEL_NODE)).count();
        assert_eq!(labelled, agents);
        let has = |kind, name| world.seen.object(kind, "torus-system", name).is_some();
        assert_eq!(has(Kind::DaemonSet, "main-node"), spec.node_plugin.enabled);
        assert!(has(Kind::DaemonSet, "main-holder"), "agents have volumes attached, whatever there is beside them");
        assert!(has(Kind::StorageClass, "torus") && has(Kind::CsiDriver, "csi.torus.storage"));
    }
}

#[test]
fn the_finalizer_is_first() {
    for spec in specs() {
        assert_eq!(World::new(spec).plan().actions, [Action::AddFinalizer]);
    }
}

#[test]
fn agents_start_when_etcd_holds_the_cluster_and_not_before() {
    for spec in specs() {
        let mut world = World::new(spec);
        for _ in 0..20 {
            let plan = world.plan();
            let made = |action: &Action| matches!(action, Action::Create(object) if object.key.name == "main-agent" && object.key.kind == Kind::StatefulSet);
            assert!(!plan.actions.iter().any(made) || matches!(world.seen.store, Store::Cluster(_)));
            for action in &plan.actions {
                world.apply(action);
            }
            world.settle();
        }
    }
}

#[test]
fn bad_secrets_other_clusters_and_pauses_are_refused_with_a_way_out() {
    let tls = spec(json!({
        "storage": {"count": 3, "hostPath": {"size": "10Gi"}},
        "etcd": {"external": {"endpoints": ["https://a:2379"], "secret": {"name": "etcd"}}},
    }));
    let keys = |keys: &[&str]| Secret::Keys(keys.iter().map(ToString::to_string).collect());
    let mut unnamed = tls.clone();
    unnamed.etcd.external.as_mut().unwrap().secret = None;
    let paused = TorusClusterSpec { paused: true, ..specs()[0].clone() };
    for (spec, secret, refused, reason, words) in [
        (tls.clone(), Secret::Missing, None, "SecretMissing", "kubectl create secret generic etcd"),
        (tls.clone(), keys(&[]), None, "SecretIncomplete", "has no ca.crt"),
        (tls.clone(), keys(&["ca.crt", "tls.crt"]), None, "SecretIncomplete", "add the other"),
        (unnamed, Secret::NotNamed, None, "SecretIncomplete", "name a secret"),
        (paused, Secret::NotNamed, None, "Paused", "spec.paused"),
        (tls.clone(), keys(&["ca.crt"]), Some(Refusal::Older("a/b".into())), "AnotherCluster", "a/b"),
        (tls, keys(&["ca.crt"]), Some(Refusal::Namespace { served: "s".into() }), "WrongNamespace", "\"s\""),
    ] {
        let mut world = World::new(spec);
        world.seen.secret = secret;
        world.seen.refused = refused;
        let plan = world.plan();
        let obstacle = plan.refused.unwrap();
        assert_eq!(obstacle.reason, reason);
        assert!(obstacle.message.contains(words), "{}", obstacle.message);
        assert_eq!(plan.actions, []);
    }
}

#[test]
fn a_class_that_cannot_be_changed_is_made_anew_and_one_not_wanted_goes() {
    let mut world = World::new(specs()[2].clone());
    world.converge();
    world.spec.storage_class.reclaim_policy = torus_api::ReclaimPolicy::Retain;
    world.converge();
    let class = world.seen.object(Kind::StorageClass, "", "torus").unwrap();
    assert_eq!(class["reclaimPolicy"], "Retain");
    world.spec.storage_class.name = "other".into();
    world.spec.node_plugin.enabled = false;
    world.converge();
    assert!(world.seen.object(Kind::StorageClass, "", "torus").is_none());
    assert!(world.seen.object(Kind::StorageClass, "", "other").is_some());
    assert!(world.seen.object(Kind::DaemonSet, "torus-system", "main-node").is_none());
}

#[test]
fn small_disks_have_small_extents() {
    let of = |storage: Value| extent_bytes(&spec(json!({"storage": storage, "etcd": {"managed": {}}})).storage) >> 20;
    assert_eq!(of(json!({"count": 3, "hostPath": {"size": "1Ti"}})), 64);
    assert_eq!(of(json!({"count": 3, "hostPath": {"size": "16Gi"}})), 64);
    assert_eq!(of(json!({"count": 3, "claim": {"size": "10Gi"}})), 32);
    assert_eq!(of(json!({"count": 3, "hostPath": {"size": "2Gi"}})), 8);
    assert_eq!(of(json!({"count": 3, "hostPath": {"size": "1Gi"}})), 4);
    assert_eq!(of(json!({"count": 3, "devices": ["/dev/sdb"]})), 64);
}

fn change(spec: &mut TorusClusterSpec, which: u8) {
    match which % 8 {
        0 => spec.image = Some("torus:7".into()),
        1 => spec.storage.count += 1,
        2 => spec.storage_class.name = "class-b".into(),
        3 => spec.node_plugin.enabled = !spec.node_plugin.enabled,
        4 => spec.storage_class.create = !spec.storage_class.create,
        5 => spec.csi.replicas = 2,
        6 => spec.network.http_port = 4_999,
        _ => spec.replicas = 1,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The operator stops after any action, any number of times; the spec changes at any time. In the end it is as if nothing
    /// had happened on the way, and on the way nothing was done that must not be.
    #[test]
    fn interrupted_anywhere_it_ends_the_same(
        which in 0..3_usize,
        stops in proptest::collection::vec((0..6_usize, any::<bool>(), proptest::option::of(any::<u8>())), 0..25)
    ) {
        let mut world = World::new(specs()[which].clone());
        for (carried_out, settles, changed) in stops {
            if let Some(changed) = changed {
                change(&mut world.spec, changed);
                world.spec.storage.count = world.spec.storage.count.min(4);
            }
            let plan = world.plan();
            let replaced = plan.actions.iter().filter(|action| matches!(action, Action::ReplacePod { .. })).count();
            prop_assert!(replaced <= 1);
            for action in &plan.actions {
                let is_data = |key: &Key| matches!(key.kind, Kind::StatefulSet | Kind::PersistentVolumeClaim | Kind::PersistentVolume);
                let deletes_data = matches!(action, Action::Delete { key, .. } if is_data(key));
                prop_assert!(!deletes_data);
                prop_assert!(*action != Action::RemoveFinalizer);
                prop_assert!(world.seen.has_finalizer || *action == Action::AddFinalizer);
            }
            for action in plan.actions.iter().take(carried_out) {
                world.apply(action);
            }
            if settles {
                world.settle();
            }
        }
        let spec = world.spec.clone();
        world.converge();
        let mut fresh = World::new(spec);
        fresh.converge();
        let marks = |world: &World| {
            let of = |body: &Value| body["metadata"]["annotations"].clone();
            world.seen.objects.iter().filter(|(key, _)| key.kind != Kind::ConfigMap).map(|(key, body)| (key.clone(), of(body))).collect::<BTreeMap<_, _>>()
        };
        // Addresses of etcd depend on what was made when; with an external one everything is the same.
        if which == 2 {
            prop_assert_eq!(marks(&world), marks(&fresh));
        } else {
            prop_assert!(marks(&world).into_keys().eq(marks(&fresh).into_keys()));
        }
    }
}
