//! Bringing pods to a new revision, one after the other.
//!
//! StatefulSets are `OnDelete`: Kubernetes' own rolling update asks only whether a pod is ready, and an agent is ready long
//! before the data that missed it has its copies again.

use super::{Action, Observed, Pod, listed};
use crate::objects::{Kind, Owner};
use serde_json::Value;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use torus_api::{TorusClusterSpec, UpdateType};

/// How far an update is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum UpdateState {
    /// Nothing is out of date.
    #[default]
    Current,
    /// Pods are out of date, and somebody else is to delete them.
    ByHand(Vec<String>),
    /// A pod is being replaced.
    Replacing(String),
    /// The next pod waits.
    Waiting {
        /// Which.
        pod: String,
        /// What for.
        why: String,
    },
}

/// Replaces the next pod, if there is one and it may be. `changing`: StatefulSets that this plan makes or changes.
pub fn step(
    owner: &Owner,
    spec: &TorusClusterSpec,
    seen: &Observed,
    changing: &BTreeSet<String>,
    actions: &mut Vec<Action>,
) -> UpdateState {
    let sets: Vec<_> = seen
        .objects
        .iter()
        .filter(|(key, _)| key.kind == Kind::StatefulSet && key.namespace == owner.namespace)
        .map(|(key, set)| (key.name.as_str(), set))
        .collect();
    let outdated = |name: &str, set: &Value| {
        let revision = set["status"]["updateRevision"].as_str().map(str::to_owned);
        let is_old = move |pod: &Pod| revision.as_ref().is_some_and(|revision| pod.revision != *revision);
        let is_settled =
            set["status"]["observedGeneration"] == set["metadata"]["generation"] && !changing.contains(name);
        let pods = seen.pods.iter().filter(|(_, pod)| pod.set == name && is_settled && is_old(pod));
        pods.map(|(name, pod)| (name.clone(), pod.clone())).collect::<Vec<_>>()
    };
    let mut old: Vec<_> = sets.iter().flat_map(|(name, set)| outdated(name, set)).collect();
    // etcd first, and the last ordinal of each first: as Kubernetes does it.
    let agents = format!("{}-agent", owner.name);
    old.sort_by_key(|(name, pod)| (pod.set == agents, pod.set.clone(), Reverse(ordinal(name))));
    let Some((next, pod)) = old.iter().find(|(_, pod)| !pod.is_ready).or(old.first()) else {
        return UpdateState::Current;
    };
    if spec.update.kind == UpdateType::OnDelete {
        return UpdateState::ByHand(old.into_iter().map(|(name, _)| name).collect());
    }
    if let Some((name, _)) = seen.pods.iter().find(|(_, pod)| pod.is_terminating) {
        return UpdateState::Replacing(name.clone());
    }
    let is_up = pod.is_ready || has_living_agent(next, pod, seen);
    let obstacle = if is_up { obstacle(&sets, seen) } else { None };
    match obstacle {
        Some(why) => UpdateState::Waiting { pod: next.clone(), why },
        None => {
            actions.push(Action::ReplacePod { name: next.clone(), uid: pod.uid.clone() });
            UpdateState::Replacing(next.clone())
        }
    }
}

/// Whether an agent that gives signs of life goes by the name of the pod or of its node. What cannot be known counts as alive.
fn has_living_agent(name: &str, pod: &Pod, seen: &Observed) -> bool {
    let Some(cluster) = seen.cluster() else { return true };
    let node = pod.node.as_deref().unwrap_or(name);
    [name, node].iter().any(|name| cluster.agents.get(*name).is_some_and(|agent| agent.is_alive))
}

/// Why no working pod may be taken away now.
fn obstacle(sets: &[(&str, &Value)], seen: &Observed) -> Option<String> {
    for (name, set) in sets {
        let asked = set["spec"]["replicas"].as_u64().and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
        let ready = seen.pods.values().filter(|pod| pod.set == *name && pod.is_ready).count();
        if ready < asked {
            return Some(format!("{ready} of {asked} pods of {name} are ready"));
        }
    }
    let Some(cluster) = seen.cluster() else { return Some("etcd does not say how the data is".into()) };
    if !cluster.health.missing.is_empty() {
        return Some(format!("agents are missing: {}", listed(cluster.health.missing.iter().map(String::as_str))));
    }
    let short: Vec<_> = cluster.health.volumes.iter().filter(|(_, copies)| !copies.is_full()).collect();
    let names: Vec<_> = short.iter().map(|(name, copies)| format!("{name} ({copies})")).collect();
    (!names.is_empty())
        .then(|| format!("volumes have fewer copies than asked: {}", listed(names.iter().map(String::as_str))))
}

fn ordinal(name: &str) -> u32 {
    name.rsplit('-').next().and_then(|part| part.parse().ok()).unwrap_or(0)
}
