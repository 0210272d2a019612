//! A small etcd of the cluster's own.
//!
//! Each member is a StatefulSet of one pod behind a Service with an address of its own, so that members and agents find
//! them without DNS: storage that waits for the cluster's DNS, whose pods may wait for storage, would not come up.
//! A member without a claim keeps its data on its node and is bound to it: a member that came up elsewhere, with nothing, under its
//! old name would break what etcd promises about committed writes.
//!
//! Not here: TLS between members and clients. Who needs it brings an etcd (`etcd.external`).

use super::pod::{from_field, host_volume, mount, pod_spec, read_only, resources};
use super::{Kind, Object, Source, digest};
use crate::contract::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use torus_api::ManagedEtcd;

/// The component of a managed etcd.
pub const COMPONENT: &str = "etcd";
/// Where members take clients.
pub const CLIENT_PORT: i32 = 2379;
const PEER_PORT: i32 = 2380;
const METRICS_PORT: i32 = 2381;
const DATA_DIR: &str = "/var/lib/etcd";
const CONFIG_DIR: &str = "/etc/etcd";
/// etcd holds a few keys for each volume and agent: 2 GiB are for tens of thousands of them.
const QUOTA_BYTES: i64 = 2 << 30;

/// The name of a member: of its Service, its StatefulSet and of itself.
#[must_use]
pub fn member_name(cluster: &str, member: i32) -> String {
    format!("{cluster}-etcd-{member}")
}

/// The address of a member. `address`: what it had before, if it is known; its Service may have been deleted.
pub fn etcd_service(source: &Source<'_>, member: i32, address: Option<&str>) -> Object {
    let name = member_name(&source.owner.name, member);
    let mut spec = json!({
        "selector": member_selector(source, &name),
        "publishNotReadyAddresses": true,
        "ports": [
            {"name": "client", "port": CLIENT_PORT, "targetPort": CLIENT_PORT, "protocol": "TCP"},
            {"name": "peer", "port": PEER_PORT, "targetPort": PEER_PORT, "protocol": "TCP"},
        ],
    });
    if let Some(address) = address {
        spec["clusterIP"] = json!(address);
    }
    source.object(Kind::Service, name, COMPONENT, json!({"spec": spec}))
}

fn member_selector(source: &Source<'_>, name: &str) -> Value {
    let mut selector = source.selector(COMPONENT);
    selector["app.kubernetes.io/instance"] = json!(name);
    selector
}

/// The settings of all members, a file for each. `addresses`: of the members, in order.
pub fn etcd_config(source: &Source<'_>, addresses: &[String]) -> Object {
    source.object(Kind::ConfigMap, source.name("etcd"), COMPONENT, json!({"data": config_files(source, addresses)}))
}

fn config_files(source: &Source<'_>, addresses: &[String]) -> BTreeMap<String, String> {
    let peer = |address: &String| format!("http://{}", authority(address, PEER_PORT));
    let client = |address: &String| format!("http://{}", authority(address, CLIENT_PORT));
    let names: Vec<_> = (0..).take(addresses.len()).map(|member| member_name(&source.owner.name, member)).collect();
    let members: Vec<_> =
        names.iter().zip(addresses).map(|(name, address)| format!("{name}={}", peer(address))).collect();
    let file = |name: &String, address: &String| {
        let settings = json!({
            "name": name,
            "data-dir": format!("{DATA_DIR}/{name}"),
            "listen-client-urls": format!("http://0.0.0.0:{CLIENT_PORT}"),
            "listen-peer-urls": format!("http://0.0.0.0:{PEER_PORT}"),
            "listen-metrics-urls": format!("http://0.0.0.0:{METRICS_PORT}"),
            "advertise-client-urls": client(address),
            "initial-advertise-peer-urls": peer(address),
            "initial-cluster": members.join(","),
            "initial-cluster-state": "new",
            "initial-cluster-token": source.owner.uid,
            "auto-compaction-mode": "periodic",
            "auto-compaction-retention": "1h",
            "quota-backend-bytes": QUOTA_BYTES,
        });
        let lines = settings.as_object().into_iter().flatten().map(|(key, value)| format!("{key}: {value}\n"));
        lines.collect::<String>()
    };
    names.iter().zip(addresses).map(|(name, address)| (format!("{name}.yaml"), file(name, address))).collect()
}

