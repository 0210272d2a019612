//! From what is asked for and what is there to what is to be done: [`plan`], a pure function.
//!
//! The executor carries out the actions in their order and then looks again; it decides nothing. So all that can go wrong
//! in an order can be tried without a cluster: the tests apply plans to a made-up one, one action at a time, stop anywhere,
//! and plan again.
//!
//! Invariants:
//! 1. A plan whose actions were all carried out, and settled, is followed by an empty one.
//! 2. Nothing is made before the finalizer is set; the finalizer goes only when all is gone that Kubernetes does not remove by itself.
//! 3. No StatefulSet, no claim and no data is ever deleted by a plan.
//! 4. A cluster is initialized in etcd only where none was recorded: an etcd that lost its data is not made a new one of.
//! 5. At most one pod is replaced in a plan, and one that works only while all data has all of its copies.
//! 6. What cannot be known counts as bad: no pod is replaced, and the disruption budget is zero.
//! 7. Agents are started only when etcd holds the cluster; once there they stay, whatever becomes of etcd.

mod diff;
mod etcd;
mod nodes;
mod observed;
mod update;

pub use diff::{covers, differs};
pub use observed::{Agent, Node, Observed, Pod, Recorded, Refusal, Ring, Secret, Store, StoreCluster, Taint};
pub use update::UpdateState;

use crate::contract::{SECRET_CA, SECRET_CERT, SECRET_KEY};
use crate::objects::{self, Key, Kind, Object, Owner, Source};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use torus_api::{ClusterDeletionPolicy, StorageSpec, TorusClusterSpec};

/// One thing to do.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Set the finalizer.
    AddFinalizer,
    /// Make an object that is not there.
    Create(Object),
    /// Apply an object that is there and differs.
    Update(Object),
    /// Delete an object, if it still is the one that was seen.
    Delete {
        /// Which.
        key: Key,
        /// The one of that name that was seen.
        uid: String,
    },
    /// Delete a pod, so that its StatefulSet makes one of the new revision.
    ReplacePod {
        /// Its name.
        name: String,
        /// The one of that name that was seen.
        uid: String,
    },
    /// Set the label that keeps the node plugin away, or take it away.
    LabelNode {
        /// The node.
        node: String,
        /// The cluster whose agent is there.
        value: Option<String>,
    },
    /// Take away the label that says of which cluster a node's CSI driver was, if it still says what was seen.
    ForgetTopology {
        /// The node.
        node: String,
        /// The cluster that was seen there.
        id: String,
    },
    /// Make the cluster in etcd.
    InitCluster {
        /// Copies by default.
        replicas: u8,
        /// Size of an extent.
        extent_bytes: u64,
    },
    /// Bring the ring's parameters to what the spec says.
    SetRing {
        /// Its kind.
        kind: &'static str,
        /// Copies.
        replicas: u8,
        /// The level that copies are spread over.
        spread: Option<u8>,
    },
    /// Take the finalizer away: the object then goes.
    RemoveFinalizer,
}

/// Something that stands in the way: a reason for programs and a sentence for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Obstacle {
    /// One word.
    pub reason: &'static str,
    /// What is so, and what to do.
    pub message: String,
}

/// What is to be done, and what was found on the way.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    /// In order.
    pub actions: Vec<Action>,
    /// Why nothing is done at all.
    pub refused: Option<Obstacle>,
    /// What is the matter with etcd.
    pub etcd: Option<Obstacle>,
    /// What holds the deletion.
    pub held: Option<Obstacle>,
    /// An action that failed when it was carried out: filled in by who does that.
    pub failed: Option<Obstacle>,
    /// Where etcd is, as far as it is known.
    pub endpoints: Vec<String>,
    /// How far an update is.
    pub update: UpdateState,
}

