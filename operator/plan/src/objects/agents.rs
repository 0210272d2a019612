//! The storage agents: settings, addresses, pods, and what protects them.

use super::pod::{
    AgentParts, agent_container, agent_volumes, csi_node_container, from_field, host_volume, mount, pod_spec,
    read_only, scraped,
};
use super::{Kind, Object, Source, digest};
use crate::contract::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The component of storage agents.
pub const COMPONENT: &str = "agent";

/// What of a claim's size is given to data, in twentieths: the rest is the filesystem's own.
const CLAIM_TWENTIETHS: u64 = 19;
/// Data files are whole multiples of this.
const FILE_STEP_BYTES: u64 = 4 << 20;

/// The settings of all agents and node plugins.
pub fn agent_config(source: &Source<'_>) -> Object {
    source.object(Kind::ConfigMap, source.name("agent"), COMPONENT, json!({"data": {CONFIG_FILE: config_text(source)}}))
}

fn config_text(source: &Source<'_>) -> String {
    let mut settings: BTreeMap<&str, Value> = BTreeMap::from([
        ("etcd", json!(source.endpoints.join(","))),
        ("auto-join", json!(true)),
        ("log-format", json!("json")),
    ]);
    if let Some(external) = &source.spec.etcd.external {
        settings.insert("etcd-prefix", json!(external.prefix));
        let has = |key: &str| source.secret_keys.contains(key);
        for (key, setting) in [(SECRET_CA, "etcd-ca"), (SECRET_CERT, "etcd-cert"), (SECRET_KEY, "etcd-key")] {
            let is_used = if key == SECRET_CA { has(SECRET_CA) } else { has(SECRET_CERT) && has(SECRET_KEY) };
            if is_used && external.endpoints.iter().all(|url| url.starts_with("https://")) {
                settings.insert(setting, json!(format!("{ETCD_SECRET_DIR}/{key}")));
            }
        }
        if has(SECRET_PASSWORD) {
            settings.insert("etcd-password-file", json!(format!("{ETCD_SECRET_DIR}/{SECRET_PASSWORD}")));
        }
    }
    // A value in JSON is one in YAML.
    settings.into_iter().map(|(key, value)| format!("{key}: {value}\n")).collect()
}

/// The failure domain of each node, as a file with its name.
pub fn domains(source: &Source<'_>, domains: &BTreeMap<String, String>) -> Object {
    source.object(Kind::ConfigMap, source.name("domains"), COMPONENT, json!({"data": domains}))
}

/// The headless service that gives agents' pods their names.
pub fn agent_service(source: &Source<'_>) -> Object {
    let network = &source.spec.network;
    let port = |name: &str, port: i32| json!({"name": name, "port": port, "targetPort": port, "protocol": "TCP"});
    let spec = json!({
        "clusterIP": "None",
        "selector": source.selector(COMPONENT),
        // Agents find each other in etcd; who looks here wants all of them.
        "publishNotReadyAddresses": true,
        "ports": [port("control", network.control_port), port("data", network.data_port), port("http", network.http_port)],
    });
    source.object(Kind::Service, source.name("agent"), COMPONENT, json!({"spec": spec}))
}

/// How many agents may be away at once: 1 while all data has all of its copies, else none.
pub fn disruption_budget(source: &Source<'_>, is_redundant: bool) -> Object {
    let spec = json!({
        "maxUnavailable": i32::from(is_redundant),
        "selector": {"matchLabels": source.selector(COMPONENT)},
    });
    source.object(Kind::PodDisruptionBudget, source.name("agent"), COMPONENT, json!({"spec": spec}))
}

