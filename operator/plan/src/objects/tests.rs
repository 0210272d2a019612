//! Every body is what Kubernetes' own types know, in all shapes that a spec can ask for.

use super::*;
use crate::cluster::covers;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass};
use serde::Serialize;
use serde::de::DeserializeOwned;
use torus_api::TorusClusterSpec;

pub fn owner() -> Owner {
    Owner { name: "main".into(), namespace: "torus-system".into(), uid: "u1".into() }
}

fn specs() -> Vec<TorusClusterSpec> {
    let shape = json!({
        "resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "1Gi"}},
        "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoSchedule"}],
        "nodeSelector": {"disk": "fast"},
        "priorityClassName": "high",
    });
    [
        json!({"storage": {"count": 3, "hostPath": {"size": "10Gi"}}, "etcd": {"managed": {}}}),
        json!({
            "image": "torus:1", "imagePullSecrets": [{"name": "pull"}],
            "storage": {"count": 3, "claim": {"size": "10Gi", "storageClassName": "fast"}},
            "etcd": {"managed": {"members": 1, "claim": {"size": "1Gi"}, "pod": shape}},
            "agent": shape, "nodePlugin": {"pod": shape, "flexVolumeDir": "/opt/flex"}, "csi": {"replicas": 2, "pod": shape},
            "storageClass": {"default": true, "reclaimPolicy": "Retain", "fsType": "xfs"},
            "network": {"host": false}, "monitoring": {"scrapeAnnotations": false}, "placement": {"domainLabels": []},
        }),
        json!({
            "storage": {"count": 3, "devices": ["/dev/sdb", "/dev/sdc"], "formatDevices": true},
            "etcd": {"external": {"endpoints": ["https://a:2379", "https://b:2379"], "secret": {"name": "etcd"}}},
            "nodePlugin": {"flexVolumeDir": "/var/lib/kubelet/volumeplugins"},
        }),
    ]
    .into_iter()
    .map(|spec| serde_json::from_value(spec).unwrap())
    .collect()
}

fn all(spec: &TorusClusterSpec) -> Vec<Object> {
    let owner = owner();
    let endpoints = ["http://10.0.0.1:2379".to_owned()];
    let secret_keys = ["ca.crt", "tls.crt", "tls.key", "username", "password"].map(str::to_owned).into();
    let source = Source { owner: &owner, spec, own_image: "own:1", endpoints: &endpoints, secret_keys: &secret_keys };
    let mut objects = vec![
        agent_config(&source),
        domains(&source, &BTreeMap::from([("node-a".into(), "zone-a/node-a".into())])),
        agent_service(&source),
        disruption_budget(&source, true),
        agents(&source),
        node_plugin(&source),
        holder(&source),
        controller(&source),
        driver(&source),
        storage_class(&source),
    ];
    if let Some(etcd) = &spec.etcd.managed {
        let addresses = ["10.96.0.7".to_owned()];
        objects.push(etcd_service(&source, 0, Some("10.96.0.7")));
        objects.push(etcd_config(&source, &addresses));
        objects.push(etcd_member(&source, etcd, 0, &addresses, Some("node-a")));
        objects.push(etcd_disruption_budget(&source));
    }
    objects
}

fn round_trip<T: DeserializeOwned + Serialize>(body: &Value) -> Value {
    let typed: T = serde_json::from_value(body.clone()).unwrap_or_else(|error| panic!("{error}: {body:#}"));
    serde_json::to_value(typed).unwrap()
}

#[test]
fn every_field_of_every_body_is_one_that_kubernetes_knows() {
    for object in specs().iter().flat_map(all) {
        let body = &object.body;
        let known = match object.key.kind {
            Kind::ConfigMap => round_trip::<ConfigMap>(body),
            Kind::Service => round_trip::<Service>(body),
            Kind::PodDisruptionBudget => round_trip::<PodDisruptionBudget>(body),
            Kind::StatefulSet => round_trip::<StatefulSet>(body),
            Kind::DaemonSet => round_trip::<DaemonSet>(body),
            Kind::Deployment => round_trip::<Deployment>(body),
            Kind::CsiDriver => round_trip::<CSIDriver>(body),
            Kind::StorageClass => round_trip::<StorageClass>(body),
            Kind::PersistentVolume | Kind::PersistentVolumeClaim => continue,
        };
        assert!(covers(&known, body), "{}: {body:#} is not all in {known:#}", object.key);
    }
}

