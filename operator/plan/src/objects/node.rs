//! The node plugin: attaches volumes on nodes that have no storage agent.

use super::agents::with_etcd_secret;
use super::pod::{AgentParts, agent_container, agent_volumes, csi_node_container, pod_spec, scraped};
use super::{Kind, Object, Source, agent_config, digest};
use crate::contract::*;
use serde_json::json;

/// The component of the node plugin.
pub const COMPONENT: &str = "node";

/// The DaemonSet. It stays away from nodes by a label of theirs, not by a list in its template: the list changes with every agent
/// that moves, and each change of a template replaces all pods.
pub fn node_plugin(source: &Source<'_>) -> Object {
    let spec = &source.spec;
    let shape = &spec.node_plugin.pod;
    let (parts, volumes) = with_etcd_secret(source, AgentParts::default(), agent_volumes(source));
    let no_agent_here = json!({"key": LABEL_NODE, "operator": "DoesNotExist"});
    let pod = json!({
        "hostNetwork": spec.network.host,
        "dnsPolicy": if spec.network.host { "ClusterFirstWithHostNet" } else { "ClusterFirst" },
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 60,
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [no_agent_here]}],
        }}},
        "containers": [agent_container(source, "node", shape, parts), csi_node_container(source)],
        "volumes": volumes,
    });
    let mut pod = pod_spec(source, ACCOUNT_AGENT, shape, Some("system-node-critical"), pod);
    if shape.tolerations.is_empty() {
        pod["tolerations"] = json!([{"operator": "Exists"}]);
    }
    let mut annotations = scraped(source, spec.network.http_port);
    annotations.insert(ANNOTATION_CONFIG.into(), digest(&agent_config(source).body["data"]));
    let set = json!({
        "selector": {"matchLabels": source.selector(COMPONENT)},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
        "template": {"metadata": {"labels": source.labels(COMPONENT), "annotations": annotations}, "spec": pod},
    });
    source.object(Kind::DaemonSet, source.name("node"), COMPONENT, json!({"spec": set}))
}
