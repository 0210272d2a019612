//! The plan against a made-up Kubernetes that does what the actions say.

mod deletion;
mod etcd;
mod nodes;
mod update;
mod whole;

use super::*;
use crate::contract::{LABEL_NODE, LABEL_TOPOLOGY};
use crate::health::{Copies, Health};
use crate::objects::digest;
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
            Action::ForgetTopology { node, id } => {
                let forgotten = self.seen.nodes.get_mut(node).unwrap().labels.remove(LABEL_TOPOLOGY);
                assert_eq!(forgotten.as_ref(), Some(id));
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
