//! Nodes: their failure domains, and the label of those that have a storage agent.
//!
//! Agents whose disks are claims go where the scheduler puts them, and the label follows. Those whose disks are the nodes' own are
//! bound to nodes with the label, and the plan chooses these: an agent that were started elsewhere while its node is
//! down would begin with an empty disk, and leave the one with the data behind for good. A node is given up by deleting it from
//! Kubernetes, or by taking its label away.

use super::{Action, Node, Observed, Taint};
use crate::contract::{LABEL_NODE, LABEL_TOPOLOGY};
use crate::objects::{Kind, Owner};
use std::collections::{BTreeMap, BTreeSet};
use torus_api::{Toleration, TolerationOperator, TorusClusterSpec};

/// Longest part of a failure domain.
const PART_BYTES_MAX: usize = 63;
/// Stands for a label that a node does not have.
const UNKNOWN: &str = "unknown";

/// The failure domain of each node: the values of the labels that the spec names, outermost first, then the node.
pub fn domains(spec: &TorusClusterSpec, seen: &Observed) -> BTreeMap<String, String> {
    let of_node = |name: &String, labels: &BTreeMap<String, String>| {
        let values = spec.placement.domain_labels.iter().map(|label| labels.get(label).map_or(UNKNOWN, String::as_str));
        values.chain([name.as_str()]).map(part).collect::<Vec<_>>().join("/")
    };
    seen.nodes.iter().map(|(name, node)| (name.clone(), of_node(name, &node.labels))).collect()
}

/// A value as part of a path of names. Labels have the same letters; a node's name may be longer.
fn part(value: &str) -> String {
    let text: String = value.chars().take(PART_BYTES_MAX).collect();
    if text.is_empty() { UNKNOWN.into() } else { text }
}

/// Labels nodes that have an agent, and where an agent moves with its disk, takes the label from those that have none any more. While a
/// pod of an agent is yet to be placed, it may come back to where it was: the label stays until all of them have a node.
pub fn labels(owner: &Owner, spec: &TorusClusterSpec, seen: &Observed, actions: &mut Vec<Action>) {
    let set = format!("{}-agent", owner.name);
    if seen.object(Kind::StatefulSet, &owner.namespace, &set).is_none() {
        return;
    }
    if spec.storage.claim.is_none() {
        let chosen = choose(owner, spec, seen).into_iter();
        actions.extend(chosen.map(|node| Action::LabelNode { node, value: Some(owner.name.clone()) }));
    }
    let placed: Vec<_> = seen.pods.values().filter(|pod| pod.set == set).filter_map(|pod| pod.node.as_ref()).collect();
    let all_placed = placed.len() >= usize::try_from(spec.storage.count).unwrap_or(usize::MAX);
    let with_agent: BTreeSet<_> = placed.into_iter().collect();
    for (name, node) in &seen.nodes {
        let label = node.labels.get(LABEL_NODE);
        let is_ours = label.is_some_and(|value| *value == owner.name);
        if with_agent.contains(name) && !is_ours {
            actions.push(Action::LabelNode { node: name.clone(), value: Some(owner.name.clone()) });
        } else if is_ours && spec.storage.claim.is_some() && all_placed && !with_agent.contains(name) {
            actions.push(Action::LabelNode { node: name.clone(), value: None });
        }
    }
}

/// Nodes that are to have the label besides those that have it, so that there is one for each agent: such as are ready and take its
/// pod, those first whose zone has the fewest.
fn choose(owner: &Owner, spec: &TorusClusterSpec, seen: &Observed) -> Vec<String> {
    let wanted = usize::try_from(spec.storage.count).unwrap_or(0);
    let zone = |node: &Node| node.labels.get(spec.placement.domain_labels.first()?).cloned();
    let set = format!("{}-agent", owner.name);
    let has_agent = |name: &str| seen.pods.values().any(|pod| pod.set == set && pod.node.as_deref() == Some(name));
    let mut zones = Vec::new();
    for (name, node) in &seen.nodes {
        if node.labels.get(LABEL_NODE) == Some(&owner.name) || has_agent(name) {
            zones.push(zone(node));
        }
    }
    let mut free: Vec<_> = seen
        .nodes
        .iter()
        .filter(|(name, node)| !node.labels.contains_key(LABEL_NODE) && !has_agent(name) && takes_agent(spec, node))
        .collect();
    let mut chosen = Vec::new();
    while zones.len() < wanted {
        let crowd = |node: &Node| zones.iter().filter(|other| **other == zone(node)).count();
        let next = (0..free.len()).min_by_key(|at| (crowd(free[*at].1), free[*at].0));
        let Some(next) = next else { break };
        let (name, node) = free.remove(next);
        zones.push(zone(node));
        chosen.push(name.clone());
    }
    chosen
}

/// Whether an agent's pod can be placed on a node, as far as labels and taints say.
fn takes_agent(spec: &TorusClusterSpec, node: &Node) -> bool {
    let fits = spec.agent.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(&value.0));
    let tolerates = |taint: &Taint| spec.agent.tolerations.iter().any(|toleration| covers(toleration, taint));
    node.is_ready && node.is_schedulable && fits && node.taints.iter().all(tolerates)
}

fn covers(toleration: &Toleration, taint: &Taint) -> bool {
    let is_of_key = toleration.key.as_ref().is_none_or(|key| *key == taint.key);
    let is_of_effect = toleration.effect.is_none_or(|effect| effect == taint.effect);
    let is_of_value = match toleration.operator {
        TolerationOperator::Exists => true,
        TolerationOperator::Equal => toleration.value.as_deref().unwrap_or_default() == taint.value,
    };
    is_of_key && is_of_effect && is_of_value
}

/// Whether every agent has a node, and every such node its label.
pub fn are_labelled(owner: &Owner, spec: &TorusClusterSpec, seen: &Observed) -> bool {
    let set = format!("{}-agent", owner.name);
    let placed: Vec<_> = seen.pods.values().filter(|pod| pod.set == set).filter_map(|pod| pod.node.as_ref()).collect();
    let is_labelled = |node: &&String| {
        let label = seen.nodes.get(*node).and_then(|node| node.labels.get(LABEL_NODE));
        label.is_some_and(|value| *value == owner.name)
    };
    placed.len() >= usize::try_from(spec.storage.count).unwrap_or(usize::MAX) && placed.iter().all(is_labelled)
}

/// Takes the label that a kubelet set for the driver of a cluster from nodes where that cluster is not `current`: there is one driver, so it
/// is of one that is gone. Nobody else takes it away, and with it the kubelet would take no driver of another cluster.
pub fn forget_topology(seen: &Observed, current: Option<&str>, actions: &mut Vec<Action>) {
    for (node, state) in &seen.nodes {
        if let Some(id) = state.labels.get(LABEL_TOPOLOGY).filter(|id| Some(id.as_str()) != current) {
            actions.push(Action::ForgetTopology { node: node.clone(), id: id.clone() });
        }
    }
}

/// Takes the label from all nodes.
pub fn unlabel(owner: &Owner, seen: &Observed, actions: &mut Vec<Action>) {
    for (name, node) in &seen.nodes {
        if node.labels.get(LABEL_NODE).is_some_and(|value| *value == owner.name) {
            actions.push(Action::LabelNode { node: name.clone(), value: None });
        }
    }
}