/// The agents. Their pods are replaced by hand (`OnDelete`): the plan's, one after the other, when the data allows it.
pub fn agents(source: &Source<'_>) -> Object {
    let spec = &source.spec;
    let network = &spec.network;
    let storage = Storage::of(source);
    let mut mounts = storage.mounts;
    mounts.push(read_only("domains", DOMAINS_DIR));
    let mut volumes = agent_volumes(source);
    volumes.push(json!({"name": "domains", "configMap": {"name": source.name("domains"), "defaultMode": 0o444}}));
    volumes.extend(storage.volumes);
    let parts = AgentParts {
        args: storage.args.into_iter().chain([format!("{FLAG_DOMAIN_FILE}={DOMAINS_DIR}/$(NODE_NAME)")]).collect(),
        mounts,
        env: storage.env,
    };
    let (parts, volumes) = with_etcd_secret(source, parts, volumes);
    let pod = json!({
        "hostNetwork": network.host,
        "dnsPolicy": if network.host { "ClusterFirstWithHostNet" } else { "ClusterFirst" },
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 60,
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
            "labelSelector": {"matchLabels": source.selector(COMPONENT)},
            "topologyKey": "kubernetes.io/hostname",
        }]}},
        "containers": [agent_container(source, "storage,node", &spec.agent, parts), csi_node_container(source)],
        "volumes": volumes,
    });
    let mut pod = pod_spec(source, ACCOUNT_AGENT, &spec.agent, Some("system-node-critical"), pod);
    if spec.storage.claim.is_none() {
        // Where its disk is, there its agent is.
        pod["affinity"]["nodeAffinity"] = json!({"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [
                {"key": LABEL_NODE, "operator": "In", "values": [source.owner.name]},
            ]}],
        }});
    }
    if !spec.placement.domain_labels.is_empty() {
        let spread = |label: &String| {
            json!({
                "maxSkew": 1,
                "topologyKey": label,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": source.selector(COMPONENT)},
            })
        };
        pod["topologySpreadConstraints"] = spec.placement.domain_labels.iter().map(spread).collect();
    }
    let mut annotations = scraped(source, network.http_port);
    annotations.insert(ANNOTATION_CONFIG.into(), digest(&json!(config_text(source))));
    let mut set = json!({
        "replicas": spec.storage.count,
        "serviceName": source.name("agent"),
        "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "OnDelete"},
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
        "selector": {"matchLabels": source.selector(COMPONENT)},
        "template": {"metadata": {"labels": source.labels(COMPONENT), "annotations": annotations}, "spec": pod},
    });
    if let Some(claim) = storage.claim {
        set["volumeClaimTemplates"] = json!([claim]);
    }
    source.object(Kind::StatefulSet, source.name("agent"), COMPONENT, json!({"spec": set}))
}

/// Where data is: arguments, environment, mounts, volumes, and the template of a claim.
struct Storage {
    args: Vec<String>,
    env: Vec<Value>,
    mounts: Vec<Value>,
    volumes: Vec<Value>,
    claim: Option<Value>,
}

impl Storage {
    fn of(source: &Source<'_>) -> Storage {
        let storage = &source.spec.storage;
        let mut result =
            Storage { args: Vec::new(), env: Vec::new(), mounts: Vec::new(), volumes: Vec::new(), claim: None };
        // An agent is called by what its disk moves with: its pod where the disk is a claim, else its node.
        let name = if storage.claim.is_some() { "metadata.name" } else { "spec.nodeName" };
        result.env.push(from_field("TORUS_NAME", name));
        if let Some(claim) = &storage.claim {
            let bytes = claim.size.bytes().unwrap_or_default() / 20 * CLAIM_TWENTIETHS;
            result.data_file(bytes / FILE_STEP_BYTES * FILE_STEP_BYTES);
            let mut spec = json!({
                "accessModes": ["ReadWriteOnce"],
                "volumeMode": "Filesystem",
                "resources": {"requests": {"storage": claim.size}},
            });
            if let Some(class) = &claim.storage_class_name {
                spec["storageClassName"] = json!(class);
            }
            result.claim = Some(json!({
                "metadata": {"name": "data", "labels": source.labels(COMPONENT)},
                "spec": spec,
            }));
        } else if let Some(directory) = &storage.host_path {
            result.data_file(directory.size.bytes().unwrap_or_default());
            result.volumes.push(host_volume("data", &directory.path, true));
        } else {
            result.args.extend(storage.devices.iter().flatten().map(|device| format!("--disk={device}")));
            if storage.format_devices {
                result.args.push("--format-new-disks".into());
            }
        }
        result
    }

    fn data_file(&mut self, bytes: u64) {
        self.args.push(format!("--data-dir={DATA_DIR}"));
        self.args.push(format!("--size={bytes}"));
        self.mounts.push(mount("data", DATA_DIR));
    }
}

/// Adds the secret for etcd, where one is used.
pub fn with_etcd_secret(
    source: &Source<'_>,
    mut parts: AgentParts,
    mut volumes: Vec<Value>,
) -> (AgentParts, Vec<Value>) {
    if let Some(secret) = source.spec.etcd.external.as_ref().and_then(|external| external.secret.as_ref()) {
        parts.mounts.push(read_only("etcd-secret", ETCD_SECRET_DIR));
        volumes.push(json!({"name": "etcd-secret", "secret": {"secretName": secret.name, "defaultMode": 0o400}}));
        if source.secret_keys.contains(SECRET_USER) {
            let user = json!({"secretKeyRef": {"name": secret.name, "key": SECRET_USER}});
            parts.env.push(json!({"name": "TORUS_ETCD_USER", "valueFrom": user}));
        }
    }
    (parts, volumes)
}