/// What is to be done for a TorusCluster.
#[must_use]
pub fn plan(owner: &Owner, spec: &TorusClusterSpec, own_image: &str, seen: &Observed) -> Plan {
    let mut plan = Plan { refused: refusal(spec, seen), ..Plan::default() };
    if seen.is_deleting || seen.is_namespace_deleting {
        deletion(owner, spec, seen, &mut plan);
        return plan;
    }
    if plan.refused.is_some() {
        return plan;
    }
    if !seen.has_finalizer {
        plan.actions.push(Action::AddFinalizer);
        return plan;
    }
    let secret_keys = match &seen.secret {
        Secret::Keys(keys) => keys.clone(),
        _ => BTreeSet::new(),
    };
    let source = |endpoints| Source { owner, spec, own_image, endpoints, secret_keys: &secret_keys };
    let stage = etcd::stage(&source(&[]), seen);
    plan.etcd = stage.obstacle.or_else(|| store_obstacle(seen));
    plan.endpoints.clone_from(&stage.endpoints);
    let mut desired = stage.objects;
    let is_whole = stage.is_whole;
    if is_whole {
        workloads(&source(&stage.endpoints), seen, &mut desired);
    }
    let changed = changes(&desired, seen, &mut plan.actions);
    if is_whole && !changed.conflict {
        prune(owner, &desired, seen, &mut plan.actions);
    }
    store_actions(spec, seen, &mut plan.actions);
    nodes::labels(owner, spec, seen, &mut plan.actions);
    if let Some(cluster) = seen.cluster() {
        nodes::forget_topology(seen, Some(&cluster.id), &mut plan.actions);
    }
    plan.update = update::step(owner, spec, seen, &changed.sets, &mut plan.actions);
    plan
}

/// Why nothing is done, if so.
fn refusal(spec: &TorusClusterSpec, seen: &Observed) -> Option<Obstacle> {
    let (reason, message) = match &seen.refused {
        Some(Refusal::Older(other)) => (
            "AnotherCluster",
            format!(
                "TorusCluster {other} is served already, and one is all that a Kubernetes cluster can have: the CSI driver is one. Delete this one"
            ),
        ),
        Some(Refusal::Namespace { served }) => (
            "WrongNamespace",
            format!("the operator serves TorusClusters of its own namespace only. Make this one in {served:?}"),
        ),
        None if spec.paused => {
            ("Paused", "spec.paused is set: nothing is made, changed or deleted until it is taken away".into())
        }
        None => secret_obstacle(spec, seen)?,
    };
    Some(Obstacle { reason, message })
}

fn secret_obstacle(spec: &TorusClusterSpec, seen: &Observed) -> Option<(&'static str, String)> {
    let external = spec.etcd.external.as_ref()?;
    let is_tls = external.endpoints.iter().all(|url| url.starts_with("https://"));
    let keys = match (&external.secret, &seen.secret) {
        (Some(secret), Secret::Missing | Secret::NotNamed) => {
            let message = format!(
                "there is no secret {0:?}, which spec.etcd.external.secret names. Make it: kubectl create secret generic {0} --from-file={SECRET_CA}=…",
                secret.name
            );
            return Some(("SecretMissing", message));
        }
        (Some(secret), Secret::Forbidden) => {
            let message = format!(
                "the operator may not read the secret {0:?}, which spec.etcd.external.secret names. Name it to the chart: helm upgrade … --set 'etcdSecrets={{{0}}}'",
                secret.name
            );
            return Some(("SecretForbidden", message));
        }
        (Some(secret), Secret::Unread(why)) => {
            return Some((
                "SecretUnread",
                format!("cannot read the secret {:?}: {why}. It is tried again", secret.name),
            ));
        }
        (Some(_), Secret::Keys(keys)) => keys.clone(),
        (None, _) => BTreeSet::new(),
    };
    let name = external.secret.as_ref().map_or("", |secret| &secret.name);
    if is_tls && !keys.contains(SECRET_CA) {
        let message = if name.is_empty() {
            format!(
                "https endpoints of etcd need the CA that signed their certificates: name a secret with the key {SECRET_CA} in spec.etcd.external.secret"
            )
        } else {
            format!(
                "the secret {name:?} has no {SECRET_CA}, which https endpoints of etcd need: add the certificate of the CA that signed theirs"
            )
        };
        return Some(("SecretIncomplete", message));
    }
    if keys.contains(SECRET_CERT) != keys.contains(SECRET_KEY) {
        let message = format!(
            "the secret {name:?} has one of {SECRET_CERT} and {SECRET_KEY}: they belong together, add the other"
        );
        return Some(("SecretIncomplete", message));
    }
    None
}

