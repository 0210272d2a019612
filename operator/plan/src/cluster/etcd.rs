//! Where etcd is, and the objects of a managed one.
//!
//! The order: Services, whose addresses the apiserver gives; settings that name all addresses; members. An address that was given once
//! is asked for again if its Service was deleted, because members keep it in their data.

use super::{Observed, Obstacle, listed};
use crate::objects::{self, CLIENT_PORT, Kind, Object, Source};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use torus_api::ManagedEtcd;

/// What is known, and what it takes.
pub struct Stage {
    /// The addresses of the members.
    pub endpoints: Vec<String>,
    /// The objects of etcd.
    pub objects: Vec<Object>,
    /// Whether everything else can be made.
    pub is_whole: bool,
    /// What is the matter.
    pub obstacle: Option<Obstacle>,
}

/// The stage that etcd is in.
pub fn stage(source: &Source<'_>, seen: &Observed) -> Stage {
    match (&source.spec.etcd.external, &source.spec.etcd.managed) {
        (Some(external), _) => {
            Stage { endpoints: external.endpoints.clone(), objects: Vec::new(), is_whole: true, obstacle: None }
        }
        (None, Some(managed)) => managed_stage(source, managed, seen),
        // The schema does not let this be.
        (None, None) => Stage { endpoints: Vec::new(), objects: Vec::new(), is_whole: false, obstacle: None },
    }
}

fn managed_stage(source: &Source<'_>, etcd: &ManagedEtcd, seen: &Observed) -> Stage {
    let namespace = &source.owner.namespace;
    let recorded: Vec<_> = seen.recorded.endpoints.iter().map(|url| host_of(url)).collect();
    let mut stage = Stage { endpoints: Vec::new(), objects: Vec::new(), is_whole: false, obstacle: None };
    let mut addresses = Vec::new();
    for member in 0..etcd.members {
        let key = objects::etcd_service(source, member, None).key;
        let given = seen.objects.get(&key).and_then(|service| service["spec"]["clusterIP"].as_str());
        let before = usize::try_from(member).ok().and_then(|member| recorded.get(member)).copied().flatten();
        let address = given.filter(|address| !address.is_empty()).or(before);
        stage.objects.push(objects::etcd_service(source, member, before));
        addresses.extend(given.and(address).map(str::to_owned));
    }
    if addresses.len() < stage.objects.len() {
        stage.obstacle = Some(Obstacle { reason: "Starting", message: "etcd's members wait for addresses".into() });
        return stage;
    }
    let nodes = match pins(source, etcd, seen) {
        Ok(nodes) => nodes,
        Err(obstacle) => {
            stage.obstacle = Some(obstacle);
            BTreeMap::new()
        }
    };
    stage.objects.push(objects::etcd_config(source, &addresses));
    stage.objects.push(objects::etcd_disruption_budget(source));
    for member in 0..etcd.members {
        let node = nodes.get(&member).map(String::as_str);
        let made = objects::etcd_member(source, etcd, member, &addresses, node);
        let exists = seen.object(Kind::StatefulSet, namespace, &made.key.name).is_some();
        if etcd.claim.is_some() || node.is_some() || exists {
            stage.objects.push(made);
        }
    }
    stage.endpoints = addresses.iter().map(|address| url(address)).collect();
    stage.is_whole = stage.obstacle.is_none();
    stage
}

fn url(address: &str) -> String {
    if address.contains(':') {
        format!("http://[{address}]:{CLIENT_PORT}")
    } else {
        format!("http://{address}:{CLIENT_PORT}")
    }
}

fn host_of(url: &str) -> Option<&str> {
    let (host, _) = url.strip_prefix("http://")?.rsplit_once(':')?;
    Some(host.trim_matches(['[', ']']))
}

/// The node of each member that keeps its data on one. Chosen once: what a member's StatefulSet says stays so.
fn pins(source: &Source<'_>, etcd: &ManagedEtcd, seen: &Observed) -> Result<BTreeMap<i32, String>, Obstacle> {
    let mut pins = BTreeMap::new();
    if etcd.claim.is_some() {
        return Ok(pins);
    }
    for member in 0..etcd.members {
        let name = objects::member_name(&source.owner.name, member);
        let set = seen.object(Kind::StatefulSet, &source.owner.namespace, &name);
        pins.extend(set.and_then(pinned_to).map(|node| (member, node.to_owned())));
    }
    let zone = |node: &str| {
        let label = source.spec.placement.domain_labels.first()?;
        seen.nodes.get(node)?.labels.get(label).cloned()
    };
    for member in 0..etcd.members {
        if pins.contains_key(&member) {
            continue;
        }
        let taken: BTreeSet<_> = pins.values().collect();
        let in_zone_of = |node: &str| pins.values().filter(|other| zone(other) == zone(node)).count();
        let fits = |labels: &BTreeMap<String, String>| {
            etcd.pod.node_selector.iter().all(|(key, value)| labels.get(key) == Some(&value.0))
        };
        let free = seen
            .nodes
            .iter()
            .filter(|(name, node)| node.is_ready && node.is_schedulable && !taken.contains(name) && fits(&node.labels));
        let Some((node, _)) = free.min_by_key(|(name, _)| (in_zone_of(name), (*name).clone())) else {
            let message = format!(
                "etcd needs {} nodes for its members and has only {}: {}. Add nodes that are ready, or ask for fewer members",
                etcd.members,
                pins.len(),
                if pins.is_empty() { "no node is ready".into() } else { listed(pins.values().map(String::as_str)) }
            );
            return Err(Obstacle { reason: "TooFewNodes", message });
        };
        pins.insert(member, node.clone());
    }
    Ok(pins)
}

fn pinned_to(set: &Value) -> Option<&str> {
    let affinity = &set["spec"]["template"]["spec"]["affinity"]["nodeAffinity"];
    let term = &affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][0];
    term["matchFields"][0]["values"][0].as_str()
}
