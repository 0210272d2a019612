//! What only a running system can tell is told in conditions: what is so, and what to do.

use crate::world::{MAIN, NAMESPACE, PROGRAMS, SOON, World, cluster, condition, volume, with};
use serde_json::{Value, json};
use std::process::Command;
use torus_e2e::etcd::Etcd;

#[track_caller]
fn until_told(world: &World, object: [&str; 3], kind: &str, reason: &str, words: &str) -> Value {
    let found = world.until(object, &format!("{kind} {reason}"), |found| condition(found, kind).1 == reason);
    let message = condition(&found, kind).2;
    assert!(message.contains(words), "{kind} {reason}: {message}");
    found
}

/// The same, and an event that warns of it in the same words.
#[track_caller]
fn until_warned(world: &World, object: [&str; 3], kind: &str, reason: &str, words: &str) -> Value {
    let found = until_told(world, object, kind, reason, words);
    let [_, namespace, name] = object;
    let warns = |event: &Value| {
        event["regarding"]["name"] == name
            && event["reason"] == reason
            && event["type"] == "Warning"
            && event["note"].as_str().is_some_and(|note| note.contains(words))
    };
    let what = format!("an event warns of {reason}");
    world.until_all(&what, SOON, || world.client.list("events", namespace, "").iter().any(warns));
    found
}

