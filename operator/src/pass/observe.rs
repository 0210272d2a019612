//! Kubernetes' objects as the plans look at them.

use k8s_openapi::api::core::v1::{Node as KubeNode, Pod as KubePod, Taint as KubeTaint};
use kube::ResourceExt;
use torus_api::TolerationEffect;
use torus_plan::cluster::{Node, Pod, Taint};
use torus_plan::failover::Kubelet;

/// A pod of a StatefulSet, by name; `None` for others.
pub fn pod(pod: &KubePod) -> Option<(String, Pod)> {
    let owner = pod.metadata.owner_references.iter().flatten().find(|owner| owner.kind == "StatefulSet")?;
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let seen = Pod {
        set: owner.name.clone(),
        uid: pod.uid().unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        is_ready: conditions
            .into_iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        is_terminating: pod.metadata.deletion_timestamp.is_some(),
        revision: pod.labels().get("controller-revision-hash").cloned().unwrap_or_default(),
    };
    Some((pod.name_any(), seen))
}

/// A node, by name.
pub fn node(node: &KubeNode) -> (String, Node) {
    let seen = Node {
        labels: node.labels().clone(),
        is_ready: kubelet(node) == Kubelet::Ready,
        is_schedulable: !node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false),
        taints: node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).filter_map(taint).collect(),
    };
    (node.name_any(), seen)
}

fn taint(taint: &KubeTaint) -> Option<Taint> {
    let effect = match taint.effect.as_str() {
        "NoSchedule" => TolerationEffect::NoSchedule,
        "NoExecute" => TolerationEffect::NoExecute,
        _ => return None,
    };
    Some(Taint { key: taint.key.clone(), value: taint.value.clone().unwrap_or_default(), effect })
}

/// What is known of a node's kubelet. Kubernetes writes `Unknown` when it has heard nothing of one for its grace period.
pub fn kubelet(node: &KubeNode) -> Kubelet {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
    match ready.map(|condition| condition.status.as_str()) {
        Some("True") => Kubelet::Ready,
        Some("Unknown") => Kubelet::Silent,
        // One that has not said anything yet was never there to own a volume.
        Some(_) | None => Kubelet::NotReady,
    }
}
