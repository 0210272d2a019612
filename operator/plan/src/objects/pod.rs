//! Pieces that the pods of several components share.

use super::Source;
use crate::contract::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use torus_api::{PodShape, Resources, Toleration};

/// An environment variable from a field of the pod.
pub fn from_field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}})
}

/// A directory of the host.
pub fn host_volume(name: &str, path: &str, make: bool) -> Value {
    json!({"name": name, "hostPath": {"path": path, "type": if make { "DirectoryOrCreate" } else { "Directory" }}})
}

/// A mount of a volume.
pub fn mount(name: &str, path: &str) -> Value {
    json!({"name": name, "mountPath": path})
}

/// A mount that nothing writes to.
pub fn read_only(name: &str, path: &str) -> Value {
    json!({"name": name, "mountPath": path, "readOnly": true})
}

/// An HTTP probe.
pub fn probe(path: &str, port: i32, period_seconds: i32, failures: i32) -> Value {
    json!({
        "httpGet": {"path": path, "port": port, "scheme": "HTTP"},
        "periodSeconds": period_seconds,
        "failureThreshold": failures,
        "timeoutSeconds": 5,
    })
}

/// What a container gets, as Kubernetes has it; `floor` stands where nothing is said.
pub fn resources(asked: &Resources, floor: &[(&str, &str)]) -> Value {
    let list = |list: &torus_api::ResourceList| {
        let pairs = [("cpu", &list.cpu), ("memory", &list.memory)];
        pairs
            .into_iter()
            .filter_map(|(name, amount)| Some((name.to_owned(), amount.clone()?)))
            .collect::<BTreeMap<_, _>>()
    };
    let mut requests = list(&asked.requests);
    let limits = list(&asked.limits);
    for (name, amount) in floor {
        if !limits.contains_key(*name) {
            requests.entry((*name).into()).or_insert_with(|| (*amount).into());
        }
    }
    let mut all = serde_json::Map::new();
    for (name, list) in [("requests", requests), ("limits", limits)] {
        if !list.is_empty() {
            all.insert(name.into(), json!(list));
        }
    }
    Value::Object(all)
}

/// Tolerations as Kubernetes has them.
pub fn tolerations(asked: &[Toleration]) -> Value {
    json!(asked)
}

/// A pod's spec with what its shape says; `content` holds the rest.
pub fn pod_spec(source: &Source<'_>, account: &str, shape: &PodShape, priority: Option<&str>, content: Value) -> Value {
    let mut spec = content;
    spec["serviceAccountName"] = json!(account);
    if !source.spec.image_pull_secrets.is_empty() {
        spec["imagePullSecrets"] = json!(source.spec.image_pull_secrets);
    }
    if !shape.tolerations.is_empty() {
        spec["tolerations"] = tolerations(&shape.tolerations);
    }
    if !shape.node_selector.is_empty() {
        spec["nodeSelector"] = json!(shape.node_selector);
    }
    if let Some(class) = shape.priority_class_name.as_deref().or(priority) {
        spec["priorityClassName"] = json!(class);
    }
    spec
}

/// Annotations of a pod whose metrics are at `port`.
pub fn scraped(source: &Source<'_>, port: i32) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::new();
    if source.spec.monitoring.scrape_annotations {
        for (name, value) in [("scrape", "true".into()), ("port", port.to_string()), ("path", "/metrics".into())] {
            annotations.insert(format!("prometheus.io/{name}"), value);
        }
    }
    annotations
}