/// What is the matter with the metadata store.
fn store_obstacle(seen: &Observed) -> Option<Obstacle> {
    let recorded = seen.recorded.cluster_id.as_deref();
    let (reason, message) = match &seen.store {
        Store::NotAsked => ("Starting", "it is not known yet where etcd is".into()),
        Store::Failed(why) => (
            "Unreachable",
            format!("{why}. Data goes on where volumes are open; nothing is changed until etcd answers"),
        ),
        Store::Empty => {
            let id = recorded?;
            let message = format!(
                "etcd holds no Torus cluster any more, and it was {id}: its data was lost, or spec.etcd points elsewhere. Restore etcd from a backup; the data is still on the disks, and no new cluster is made over it"
            );
            ("MetadataLost", message)
        }
        Store::Cluster(cluster) => {
            let id = recorded.filter(|id| *id != cluster.id)?;
            let message = format!(
                "etcd holds the cluster {}, and this one is {id}: correct spec.etcd, or its prefix",
                cluster.id
            );
            ("OtherCluster", message)
        }
    };
    Some(Obstacle { reason, message })
}

/// All objects beyond etcd.
fn workloads(source: &Source<'_>, seen: &Observed, desired: &mut Vec<Object>) {
    let spec = source.spec;
    desired.push(objects::agent_config(source));
    desired.push(objects::domains(source, &nodes::domains(spec, seen)));
    desired.push(objects::agent_service(source));
    let is_redundant = seen.cluster().is_some_and(|cluster| cluster.health.is_redundant());
    desired.push(objects::disruption_budget(source, is_redundant));
    let agents = objects::agents(source);
    if seen.cluster().is_some() || seen.objects.contains_key(&agents.key) {
        // Before the agents, which hand their devices to it.
        desired.push(objects::holder(source));
        desired.push(agents);
        desired.push(objects::driver(source));
        let plugin = objects::node_plugin(source);
        // Begun before it is known where agents are, it would come up beside them and take their ports.
        let may_begin = seen.objects.contains_key(&plugin.key) || nodes::are_labelled(source.owner, spec, seen);
        if spec.node_plugin.enabled && may_begin {
            desired.push(plugin);
        }
        desired.push(objects::controller(source));
        if spec.storage_class.create {
            desired.push(objects::storage_class(source));
        }
    }
}

/// What making the objects so takes.
struct Changes {
    /// StatefulSets that are made or changed by this plan.
    sets: BTreeSet<String>,
    /// Whether an object has to go before it can be made anew.
    conflict: bool,
}

fn changes(desired: &[Object], seen: &Observed, actions: &mut Vec<Action>) -> Changes {
    let mut changes = Changes { sets: BTreeSet::new(), conflict: false };
    let by_key: BTreeMap<_, _> = desired.iter().map(|object| (&object.key, object)).collect();
    for (key, object) in by_key {
        let action = match seen.objects.get(key) {
            None => Action::Create(object.clone()),
            Some(found) if !found["metadata"]["deletionTimestamp"].is_null() => {
                changes.conflict = true;
                continue;
            }
            Some(found) if !differs(object, found) => continue,
            Some(found) if key.kind == Kind::StorageClass && is_other_class(&object.body, found) => {
                changes.conflict = true;
                Action::Delete { key: key.clone(), uid: uid(found) }
            }
            Some(_) => Action::Update(object.clone()),
        };
        if key.kind == Kind::StatefulSet {
            changes.sets.insert(key.name.clone());
        }
        actions.push(action);
    }
    changes
}

/// Whether a StorageClass differs in what cannot be changed: it is deleted and made anew, which no claim notices.
fn is_other_class(desired: &Value, found: &Value) -> bool {
    ["provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"]
        .iter()
        .any(|field| found[*field] != desired[*field])
}

fn uid(found: &Value) -> String {
    found["metadata"]["uid"].as_str().unwrap_or_default().into()
}

/// Deletes what is not wanted any more. Never what holds or serves data.
fn prune(owner: &Owner, desired: &[Object], seen: &Observed, actions: &mut Vec<Action>) {
    let wanted: BTreeSet<_> = desired.iter().map(|object| &object.key).collect();
    for (key, found) in &seen.objects {
        let can_go = matches!(key.kind, Kind::StorageClass | Kind::DaemonSet);
        let is_ours = key.namespace.is_empty() || key.namespace == owner.namespace;
        if can_go && is_ours && !wanted.contains(key) && found["metadata"]["deletionTimestamp"].is_null() {
            actions.push(Action::Delete { key: key.clone(), uid: uid(found) });
        }
    }
}

