//! What the status of a TorusCluster says: computed from what was seen and planned, never from what was done.
//!
//! Equal input gives an equal status, so that one that says nothing new is not written; the time of a condition moves only
//! with its status.

use crate::cluster::{Observed, Obstacle, Plan, Pod, Store, StoreCluster, UpdateState};
use crate::objects::Kind;
use std::collections::BTreeSet;
use torus_api::{AgentStatus, Condition, EtcdStatus, Quantity, TorusClusterSpec, TorusClusterStatus, set_condition};

/// The states of an agent that gives signs of life.
const UP: &str = "Up";
const FAILED_DISK: &str = "FailedDisk";

/// The status. `before`: as it is; `now`: in RFC 3339, for conditions whose status changes.
#[must_use]
pub fn cluster_status(
    name: &str,
    spec: &TorusClusterSpec,
    generation: i64,
    seen: &Observed,
    plan: &Plan,
    before: &TorusClusterStatus,
    now: &str,
) -> TorusClusterStatus {
    let mut status = before.clone();
    status.observed_generation = generation;
    let set = format!("{name}-agent");
    let pods: Vec<_> = seen.pods.iter().filter(|(_, pod)| pod.set == set).collect();
    let agents = agents(&pods, seen, &set);
    // A pod may pass for ready some seconds longer than its agent lives, and before etcd has its agent. Where etcd does not say, it is
    // all that is known.
    let is_known = seen.cluster().is_some();
    let runs = |((_, pod), agent): &(&(&String, &Pod), &AgentStatus)| pod.is_ready && (!is_known || lives(agent));
    let ready = pods.iter().zip(&agents).filter(runs).count();
    let asked = usize::try_from(spec.storage.count).unwrap_or(0);
    status.agents_summary = Some(format!("{ready}/{asked}"));
    if let Some(cluster) = seen.cluster() {
        of_store(cluster, spec, &mut status);
    }
    if !plan.endpoints.is_empty() && plan.refused.is_none() {
        status.etcd = Some(EtcdStatus { endpoints: plan.endpoints.clone() });
    }
    status.agents = agents;
    let mut tell = |kind: &str, holds: bool, reason: &str, message: &str| {
        set_condition(&mut status.conditions, Condition::found(generation, now, kind, holds, reason, message));
    };
    let mut obstacle = |kind: &str, found: &Option<Obstacle>, good: (&str, &str)| match found {
        Some(obstacle) => tell(kind, false, obstacle.reason, &obstacle.message),
        None => tell(kind, true, good.0, good.1),
    };
    obstacle("Accepted", &plan.refused, ("Accepted", "the spec can be carried out"));
    if plan.refused.is_none() {
        obstacle("Etcd", &plan.etcd, ("Answers", "etcd answers, and holds this cluster"));
    }
    obstacle("Healthy", &health_condition(seen), ("AllCopies", "all data has all of its copies"));
    let (is_updating, reason, message) = updating(&plan.update);
    tell("Updating", is_updating, reason, &message);
    let waits = not_ready(seen, plan, ready, asked);
    let is_ready = waits.is_none();
    match &waits {
        Some(obstacle) => tell("Ready", false, obstacle.reason, &obstacle.message),
        None => tell("Ready", true, "Ready", "all agents run, and volumes can be made"),
    }
    if seen.is_deleting {
        match &plan.held {
            Some(obstacle) => tell("Deleting", false, obstacle.reason, &obstacle.message),
            None => tell("Deleting", true, "Deleting", "what belongs to it is being deleted"),
        }
    }
    status.health = Some(seen.cluster().map_or("Unknown", |cluster| cluster.health.word()).into());
    status.phase = Some(phase(seen, plan, is_ready, before).into());
    status
}

fn of_store(cluster: &StoreCluster, spec: &TorusClusterSpec, status: &mut TorusClusterStatus) {
    status.cluster_id = Some(cluster.id.clone());
    status.volumes = i64::try_from(cluster.volumes.len()).unwrap_or(i64::MAX);
    let worst = cluster.health.worst().map(|copies| copies.to_string());
    let alive = cluster.agents.values().filter(|agent| agent.is_alive).count();
    let replicas = usize::try_from(spec.replicas).unwrap_or(0);
    status.redundancy = Some(worst.unwrap_or_else(|| format!("{}/{replicas}", alive.min(replicas))));
    let spaces = || cluster.agents.values().filter_map(|agent| agent.space);
    let used: u64 = spaces().map(|(used, _)| used).sum();
    let total: u64 = spaces().map(|(_, total)| total).sum();
    status.used = (total > 0).then(|| format!("{}/{}", Quantity::rounded(used), Quantity::rounded(total)));
    let versions: BTreeSet<_> = cluster.agents.values().filter_map(|agent| agent.version.as_deref()).collect();
    status.version = (!versions.is_empty()).then(|| versions.into_iter().collect::<Vec<_>>().join(", "));
}