/// The container of an agent, whatever its roles.
pub fn agent_container(source: &Source<'_>, roles: &str, shape: &PodShape, more: AgentParts) -> Value {
    let network = &source.spec.network;
    let mut args = vec![
        format!("{FLAG_ROLE}={roles}"),
        format!("--config={CONFIG_DIR}/{CONFIG_FILE}"),
        "--host=$(POD_IP)".into(),
        format!("--port={}", network.data_port),
        format!("--control-address=$(POD_IP):{}", network.control_port),
        format!("--http-address=$(POD_IP):{}", network.http_port),
        format!("{FLAG_NODE_NAME}=$(NODE_NAME)"),
        format!("{FLAG_NODE_SOCKET}={NODE_SOCKET}"),
        format!("{FLAG_HOLDER_SOCKET}={HOLDER_SOCKET}"),
        format!("{FLAG_ATTACHED_DIR}={ATTACHED_DIR}"),
        format!("{FLAG_KUBELET_DIR}={}", source.spec.node_plugin.kubelet_dir),
    ];
    if let Some(directory) = &source.spec.node_plugin.flex_volume_dir {
        args.push(format!("{FLAG_FLEX_VOLUME_DIR}={directory}"));
    }
    args.extend(more.args);
    let mut mounts = vec![
        read_only("config", CONFIG_DIR),
        shared("attached", ATTACHED_DIR),
        mount("run", RUN_DIR),
        mount("dev", "/dev"),
        read_only("modules", "/lib/modules"),
        // What is mounted there must be seen by the kubelet and by pods.
        shared("kubelet", &source.spec.node_plugin.kubelet_dir),
    ];
    if let Some(directory) = flex_volume_mount(source) {
        mounts.push(mount("flexvolume", directory));
    }
    mounts.extend(more.mounts);
    let mut env = vec![
        from_field("POD_IP", "status.podIP"),
        from_field("POD_NAME", "metadata.name"),
        from_field("NODE_NAME", "spec.nodeName"),
    ];
    env.extend(more.env);
    // Where pods have the node's network, what is declared here is taken from the node: a node plugin would keep an agent from being
    // placed where it is to be its successor. It listens for its probes alone.
    let ports = if roles.contains("storage") {
        json!([
            {"name": "data", "containerPort": network.data_port, "protocol": "TCP"},
            {"name": "control", "containerPort": network.control_port, "protocol": "TCP"},
            {"name": "http", "containerPort": network.http_port, "protocol": "TCP"},
        ])
    } else {
        json!([])
    };
    json!({
        "name": "agent",
        "image": source.image(),
        "imagePullPolicy": source.spec.image_pull_policy.as_str(),
        "command": [PROGRAM_AGENT],
        "args": args,
        "env": env,
        "ports": ports,
        "livenessProbe": probe("/healthz", network.http_port, 10, 6),
        "readinessProbe": probe("/readyz", network.http_port, 5, 2),
        // Formatting a large disk takes its time.
        "startupProbe": probe("/healthz", network.http_port, 5, 360),
        "resources": resources(&shape.resources, &[("cpu", "100m"), ("memory", "256Mi")]),
        // Devices are set up by netlink or FUSE, and loop devices are bound: no smaller set of rights does that.
        "securityContext": {"privileged": true},
        "volumeMounts": mounts,
    })
}

/// What differs between agents.
#[derive(Default)]
pub struct AgentParts {
    /// More arguments.
    pub args: Vec<String>,
    /// More mounts.
    pub mounts: Vec<Value>,
    /// More environment.
    pub env: Vec<Value>,
}

/// A mount in which mounts are made that outlive the container, for the host and for whoever runs there next.
fn shared(name: &str, path: &str) -> Value {
    let mut mount = mount(name, path);
    mount["mountPropagation"] = json!("Bidirectional");
    mount
}

/// The container that serves CSI on a node. It mounts nothing itself: the agent does.
pub fn csi_node_container(source: &Source<'_>) -> Value {
    let kubelet = &source.spec.node_plugin.kubelet_dir;
    let mut kubelet_mount = mount("kubelet", kubelet);
    // What volumes' mounts it sees when it starts must go from it too when they go from the host: a copy kept here would keep their
    // devices in use for as long as this container runs.
    kubelet_mount["mountPropagation"] = json!("HostToContainer");
    json!({
        "name": "csi-node",
        "image": source.image(),
        "imagePullPolicy": source.spec.image_pull_policy.as_str(),
        "command": [PROGRAM_CSI, "node"],
        "args": [
            format!("{FLAG_NODE_NAME}=$(NODE_NAME)"),
            format!("{FLAG_NODE_SOCKET}={NODE_SOCKET}"),
            format!("{FLAG_CSI_SOCKET}={kubelet}/plugins/{DRIVER}/csi.sock"),
            format!("{FLAG_KUBELET_CSI_SOCKET}={kubelet}/plugins/{DRIVER}/csi.sock"),
            format!("{FLAG_REGISTRATION_DIR}={kubelet}/plugins_registry"),
        ],
        "env": [from_field("NODE_NAME", "spec.nodeName")],
        "resources": resources(&Resources::default(), &[("cpu", "10m"), ("memory", "32Mi")]),
        // Its sockets are in directories of root.
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["DAC_OVERRIDE"]},
        },
        "volumeMounts": [mount("run", RUN_DIR), kubelet_mount],
    })
}

/// The volumes that an agent's pod has in any case.
pub fn agent_volumes(source: &Source<'_>) -> Vec<Value> {
    let mut volumes = vec![
        json!({"name": "config", "configMap": {"name": source.name("agent"), "defaultMode": 0o444}}),
        host_volume("attached", ATTACHED_DIR, true),
        host_volume("run", RUN_DIR, true),
        host_volume("dev", "/dev", false),
        host_volume("modules", "/lib/modules", true),
        host_volume("kubelet", &source.spec.node_plugin.kubelet_dir, false),
    ];
    if let Some(directory) = flex_volume_mount(source) {
        volumes.push(host_volume("flexvolume", directory, true));
    }
    volumes
}

/// The FlexVolume directory, where it needs a mount of its own. Inside the kubelet's directory it needs none, and must not have one:
/// mounts that are made there are passed on to the node, and every start of a container would double those of all before.
fn flex_volume_mount<'a>(source: &'a Source<'_>) -> Option<&'a str> {
    let plugin = &source.spec.node_plugin;
    plugin.flex_volume_dir.as_deref().filter(|directory| !Path::new(directory).starts_with(&plugin.kubelet_dir))
}
