//! The holder: keeps the devices of attached volumes alive while the agent of their node is replaced.

use super::pod::{host_volume, mount, pod_spec, resources};
use super::{Kind, Object, Source};
use crate::contract::*;
use serde_json::json;
use torus_api::Resources;

/// The component of the holder.
pub const COMPONENT: &str = "holder";

/// The DaemonSet, on every node: beside storage agents as beside node plugins. Its pods are replaced only by hand (`OnDelete`),
/// as what they keep must outlive an update of the agents; an agent hands its devices to a new one by itself, as long as not both
/// are replaced at once.
pub fn holder(source: &Source<'_>) -> Object {
    let shape = &source.spec.node_plugin.pod;
    let pod = json!({
        "automountServiceAccountToken": false,
        // It has nothing to see to.
        "terminationGracePeriodSeconds": 5,
        "tolerations": [{"operator": "Exists"}],
        "containers": [{
            "name": "holder",
            "image": source.image(),
            "imagePullPolicy": source.spec.image_pull_policy.as_str(),
            "command": [PROGRAM_HOLDER],
            "args": [format!("{FLAG_HOLDER_SOCKET}={HOLDER_SOCKET}")],
            "resources": resources(&Resources::default(), &[("cpu", "5m"), ("memory", "16Mi")]),
            // Its socket is in a directory of root's.
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"], "add": ["DAC_OVERRIDE"]},
            },
            "volumeMounts": [mount("run", RUN_DIR)],
        }],
        "volumes": [host_volume("run", RUN_DIR, true)],
    });
    let mut shape = shape.clone();
    // It goes wherever an agent may be.
    shape.node_selector.clear();
    shape.tolerations.clear();
    let pod = pod_spec(source, ACCOUNT_AGENT, &shape, Some("system-node-critical"), pod);
    let set = json!({
        "selector": {"matchLabels": source.selector(COMPONENT)},
        "updateStrategy": {"type": "OnDelete"},
        "template": {"metadata": {"labels": source.labels(COMPONENT)}, "spec": pod},
    });
    source.object(Kind::DaemonSet, source.name("holder"), COMPONENT, json!({"spec": set}))
}
