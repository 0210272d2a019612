//! Where members of etcd are, and what becomes of a pool whose etcd is gone.

use super::*;

#[test]
fn members_of_etcd_are_bound_to_nodes_of_their_own_in_zones_of_their_own() {
    let mut world = World::new(specs()[0].clone());
    world.converge();
    let node = |member: i32| {
        let set = world.seen.object(Kind::StatefulSet, "torus-system", &format!("main-etcd-{member}")).unwrap();
        let text = set["spec"]["template"]["spec"]["affinity"]["nodeAffinity"].to_string();
        ["n1", "n2", "n3", "n4"].into_iter().find(|node| text.contains(node)).unwrap()
    };
    assert_eq!([node(0), node(1), node(2)], ["n1", "n3", "n4"]);
    // A choice stays, whatever becomes of the nodes.
    world.seen.nodes.get_mut("n3").unwrap().is_ready = false;
    assert!(
        world
            .plan()
            .actions
            .iter()
            .all(|action| !matches!(action, Action::Update(object) if object.key.kind == Kind::StatefulSet))
    );
}

#[test]
fn too_few_nodes_for_etcd_is_said() {
    let mut world = World::new(specs()[0].clone());
    world.seen.nodes.remove("n1");
    world.seen.nodes.remove("n4");
    for _ in 0..6 {
        for action in world.plan().actions {
            world.apply(&action);
        }
        world.settle();
    }
    let obstacle = world.plan().etcd.unwrap();
    assert_eq!(obstacle.reason, "TooFewNodes");
    assert!(obstacle.message.contains("needs 3 nodes"), "{}", obstacle.message);
    assert!(world.seen.pods.is_empty());
}

#[test]
fn a_deleted_service_of_etcd_gets_its_address_back() {
    let mut world = World::new(specs()[0].clone());
    world.converge();
    let key = Key { kind: Kind::Service, namespace: "torus-system".into(), name: "main-etcd-1".into() };
    let sets = world.bodies();
    let address = world.seen.objects.remove(&key).unwrap()["spec"]["clusterIP"].clone();
    world.converge();
    assert_eq!(world.seen.objects[&key]["spec"]["clusterIP"], address);
    assert_eq!(world.bodies(), sets);
}

#[test]
fn an_etcd_that_lost_its_data_or_is_another_is_left_alone() {
    let mut world = World::new(specs()[2].clone());
    world.converge();
    for (store, reason) in [
        (Store::Empty, "MetadataLost"),
        (Store::Failed("refused".into()), "Unreachable"),
        (
            Store::Cluster(StoreCluster {
                id: "c2".into(),
                agents: BTreeMap::new(),
                ring: Some(Ring { kind: "mod".into(), replicas: 1, spread: None, agents: 1 }),
                health: Health::default(),
                volumes: BTreeSet::new(),
            }),
            "OtherCluster",
        ),
    ] {
        world.seen.store = store;
        let plan = world.plan();
        assert_eq!(plan.etcd.as_ref().unwrap().reason, reason);
        for action in plan.actions {
            assert!(
                matches!(&action, Action::Update(object) if object.key.kind == Kind::PodDisruptionBudget),
                "{action:?}"
            );
        }
    }
}
