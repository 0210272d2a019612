//! CSI for the whole cluster: the controller with the stock sidecars, the driver, the class.

use super::agents::with_etcd_secret;
use super::pod::{AgentParts, mount, pod_spec, read_only, resources};
use super::{Kind, Object, Source, agent_config, digest};
use crate::contract::*;
use serde_json::{Value, json};
use torus_api::{FsType, ReclaimPolicy, Resources};

/// The component of the CSI controller.
pub const COMPONENT: &str = "csi-controller";

/// The controller: runs as nobody, on a root filesystem that is not written to, and speaks to its sidecars by a socket.
pub fn controller(source: &Source<'_>) -> Object {
    let spec = &source.spec;
    let csi = &spec.csi;
    let volumes = vec![
        json!({"name": "socket", "emptyDir": {}}),
        json!({"name": "config", "configMap": {"name": source.name("agent"), "defaultMode": 0o444}}),
    ];
    let parts =
        AgentParts { mounts: vec![mount("socket", "/csi"), read_only("config", CONFIG_DIR)], ..AgentParts::default() };
    let (parts, mut volumes) = with_etcd_secret(source, parts, volumes);
    for volume in &mut volumes {
        if volume["name"] == "etcd-secret" {
            // Read by the group of the pod: its user is not root.
            volume["secret"]["defaultMode"] = json!(0o440);
        }
    }
    let own = json!({
        "name": "csi-controller",
        "image": source.image(),
        "imagePullPolicy": spec.image_pull_policy.as_str(),
        "command": [PROGRAM_CSI, "controller"],
        "args": [format!("--config={CONFIG_DIR}/{CONFIG_FILE}"), format!("{FLAG_CSI_SOCKET}={CONTROLLER_SOCKET}")],
        "env": parts.env,
        "resources": resources(&csi.pod.resources, &[("cpu", "10m"), ("memory", "32Mi")]),
        "securityContext": confined(),
        "volumeMounts": parts.mounts,
    });
    let leader = if csi.replicas > 1 { vec!["--leader-election".to_owned()] } else { Vec::new() };
    let sidecar = |name: &str, image: &str, args: &[&str]| {
        let fixed = [format!("--csi-address={CONTROLLER_SOCKET}"), "--timeout=60s".into()];
        let args: Vec<_> =
            fixed.into_iter().chain(args.iter().map(ToString::to_string)).chain(leader.clone()).collect();
        json!({
            "name": name,
            "image": image,
            "imagePullPolicy": spec.image_pull_policy.as_str(),
            "args": args,
            "resources": resources(&Resources::default(), &[("cpu", "10m"), ("memory", "32Mi")]),
            "securityContext": confined(),
            "volumeMounts": [mount("socket", "/csi")],
        })
    };
    let pod = json!({
        // The sidecars speak to the apiserver. No account of ours has a token unless its pod says so.
        "automountServiceAccountToken": true,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 65_532, "runAsGroup": 65_532, "fsGroup": 65_532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            own,
            sidecar("provisioner", &csi.provisioner_image, &["--default-fstype=ext4", "--feature-gates=Topology=true"]),
            sidecar("attacher", &csi.attacher_image, &["--default-fstype=ext4"]),
            sidecar("resizer", &csi.resizer_image, &["--handle-volume-inuse-error=false"]),
        ],
        "volumes": volumes,
    });
    let mut pod = pod_spec(source, ACCOUNT_CSI, &csi.pod, Some("system-cluster-critical"), pod);
    // Volumes move by its hand: on a node that died it is missed, and Kubernetes would give it five minutes.
    let mut tolerated = json!(csi.pod.tolerations);
    for taint in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        if let Some(list) = tolerated.as_array_mut() {
            list.push(json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10}));
        }
    }
    pod["tolerations"] = tolerated;
    let config = digest(&agent_config(source).body["data"]);
    let deployment = json!({
        "replicas": csi.replicas,
        "selector": {"matchLabels": source.selector(COMPONENT)},
        "template": {"metadata": {"labels": source.labels(COMPONENT), "annotations": {ANNOTATION_CONFIG: config}}, "spec": pod},
    });
    source.object(Kind::Deployment, source.name("csi-controller"), COMPONENT, json!({"spec": deployment}))
}

/// No more rights than any program has that only opens connections.
fn confined() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    })
}

/// The driver, as Kubernetes is told of it.
pub fn driver(source: &Source<'_>) -> Object {
    let spec = json!({
        "attachRequired": true,
        "podInfoOnMount": false,
        "fsGroupPolicy": "File",
        "storageCapacity": false,
        "requiresRepublish": false,
        "seLinuxMount": false,
        "volumeLifecycleModes": ["Persistent"],
    });
    source.object(Kind::CsiDriver, DRIVER.into(), COMPONENT, json!({"spec": spec}))
}

/// The class of claims on this cluster.
pub fn storage_class(source: &Source<'_>) -> Object {
    let class = &source.spec.storage_class;
    let fs = match class.fs_type {
        FsType::Ext4 => "ext4",
        FsType::Xfs => "xfs",
    };
    let policy = match class.reclaim_policy {
        ReclaimPolicy::Delete => "Delete",
        ReclaimPolicy::Retain => "Retain",
    };
    let mut annotations = json!({});
    if class.default {
        annotations["storageclass.kubernetes.io/is-default-class"] = json!("true");
    }
    let content = json!({
        "provisioner": DRIVER,
        "allowVolumeExpansion": true,
        "volumeBindingMode": "Immediate",
        "reclaimPolicy": policy,
        "parameters": {
            PARAMETER_FS_TYPE: fs,
            PARAMETER_REPLICAS: source.spec.replicas.to_string(),
            PARAMETER_MIN_REPLICAS: source.spec.min_replicas.to_string(),
        },
    });
    source.annotated(Kind::StorageClass, class.name.clone(), COMPONENT, annotations, content)
}