#[test]
fn every_object_is_labelled_and_owned() {
    for object in specs().iter().flat_map(all) {
        let metadata = &object.body["metadata"];
        assert_eq!(metadata["labels"][LABEL_MANAGED_BY], MANAGED_BY, "{}", object.key);
        assert_eq!(metadata["labels"][LABEL_CLUSTER], "main", "{}", object.key);
        assert!(metadata["annotations"][ANNOTATION_APPLIED].is_string(), "{}", object.key);
        let is_owned = metadata["ownerReferences"][0]["uid"] == "u1";
        assert_eq!(is_owned, object.key.kind.is_namespaced(), "{}", object.key);
    }
}

#[test]
fn selectors_select_their_own_pods_alone() {
    for spec in specs() {
        let objects = all(&spec);
        let pods: Vec<_> = objects.iter().filter(|object| object.body["spec"]["template"].is_object()).collect();
        for set in &pods {
            let selector = &set.body["spec"]["selector"]["matchLabels"];
            for other in &pods {
                let labels = &other.body["spec"]["template"]["metadata"]["labels"];
                assert_eq!(covers(labels, selector), set.key == other.key, "{} and {}", set.key, other.key);
            }
        }
    }
}

#[test]
fn a_pod_mounts_what_it_has_and_has_what_it_mounts() {
    for object in specs().iter().flat_map(all) {
        let pod = &object.body["spec"]["template"]["spec"];
        if !pod.is_object() {
            continue;
        }
        let names = |list: &Value, path: &str| -> BTreeSet<String> {
            list.as_array()
                .into_iter()
                .flatten()
                .map(|item| item.pointer(path).unwrap().as_str().unwrap().into())
                .collect()
        };
        let mut has = names(&pod["volumes"], "/name");
        has.extend(names(&object.body["spec"]["volumeClaimTemplates"], "/metadata/name"));
        let mounts =
            pod["containers"].as_array().unwrap().iter().map(|container| names(&container["volumeMounts"], "/name"));
        let mounted: BTreeSet<_> = mounts.flatten().collect();
        assert_eq!(has, mounted, "{}", object.key);
    }
}

#[test]
fn the_data_of_a_claim_leaves_room_for_a_filesystem() {
    let objects = all(&specs()[1]);
    let set =
        objects.iter().find(|object| object.key.name == "main-agent" && object.key.kind == Kind::StatefulSet).unwrap();
    let args = &set.body["spec"]["template"]["spec"]["containers"][0]["args"];
    let size = args.as_array().unwrap().iter().find_map(|arg| arg.as_str()?.strip_prefix("--size=")).unwrap();
    let bytes: u64 = size.parse().unwrap();
    assert!(bytes > 9 << 30 && bytes < (10 << 30) / 100 * 96 && bytes.is_multiple_of(4 << 20), "{bytes}");
}

#[test]
fn settings_read_as_yaml_and_hold_no_password() {
    let objects = all(&specs()[2]);
    let config =
        objects.iter().find(|object| object.key.name == "main-agent" && object.key.kind == Kind::ConfigMap).unwrap();
    let text = config.body["data"]["agent.yaml"].as_str().unwrap();
    assert!(text.contains("etcd-ca: \"/etc/torus-etcd/ca.crt\"\n"), "{text}");
    assert!(text.contains("etcd-password-file: \"/etc/torus-etcd/password\"\n"), "{text}");
    assert!(text.contains("etcd-prefix: \"/torus/\"\n"), "{text}");
}

#[test]
fn another_setting_is_another_revision() {
    let mut spec = specs().swap_remove(2);
    let template = |spec: &TorusClusterSpec| {
        let objects = all(spec);
        let set = objects.into_iter().find(|object| object.key.kind == Kind::StatefulSet).unwrap();
        set.body["spec"]["template"].clone()
    };
    let before = template(&spec);
    assert_eq!(before, template(&spec));
    spec.etcd.external.as_mut().unwrap().prefix = "/other/".into();
    assert_ne!(before, template(&spec));
}

/// One that is made inside a mount which passes mounts on to the node would be passed on as well: at every start of the container
/// again, in each place where the last start has left it.
#[test]
fn no_mount_is_inside_one_that_passes_mounts_on() {
    let mut shared = 0;
    for object in specs().iter().flat_map(all) {
        let containers = object.body["spec"]["template"]["spec"]["containers"].as_array().cloned().unwrap_or_default();
        for container in containers {
            let mounts = container["volumeMounts"].as_array().cloned().unwrap_or_default();
            let path = |mount: &Value| std::path::PathBuf::from(mount["mountPath"].as_str().unwrap());
            for outer in mounts.iter().filter(|mount| mount["mountPropagation"] == "Bidirectional") {
                shared += 1;
                let inside =
                    mounts.iter().find(|mount| path(mount) != path(outer) && path(mount).starts_with(path(outer)));
                assert!(inside.is_none(), "{}: {} is inside {}", object.key, inside.unwrap(), outer);
            }
        }
    }
    assert!(shared > 0, "nothing is passed on");
}