/// The size of an extent for good: 64 MiB, or less where an agent's disk would hold few of them. Each volume that is open takes some
/// slots on every agent, however little it holds, so a disk with few has room for few volumes.
fn extent_bytes(storage: &StorageSpec) -> u64 {
    const MOST: u64 = 64 << 20;
    const LEAST: u64 = 4 << 20;
    const SLOTS_MIN: u64 = 256;
    let claim = storage.claim.as_ref().map(|claim| &claim.size);
    let size = claim.or_else(|| storage.host_path.as_ref().map(|directory| &directory.size));
    // How large devices are is not known here.
    let Some(disk) = size.and_then(|size| size.bytes().ok()) else { return MOST };
    let fits = |extent: &u64| *extent <= LEAST || disk / extent >= SLOTS_MIN;
    std::iter::successors(Some(MOST), |extent| Some(extent / 2)).find(fits).unwrap_or(LEAST)
}

/// What is to be done in etcd.
fn store_actions(spec: &TorusClusterSpec, seen: &Observed, actions: &mut Vec<Action>) {
    let replicas = u8::try_from(spec.replicas).unwrap_or(1);
    if seen.store == Store::Empty && seen.recorded.cluster_id.is_none() {
        actions.push(Action::InitCluster { replicas, extent_bytes: extent_bytes(&spec.storage) });
    }
    let Some(ring) = seen.cluster().and_then(|cluster| cluster.ring.as_ref()) else { return };
    let kind = spec.placement.ring.as_str();
    let spread = spec.placement.spread_level.and_then(|level| u8::try_from(level).ok());
    if ring.agents > 0 && (ring.kind != kind || ring.replicas != replicas || ring.spread != spread) {
        actions.push(Action::SetRing { kind, replicas, spread });
    }
}

/// Names in a sentence, at most ten of them.
#[must_use]
pub fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.into_iter().collect();
    let shown = names.iter().take(10).copied().collect::<Vec<_>>().join(", ");
    if names.len() > 10 { format!("{shown} and {} more", names.len() - 10) } else { shown }
}

/// A TorusCluster that is to go. Its own objects are owned by it, and go with it; what is in no namespace, and the labels of
/// nodes, are taken away here.
fn deletion(owner: &Owner, spec: &TorusClusterSpec, seen: &Observed, plan: &mut Plan) {
    if !seen.has_finalizer {
        return;
    }
    if !matches!(seen.refused, Some(Refusal::Older(_) | Refusal::Namespace { .. })) {
        plan.held = hold(spec, seen);
        if plan.held.is_some() {
            return;
        }
        for (key, found) in
            seen.objects.iter().filter(|(key, _)| matches!(key.kind, Kind::CsiDriver | Kind::StorageClass))
        {
            if found["metadata"]["deletionTimestamp"].is_null() {
                plan.actions.push(Action::Delete { key: key.clone(), uid: uid(found) });
            }
        }
        nodes::unlabel(owner, seen, &mut plan.actions);
        nodes::forget_topology(seen, None, &mut plan.actions);
    }
    if plan.actions.is_empty() {
        plan.actions.push(Action::RemoveFinalizer);
    }
}

/// What keeps a TorusCluster from going.
fn hold(spec: &TorusClusterSpec, seen: &Observed) -> Option<Obstacle> {
    // Agents and etcd go with their namespace, whatever is decided here: holding it back would only make that hang.
    if seen.is_namespace_deleting || spec.deletion_policy == ClusterDeletionPolicy::KeepData {
        return None;
    }
    let out = "Delete them first, or set spec.deletionPolicy to KeepData to leave disks and etcd's data as they are";
    if !seen.volume_objects.is_empty() {
        let names = listed(seen.volume_objects.iter().map(String::as_str));
        return Some(Obstacle { reason: "VolumesExist", message: format!("there are TorusVolumes: {names}. {out}") });
    }
    match &seen.store {
        Store::Cluster(cluster) if !cluster.volumes.is_empty() => {
            let names = listed(cluster.volumes.iter().map(String::as_str));
            Some(Obstacle { reason: "VolumesExist", message: format!("volumes hold data: {names}. {out}") })
        }
        Store::Cluster(_) | Store::Empty => None,
        Store::NotAsked if seen.recorded.cluster_id.is_none() => None,
        Store::NotAsked | Store::Failed(_) => {
            let why = if let Store::Failed(why) = &seen.store { why } else { "it is not known where etcd is" };
            let message = format!(
                "nobody can tell whether volumes hold data: {why}. Mend etcd, or set spec.deletionPolicy to KeepData"
            );
            // Where nothing was ever recorded, nothing can be lost.
            seen.recorded.cluster_id.as_ref().map(|_| Obstacle { reason: "MetadataUnreachable", message })
        }
    }
}

#[cfg(test)]
mod tests;
