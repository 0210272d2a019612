//! What holds a pool's deletion, and how it ends.

use super::*;

fn deleted(change: impl FnOnce(&mut World)) -> (World, Plan) {
    let mut world = World::new(specs()[2].clone());
    world.converge();
    world.seen.is_deleting = true;
    change(&mut world);
    let plan = world.plan();
    (world, plan)
}

fn with_volume(world: &mut World) {
    let Store::Cluster(cluster) = &mut world.seen.store else { panic!("no cluster") };
    cluster.volumes.insert("pg1".into());
}

#[test]
fn deletion_waits_for_volumes_and_names_them() {
    let lost = Store::Failed("no answer".into());
    for (change, reason, words) in [
        (Box::new(with_volume) as Box<dyn FnOnce(&mut World)>, "VolumesExist", "pg1"),
        (
            Box::new(|world: &mut World| world.seen.volume_objects = ["db/pg2".to_owned()].into()),
            "VolumesExist",
            "db/pg2",
        ),
        (Box::new(move |world: &mut World| world.seen.store = lost), "MetadataUnreachable", "no answer"),
    ] {
        let (_, plan) = deleted(change);
        let held = plan.held.unwrap();
        assert_eq!(held.reason, reason);
        assert!(held.message.contains(words) && held.message.contains("KeepData"), "{}", held.message);
        assert_eq!(plan.actions, []);
    }
}

#[test]
fn deletion_ends_where_nothing_is_lost_by_it() {
    let keep: fn(&mut World) = |world| {
        with_volume(world);
        world.spec.deletion_policy = ClusterDeletionPolicy::KeepData;
    };
    let namespace: fn(&mut World) = |world| {
        world.seen.is_namespace_deleting = true;
        world.seen.store = Store::Failed("gone".into());
    };
    // Kubernetes ends the pods of a namespace, the operator's among them, before it deletes anything else.
    let before_it_is_deleted: fn(&mut World) = |world| {
        with_volume(world);
        world.seen.is_namespace_deleting = true;
        world.seen.is_deleting = false;
    };
    for change in [keep, namespace, before_it_is_deleted, |_| ()] {
        let (mut world, _) = deleted(change);
        let mut last = None;
        while world.seen.has_finalizer {
            let plan = world.plan();
            assert!(!plan.actions.is_empty(), "{plan:?}");
            for action in plan.actions {
                world.apply(&action);
                last = Some(action);
            }
        }
        assert_eq!(last, Some(Action::RemoveFinalizer));
        assert!(world.seen.objects.keys().all(|key| key.kind.is_namespaced()));
        assert!(world.seen.nodes.values().all(|node| !node.labels.contains_key(LABEL_NODE)));
    }
}