#[test]
fn what_cannot_be_carried_out_is_said_with_what_to_do() {
    let mut world = World::installed();
    world.nodes(3);
    world.start_etcd();
    world.start_operator();
    let kubectl = world.kubectl().clone();
    let spec = world.spec();
    // A secret that is missing, that the operator may not read, that lacks something.
    let tls = with(&spec, "/etcd/external", json!({"endpoints": ["https://127.0.0.1:1"], "secret": {"name": "etcd"}}));
    world.apply_cluster(&tls).unwrap();
    until_warned(&world, MAIN, "Accepted", "SecretMissing", "kubectl create secret generic etcd");
    kubectl.run(["create", "secret", "generic", "etcd", "-n", NAMESPACE, "--from-literal=tls.crt=x"]).unwrap();
    until_warned(&world, MAIN, "Accepted", "SecretIncomplete", "ca.crt");
    let other = with(&tls, "/etcd/external/secret/name", json!("another"));
    world.apply_cluster(&other).unwrap();
    until_warned(&world, MAIN, "Accepted", "SecretForbidden", "etcdSecrets={another}");
    // An etcd that does not answer.
    let away = with(&spec, "/etcd/external", json!({"endpoints": ["http://127.0.0.1:1"]}));
    world.apply_cluster(&away).unwrap();
    let found = until_warned(&world, MAIN, "Etcd", "Unreachable", "127.0.0.1:1");
    assert_eq!(condition(&found, "Ready").1, "Unreachable", "{found:#}");
    assert!(kubectl.find(["statefulset", "main-agent", "-n", NAMESPACE]).unwrap().is_none(), "agents without an etcd");
    // One that does, then one of another cluster, then one that was emptied.
    world.apply_cluster(&spec).unwrap();
    until_told(&world, MAIN, "Etcd", "Answers", "holds this cluster");
    let made = world.until_cluster("it is made in etcd", |cluster| cluster["status"]["clusterId"].is_string());
    let id = made["status"]["clusterId"].as_str().unwrap().to_owned();
    let other = Etcd::start().unwrap();
    let made = Command::new(&PROGRAMS.torusctl).args(["--etcd", &other.url(), "init"]).status().unwrap();
    assert!(made.success());
    world.apply_cluster(&with(&spec, "/etcd/external/endpoints", json!([other.url()]))).unwrap();
    until_warned(&world, MAIN, "Etcd", "OtherCluster", &id);
    let empty = Etcd::start().unwrap();
    world.apply_cluster(&with(&spec, "/etcd/external/endpoints", json!([empty.url()]))).unwrap();
    until_warned(&world, MAIN, "Etcd", "MetadataLost", "Restore etcd from a backup");
    world.apply_cluster(&spec).unwrap();
    until_told(&world, MAIN, "Etcd", "Answers", "holds this cluster");
    // A second cluster, and one where the operator does not look.
    for (name, namespace, reason, words) in [
        ("second", NAMESPACE, "AnotherCluster", "torus-system/main is served already"),
        ("main", "default", "WrongNamespace", "Make this one in \"torus-system\""),
    ] {
        let mut made = cluster(&spec);
        made["metadata"] = json!({"name": name, "namespace": namespace});
        kubectl.apply(&made.to_string()).unwrap();
        until_warned(&world, ["torusclusters", namespace, name], "Accepted", reason, words);
        kubectl.run(["delete", "toruscluster", name, "-n", namespace, "--timeout=60s"]).unwrap();
    }
    // Volumes that cannot be.
    world.start_agents(2);
    world.until_cluster("both agents run", |cluster| cluster["status"]["redundancy"] == "2/2");
    let warn = |name: &str, spec: &Value, reason: &str, words: &str| {
        kubectl.apply(&volume(name, spec).to_string()).unwrap();
        until_warned(&world, ["torusvolumes", "default", name], "Ready", reason, words);
    };
    let nowhere = json!({"size": "1Gi", "cluster": {"name": "x", "namespace": "y"}});
    warn("nowhere", &nowhere, "NoCluster", "there is no TorusCluster y/x");
    warn("huge", &json!({"size": "60Ti"}), "LargerThanPool", "ask for less, or add agents");
    warn("wide", &json!({"size": "8Mi", "replicas": 3}), "TooFewAgents", "and 2 run");
    warn("lost", &json!({"size": "8Mi", "volumeName": "nobody"}), "VolumeMissing", "correct spec.volumeName");
    let taken = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "taken", "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}},
    });
    kubectl.apply(&taken.to_string()).unwrap();
    warn("foreign", &json!({"size": "8Mi", "claim": {"name": "taken"}}), "ActionFailed", "Rename or delete it");
    let shared = json!({"size": "8Mi", "claim": {"name": "shared"}});
    kubectl.apply(&volume("first", &shared).to_string()).unwrap();
    until_told(&world, ["torusvolumes", "default", "first"], "Ready", "Ready", "it can be used");
    warn("second", &shared, "ClaimExists", "rename spec.claim");
    // A volume is one object's; another one that named it too leaves it alone when it goes.
    let first = kubectl.json(["get", "torusvolume", "first"]).unwrap();
    let name = first["status"]["volumeName"].as_str().unwrap();
    warn("greedy", &json!({"size": "8Mi", "volumeName": name}), "VolumeTaken", "default/first");
    kubectl.run(["delete", "torusvolume", "greedy", "--timeout=60s"]).unwrap();
    let etcd = spec["etcd"]["external"]["endpoints"][0].as_str().unwrap();
    let there = Command::new(&PROGRAMS.torusctl).args(["--etcd", etcd, "volume", "info", name]).status().unwrap();
    assert!(there.success(), "the volume of another TorusVolume was deleted");
    // What the apiserver refuses to the operator is said in the apiserver's words, and in no others.
    let odd = json!([{"key": "a", "operator": "Exists", "value": "b"}]);
    world.apply_cluster(&with(&spec, "/agent/tolerations", odd)).unwrap();
    let found = until_warned(&world, MAIN, "Ready", "ActionFailed", "value must be empty when `operator` is 'Exists'");
    let said = condition(&found, "Ready").2;
    assert!(!said.contains("Status {") && !said.contains("ApiError"), "{said}");
    world.apply_cluster(&spec).unwrap();
    world.until_cluster("it is mended", |cluster| condition(cluster, "Ready").1 != "ActionFailed");
    // The deletion of a cluster waits for its volumes, and names them.
    kubectl.run(["delete", "toruscluster", "main", "-n", NAMESPACE, "--wait=false"]).unwrap();
    until_told(&world, MAIN, "Deleting", "VolumesExist", "default/first");
    // A cluster whose etcd is gone for good can be given up.
    kubectl.run(["delete", "torusvolume", "--all", "--timeout=90s"]).unwrap();
    world.until_cluster("it is gone", Value::is_null);
}
