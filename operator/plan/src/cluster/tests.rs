//! The plan against a made-up Kubernetes that does what the actions say.

use super::*;
use crate::contract::{LABEL_NODE, LABEL_TOPOLOGY};
use crate::health::{Copies, Health};
use crate::objects::digest;
use proptest::prelude::*;
use serde_json::json;

fn owner() -> Owner {
    Owner { name: "main".into(), namespace: "torus-system".into(), uid: "u1".into() }
}

fn spec(text: Value) -> TorusClusterSpec {
    serde_json::from_value(text).unwrap()
}

fn specs() -> [TorusClusterSpec; 3] {
    [
        spec(json!({"storage": {"count": 3, "hostPath": {"size": "10Gi"}}, "etcd": {"managed": {}}})),
        spec(json!({
            "storage": {"count": 2, "claim": {"size": "10Gi"}},
            "etcd": {"managed": {"members": 1, "claim": {"size": "1Gi"}}}, "nodePlugin": {"enabled": false},
        })),
        spec(json!({
            "storage": {"count": 3, "devices": ["/dev/sdb"]},
            "etcd": {"external": {"endpoints": ["http://10.0.0.9:2379"]}},
        })),
    ]
}

/// A Kubernetes with four nodes, an etcd that answers when its pods are ready, and agents that live when theirs are.
struct World {
    seen: Observed,
    spec: TorusClusterSpec,
    counter: u64,
    initialized: bool,
    log: Vec<String>,
}

impl World {
    fn new(spec: TorusClusterSpec) -> World {
        let node = |zone: &str| Node {
            labels: BTreeMap::from([("topology.kubernetes.io/zone".into(), zone.into())]),
            is_ready: true,
            is_schedulable: true,
            taints: Vec::new(),
        };
        let nodes = [("n1", "a"), ("n2", "a"), ("n3", "b"), ("n4", "c")].map(|(name, zone)| (name.into(), node(zone)));
        let seen = Observed { nodes: nodes.into(), ..Observed::default() };
        World { seen, spec, counter: 0, initialized: false, log: Vec::new() }
    }

    fn plan(&self) -> Plan {
        plan(&owner(), &self.spec, "own:1", &self.seen)
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn apply(&mut self, action: &Action) {
        self.log.push(format!("{action:?}").chars().take(60).collect());
        match action {
            Action::AddFinalizer => self.seen.has_finalizer = true,
            Action::RemoveFinalizer => self.seen.has_finalizer = false,
            Action::Create(object) => {
                assert!(!self.seen.objects.contains_key(&object.key), "{} is there", object.key);
                self.write(object);
            }
            Action::Update(object) => {
                assert!(self.seen.objects.contains_key(&object.key), "{} is not there", object.key);
                self.write(object);
            }
            Action::Delete { key, uid } => {
                let found = self.seen.objects.remove(key).unwrap();
                assert_eq!(found["metadata"]["uid"], **uid);
            }
            Action::ReplacePod { name, uid } => {
                let pod = self.seen.pods.remove(name).unwrap();
                assert_eq!(pod.uid, *uid);
            }
            Action::LabelNode { node, value } => {
                let labels = &mut self.seen.nodes.get_mut(node).unwrap().labels;
                labels.remove(LABEL_NODE);
                labels.extend(value.iter().map(|value| (LABEL_NODE.to_owned(), value.clone())));
            }
            Action::ForgetTopology { node } => {
                self.seen.nodes.get_mut(node).unwrap().labels.remove(LABEL_TOPOLOGY).unwrap();
            }
            Action::InitCluster { .. } => self.initialized = true,
            Action::SetRing { kind, replicas, spread } => {
                let Store::Cluster(cluster) = &mut self.seen.store else { panic!("there is no ring") };
                cluster.ring = Some(Ring { kind: (*kind).into(), replicas: *replicas, spread: *spread, agents: 3 });
            }
        }
    }

    /// Server-side apply: what the body says, over what the apiserver fills in.
    fn write(&mut self, object: &Object) {
        let id = self.next();
        let before = self.seen.objects.get(&object.key).cloned();
        let mut body = object.body.clone();
        let uid = before.as_ref().map_or(json!(format!("uid-{id}")), |before| before["metadata"]["uid"].clone());
        body["metadata"]["uid"] = uid;
        body["metadata"]["generation"] = json!(id);
        if object.key.kind == Kind::Service && body["spec"]["clusterIP"].is_null() {
            let given =
                before.as_ref().map_or(json!(format!("10.96.0.{id}")), |before| before["spec"]["clusterIP"].clone());
            body["spec"]["clusterIP"] = given;
        }
        self.seen.objects.insert(object.key.clone(), body);
    }

    /// Where the scheduler puts a pod: where it is bound to, to a node that is ready and has no other of its set.
    fn place(&self, set: &Value, name: &str, ordinal: u64) -> Option<String> {
        let affinity = &set["spec"]["template"]["spec"]["affinity"]["nodeAffinity"];
        let term = &affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][0];
        if term["matchExpressions"][0]["key"] != LABEL_NODE {
            return Some(format!("n{}", ordinal + 1));
        }
        let is_taken =
            |node: &str| self.seen.pods.values().any(|pod| pod.set == name && pod.node.as_deref() == Some(node));
        let fits = self.seen.nodes.iter().filter(|(_, node)| node.labels.get(LABEL_NODE).is_some_and(|l| l == "main"));
        let mut free = fits.filter(|(node, state)| state.is_ready && !is_taken(node));
        free.next().map(|(node, _)| node.clone())
    }