fn authority(address: &str, port: i32) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// One member. `node`: the node it is bound to, where its data is in a directory of it.
pub fn etcd_member(
    source: &Source<'_>,
    etcd: &ManagedEtcd,
    member: i32,
    addresses: &[String],
    node: Option<&str>,
) -> Object {
    let name = member_name(&source.owner.name, member);
    let mut volumes = vec![json!({"name": "config", "configMap": {"name": source.name("etcd"), "defaultMode": 0o444}})];
    if etcd.claim.is_none() {
        volumes.push(host_volume("data", &etcd.host_path, true));
    }
    let image = etcd.image.as_deref().unwrap_or(source.image());
    let mut affinity = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
        "labelSelector": {"matchLabels": source.selector(COMPONENT)},
        "topologyKey": "kubernetes.io/hostname",
    }]}});
    if let Some(node) = node {
        let is_it = json!({"key": "metadata.name", "operator": "In", "values": [node]});
        affinity["nodeAffinity"] = json!({"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchFields": [is_it]}],
        }});
    }
    let pod = json!({
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 30,
        "affinity": affinity,
        "containers": [{
            "name": "etcd",
            "image": image,
            "imagePullPolicy": source.spec.image_pull_policy.as_str(),
            "command": [PROGRAM_ETCD],
            "args": [format!("--config-file={CONFIG_DIR}/{name}.yaml")],
            "env": [from_field("POD_NAME", "metadata.name")],
            "ports": [
                {"name": "client", "containerPort": CLIENT_PORT, "protocol": "TCP"},
                {"name": "peer", "containerPort": PEER_PORT, "protocol": "TCP"},
                {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
            ],
            // Its process is asked, not its quorum: restarting a member does not bring the others back.
            "livenessProbe": {"tcpSocket": {"port": CLIENT_PORT}, "periodSeconds": 10, "failureThreshold": 6},
            "readinessProbe": super::pod::probe("/health", METRICS_PORT, 5, 3),
            "resources": resources(&etcd.pod.resources, &[("cpu", "50m"), ("memory", "128Mi")]),
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"], "add": ["DAC_OVERRIDE"]},
            },
            "volumeMounts": [read_only("config", CONFIG_DIR), mount("data", DATA_DIR)],
        }],
        "volumes": volumes,
    });
    let pod = pod_spec(source, ACCOUNT_ETCD, &etcd.pod, Some("system-cluster-critical"), pod);
    let mut labels = source.labels(COMPONENT);
    labels.insert("app.kubernetes.io/instance", name.clone());
    let annotations = json!({ANNOTATION_CONFIG: digest(&json!(config_files(source, addresses)))});
    let mut set = json!({
        "replicas": 1,
        "serviceName": name,
        "updateStrategy": {"type": "OnDelete"},
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
        "selector": {"matchLabels": member_selector(source, &name)},
        "template": {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod},
    });
    if let Some(claim) = &etcd.claim {
        let mut spec = json!({
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": "Filesystem",
            "resources": {"requests": {"storage": claim.size}},
        });
        if let Some(class) = &claim.storage_class_name {
            spec["storageClassName"] = json!(class);
        }
        set["volumeClaimTemplates"] =
            json!([{"metadata": {"name": "data", "labels": source.labels(COMPONENT)}, "spec": spec}]);
    }
    source.object(Kind::StatefulSet, name, COMPONENT, json!({"spec": set}))
}

/// One member at a time may be drained.
pub fn etcd_disruption_budget(source: &Source<'_>) -> Object {
    let spec = json!({"maxUnavailable": 1, "selector": {"matchLabels": source.selector(COMPONENT)}});
    source.object(Kind::PodDisruptionBudget, source.name("etcd"), COMPONENT, json!({"spec": spec}))
}
