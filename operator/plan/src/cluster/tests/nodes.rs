//! Which nodes get agents, and what marks them.

use super::*;

#[test]
fn an_agent_waits_for_the_node_with_its_disk_until_that_is_given_up() {
    let mut world = World::new(specs()[0].clone());
    world.converge();
    let on = |world: &World| -> BTreeSet<_> {
        world.seen.pods.values().filter(|pod| pod.set == "main-agent").map(|pod| pod.node.clone()).collect()
    };
    let some = |nodes: &[&str]| -> BTreeSet<_> { nodes.iter().map(|node| Some((*node).to_owned())).collect() };
    // One of each zone.
    assert_eq!(on(&world), some(&["n1", "n3", "n4"]));
    let die = |world: &mut World| {
        world.seen.nodes.get_mut("n3").unwrap().is_ready = false;
        world.seen.pods.retain(|_, pod| pod.node.as_deref() != Some("n3"));
        world.converge();
    };
    die(&mut world);
    assert_eq!(on(&world), [None, Some("n1".into()), Some("n4".into())].into());
    world.seen.nodes.get_mut("n3").unwrap().is_ready = true;
    world.converge();
    assert_eq!(on(&world), some(&["n1", "n3", "n4"]));
    die(&mut world);
    world.seen.nodes.remove("n3");
    world.converge();
    assert_eq!(on(&world), some(&["n1", "n2", "n4"]));
}

#[test]
fn the_mark_of_a_cluster_that_is_gone_is_taken_from_nodes() {
    let mut world = World::new(specs()[0].clone());
    let mark = |world: &mut World, node: &str, id: &str| {
        world.seen.nodes.get_mut(node).unwrap().labels.insert(LABEL_TOPOLOGY.into(), id.into());
    };
    mark(&mut world, "n1", "an older one");
    world.converge();
    mark(&mut world, "n2", "c1");
    world.converge();
    let marked = |world: &World| -> Vec<_> {
        world
            .seen
            .nodes
            .iter()
            .filter(|(_, node)| node.labels.contains_key(LABEL_TOPOLOGY))
            .map(|(n, _)| n.clone())
            .collect()
    };
    assert_eq!(marked(&world), ["n2"]);
    // Where etcd does not say which cluster is there, nobody can tell.
    world.seen.store = Store::Failed("away".into());
    let forgets = |action: &Action| matches!(action, Action::ForgetTopology { .. });
    assert!(!world.plan().actions.iter().any(forgets));
    world.seen.store = Store::Empty;
    world.seen.is_deleting = true;
    while world.seen.has_finalizer {
        for action in world.plan().actions {
            world.apply(&action);
        }
    }
    assert_eq!(marked(&world), [] as [String; 0]);
}

#[test]
fn nodes_that_do_not_take_an_agent_are_not_chosen_for_one() {
    let taint = Taint { key: "only".into(), value: "gpu".into(), effect: torus_api::TolerationEffect::NoSchedule };
    let placed = |tolerations: Value| {
        let mut world = World::new(spec(json!({
            "storage": {"count": 3, "hostPath": {"size": "10Gi"}}, "etcd": {"external": {"endpoints": ["http://e:1"]}},
            "agent": {"nodeSelector": {"disk": "ssd"}, "tolerations": tolerations},
        })));
        for (name, node) in &mut world.seen.nodes {
            if *name != "n1" {
                node.labels.insert("disk".into(), "ssd".into());
            }
        }
        world.seen.nodes.get_mut("n4").unwrap().taints.push(taint.clone());
        world.converge();
        world.seen.nodes.values().map(|node| node.labels.contains_key(LABEL_NODE)).collect::<Vec<_>>()
    };
    assert_eq!(placed(json!([])), [false, true, true, false]);
    assert_eq!(placed(json!([{"key": "only", "value": "other"}])), [false, true, true, false]);
    assert_eq!(placed(json!([{"key": "only", "value": "gpu", "effect": "NoExecute"}])), [false, true, true, false]);
    for tolerated in [json!({"operator": "Exists"}), json!({"key": "only", "value": "gpu", "effect": "NoSchedule"})] {
        assert_eq!(placed(json!([tolerated])), [false, true, true, true]);
    }
}
