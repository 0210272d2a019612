//! Nodes: their failure domains, and the label of those that have a storage agent.

use super::{Action, Observed};
use crate::contract::LABEL_NODE;
use crate::objects::{Kind, Owner};
use std::collections::{BTreeMap, BTreeSet};
use torus_api::TorusClusterSpec;

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

/// Labels nodes that have an agent, and takes the label from those that have none any more. While a pod of an agent is yet to
/// be placed, it may come back to where it was: the label stays until all of them have a node.
pub fn labels(owner: &Owner, spec: &TorusClusterSpec, seen: &Observed, actions: &mut Vec<Action>) {
    let set = format!("{}-agent", owner.name);
    if seen.object(Kind::StatefulSet, &owner.namespace, &set).is_none() {
        return;
    }
    let placed: Vec<_> = seen.pods.values().filter(|pod| pod.set == set).filter_map(|pod| pod.node.as_ref()).collect();
    let all_placed = placed.len() >= usize::try_from(spec.storage.count).unwrap_or(usize::MAX);
    let with_agent: BTreeSet<_> = placed.into_iter().collect();
    for (name, node) in &seen.nodes {
        let label = node.labels.get(LABEL_NODE);
        let is_ours = label.is_some_and(|value| *value == owner.name);
        if with_agent.contains(name) && !is_ours {
            actions.push(Action::LabelNode { node: name.clone(), value: Some(owner.name.clone()) });
        } else if is_ours && all_placed && !with_agent.contains(name) {
            actions.push(Action::LabelNode { node: name.clone(), value: None });
        }
    }
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

/// Takes the label from all nodes.
pub fn unlabel(owner: &Owner, seen: &Observed, actions: &mut Vec<Action>) {
    for (name, node) in &seen.nodes {
        if node.labels.get(LABEL_NODE).is_some_and(|value| *value == owner.name) {
            actions.push(Action::LabelNode { node: name.clone(), value: None });
        }
    }
}