    /// The controllers of Kubernetes, the agents and the status catch up.
    fn settle(&mut self) {
        for (key, set) in self.seen.objects.clone() {
            if key.kind != Kind::StatefulSet {
                continue;
            }
            let revision = digest(&set["spec"]["template"]);
            let found = self.seen.objects.get_mut(&key).unwrap();
            found["status"] = json!({"observedGeneration": set["metadata"]["generation"], "updateRevision": revision});
            for ordinal in 0..set["spec"]["replicas"].as_u64().unwrap() {
                let name = format!("{}-{ordinal}", key.name);
                let id = self.next();
                let node = self.place(&set, &key.name, ordinal);
                let pod = Pod {
                    set: key.name.clone(),
                    uid: format!("pod-{id}"),
                    is_ready: node.is_some(),
                    node,
                    is_terminating: false,
                    revision: revision.clone(),
                };
                let made = self.seen.pods.entry(name).or_insert_with(|| pod.clone());
                // One that waits for a node is still the same when it has got one.
                if made.node.is_none() {
                    *made = Pod { uid: made.uid.clone(), ..pod };
                }
            }
        }
        let plan = self.plan();
        if !plan.endpoints.is_empty() {
            self.seen.recorded.endpoints.clone_from(&plan.endpoints);
        }
        let members = self.spec.etcd.managed.as_ref().map_or(0, |etcd| etcd.members);
        let running = self.seen.pods.values().filter(|pod| pod.set.starts_with("main-etcd")).count();
        if running < usize::try_from(members).unwrap() {
            return;
        }
        if !self.initialized {
            self.seen.store = Store::Empty;
            return;
        }
        let by_pod = self.spec.storage.claim.is_some();
        let pods = self.seen.pods.iter().filter(|(_, pod)| pod.set == "main-agent" && pod.is_ready);
        let agents: BTreeMap<_, _> = pods
            .map(|(name, pod)| if by_pod { name.clone() } else { pod.node.clone().unwrap() })
            .map(|name| (name, Agent { id: "1".into(), is_alive: true, version: None, failed_disks: 0, space: None }))
            .collect();
        let ring = match &self.seen.store {
            Store::Cluster(cluster) => cluster.ring.clone(),
            _ => None,
        };
        let ring = ring.or((!agents.is_empty()).then(|| Ring {
            kind: "rendezvous".into(),
            replicas: 2,
            spread: None,
            agents: 3,
        }));
        let cluster =
            StoreCluster { id: "c1".into(), agents, ring, health: Health::default(), volumes: BTreeSet::new() };
        self.seen.recorded.cluster_id = Some("c1".into());
        self.seen.store = Store::Cluster(cluster);
    }