fn agents(pods: &[(&String, &Pod)], seen: &Observed, set: &str) -> Vec<AgentStatus> {
    let revision = seen
        .objects
        .iter()
        .find(|(key, _)| key.kind == Kind::StatefulSet && key.name == set)
        .and_then(|(_, found)| found["status"]["updateRevision"].as_str());
    let one = |name: &String, pod: &Pod| {
        let names = [Some(name), pod.node.as_ref()];
        let agent =
            seen.cluster().and_then(|cluster| names.iter().flatten().find_map(|name| cluster.agents.get(*name)));
        let state = match agent {
            Some(agent) if agent.is_alive && agent.failed_disks > 0 => FAILED_DISK,
            Some(agent) if agent.is_alive => UP,
            Some(_) => "Down",
            None => "Starting",
        };
        AgentStatus {
            name: name.clone(),
            node: pod.node.clone(),
            id: agent.map(|agent| agent.id.clone()),
            state: state.into(),
            version: agent.and_then(|agent| agent.version.clone()),
            updated: revision.is_some_and(|revision| pod.revision == revision),
        }
    };
    pods.iter().map(|(name, pod)| one(name, pod)).collect()
}

fn lives(agent: &AgentStatus) -> bool {
    [UP, FAILED_DISK].contains(&agent.state.as_str())
}

fn health_condition(seen: &Observed) -> Option<Obstacle> {
    let Some(cluster) = seen.cluster() else {
        return Some(Obstacle { reason: "Unknown", message: "etcd does not say how the data is".into() });
    };
    let missing = &cluster.health.missing;
    if !missing.is_empty() {
        let names = crate::cluster::listed(missing.iter().map(String::as_str));
        let message =
            format!("agents are down or have lost a disk: {names}. I/O goes on with the copies that are left");
        return Some(Obstacle { reason: "AgentsMissing", message });
    }
    let short: Vec<_> = cluster.health.volumes.iter().filter(|(_, copies)| !copies.is_full()).collect();
    let names: Vec<_> = short.iter().map(|(name, copies)| format!("{name} ({copies})")).collect();
    (!names.is_empty()).then(|| Obstacle {
        reason: "CopiesMissing",
        message: format!(
            "volumes have fewer copies than asked: {}",
            crate::cluster::listed(names.iter().map(String::as_str))
        ),
    })
}

fn updating(update: &UpdateState) -> (bool, &'static str, String) {
    match update {
        UpdateState::Current => (false, "Current", "all pods are of the newest revision".into()),
        UpdateState::ByHand(pods) => {
            let names = crate::cluster::listed(pods.iter().map(String::as_str));
            (
                true,
                "OnDelete",
                format!("pods are out of date: {names}. spec.update.type is OnDelete: delete them one after the other"),
            )
        }
        UpdateState::Replacing(pod) => (true, "Replacing", format!("{pod} is being replaced")),
        UpdateState::Waiting { pod, why } => (true, "Waiting", format!("{pod} is out of date and waits: {why}")),
    }
}

/// Why no volumes can be made, if so.
fn not_ready(seen: &Observed, plan: &Plan, ready: usize, asked: usize) -> Option<Obstacle> {
    if let Some(obstacle) = plan.refused.as_ref().or(plan.etcd.as_ref()) {
        return Some(obstacle.clone());
    }
    if let Some(failed) = &plan.failed {
        return Some(failed.clone());
    }
    if seen.store == Store::Empty {
        return Some(Obstacle { reason: "Initializing", message: "the cluster is being made in etcd".into() });
    }
    if ready < asked {
        let message = format!(
            "{ready} of {asked} agents are ready: look at the pods with the label app.kubernetes.io/component=agent"
        );
        return Some(Obstacle { reason: "AgentsNotReady", message });
    }
    let deployments = seen.objects.iter().filter(|(key, _)| key.kind == Kind::Deployment);
    let mut idle = deployments.filter(|(_, found)| found["status"]["availableReplicas"].as_u64().unwrap_or(0) == 0);
    idle.next().map(|(key, _)| Obstacle {
        reason: "ControllerNotReady",
        message: format!(
            "{key} has no pod that is available, so that claims get no volumes: look at the pods with the label app.kubernetes.io/component=csi-controller"
        ),
    })
}

fn phase(seen: &Observed, plan: &Plan, is_ready: bool, before: &TorusClusterStatus) -> &'static str {
    let was_ready = before.conditions.iter().any(|c| c.kind == "Ready" && c.status == torus_api::ConditionStatus::True);
    let is_known = before.phase.as_deref().is_some_and(|phase| matches!(phase, "Ready" | "Updating" | "Degraded"));
    match &plan.refused {
        _ if seen.is_deleting => "Deleting",
        Some(obstacle) if obstacle.reason == "Paused" => "Paused",
        Some(_) => "Refused",
        None if plan.update != UpdateState::Current => "Updating",
        None if is_ready && seen.cluster().is_some_and(|cluster| cluster.health.is_redundant()) => "Ready",
        None if is_ready || was_ready || is_known => "Degraded",
        None if seen.objects.is_empty() => "Pending",
        None => "Installing",
    }
}

#[cfg(test)]
mod tests;