    /// Plans, carries out, settles, until there is nothing to do.
    fn converge(&mut self) -> usize {
        for round in 0..40 {
            let plan = self.plan();
            if plan.actions.is_empty() {
                let before = self.seen.clone();
                self.settle();
                if self.plan().actions.is_empty() && before == self.seen {
                    return round;
                }
                continue;
            }
            for action in &plan.actions {
                self.apply(action);
            }
            self.settle();
        }
        panic!("does not come to rest: {:?}", self.log);
    }

    fn health(&mut self) -> &mut Health {
        let Store::Cluster(cluster) = &mut self.seen.store else { panic!("no cluster") };
        &mut cluster.health
    }

    fn bodies(&self) -> BTreeMap<String, Value> {
        self.seen.objects.iter().map(|(key, body)| (key.to_string(), body["spec"]["template"].clone())).collect()
    }
}

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
fn pods_are_replaced_one_after_the_other_and_only_while_the_data_is_redundant() {
    let mut world = World::new(specs()[2].clone());
    world.converge();
    world.spec.image = Some("torus:2".into());
    let mut replaced = Vec::new();
    for _ in 0..30 {
        let plan = world.plan();
        let pods: Vec<_> = plan
            .actions
            .iter()
            .filter_map(|action| match action {
                Action::ReplacePod { name, .. } => Some(name.clone()),
                _ => None,
            })
            .collect();
        assert!(pods.len() <= 1);
        for action in &plan.actions {
            world.apply(action);
        }
        if !pods.is_empty() {
            // Its agent is away: nothing else is touched.
            assert!(
                matches!(world.plan().update, UpdateState::Waiting { .. } | UpdateState::Current),
                "{:?}",
                world.plan().update
            );
            replaced.extend(pods);
            world.settle();
            world.health().volumes.insert("db".into(), Copies { have: 1, asked: 2 });
            if let UpdateState::Waiting { why, .. } = world.plan().update {
                assert!(why.contains("db (1/2)"), "{why}");
            }
            assert!(!world.plan().actions.iter().any(|action| matches!(action, Action::ReplacePod { .. })));
        }
        world.settle();
    }
    assert_eq!(replaced, ["main-agent-2", "main-agent-1", "main-agent-0"]);
    assert_eq!(world.plan().update, UpdateState::Current);
}

#[test]
fn a_pod_that_does_not_work_is_replaced_without_asking_the_data() {
    let mut world = World::new(specs()[2].clone());
    world.converge();
    world.spec.image = Some("torus:2".into());
    let update = world.plan().actions;
    assert!(matches!(&update[..], [Action::Update(_), ..]), "{update:?}");
    for action in &update {
        world.apply(action);
    }
    world.settle();
    world.seen.pods.get_mut("main-agent-0").unwrap().is_ready = false;
    world.settle();
    world.health().missing.insert("n1".into());
    let plan = world.plan();
    assert!(
        plan.actions.iter().any(|action| matches!(action, Action::ReplacePod { name, .. } if name == "main-agent-0"))
    );
}

#[test]
fn nothing_is_replaced_by_hand_strategy_or_while_nobody_can_tell() {
    let mut world = World::new(specs()[2].clone());
    world.converge();
    world.spec.image = Some("torus:2".into());
    for action in world.plan().actions {
        world.apply(&action);
    }
    world.settle();
    world.seen.store = Store::Failed("no answer".into());
    let plan = world.plan();
    assert!(matches!(&plan.update, UpdateState::Waiting { why, .. } if why.contains("etcd")), "{:?}", plan.update);
    let budget = |action: &Action| matches!(action, Action::Update(object) if object.key.kind == Kind::PodDisruptionBudget && object.body["spec"]["maxUnavailable"] == 0);
    assert!(plan.actions.iter().any(budget), "{:?}", plan.actions);
    world.spec.update.kind = torus_api::UpdateType::OnDelete;
    assert!(matches!(world.plan().update, UpdateState::ByHand(pods) if pods.len() == 3));
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
