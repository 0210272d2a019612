//! What only a running system can tell is told in conditions: what is so, and what to do.

use crate::world::{NAMESPACE, SOON, World, cluster, condition, volume, with};
use serde_json::{Value, json};
use std::thread::sleep;
use std::time::Instant;
use torus_e2e::etcd::Etcd;

fn until_told(world: &World, object: &[&str], kind: &str, reason: &str, words: &str) -> Value {
    let begun = Instant::now();
    loop {
        let found = world.kubectl().find(object.iter().copied()).unwrap().unwrap_or_default();
        let (_, told, message) = condition(&found, kind);
        if told == reason {
            assert!(message.contains(words), "{kind} {reason}: {message}");
            return found;
        }
        assert!(begun.elapsed() < SOON, "no {kind} {reason}: {:#}\n{}", found["status"], world.log());
        sleep(std::time::Duration::from_millis(200));
    }
}

const MAIN: [&str; 4] = ["toruscluster", "main", "-n", NAMESPACE];

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
    until_told(&world, &MAIN, "Accepted", "SecretMissing", "kubectl create secret generic etcd");
    kubectl.run(["create", "secret", "generic", "etcd", "-n", NAMESPACE, "--from-literal=tls.crt=x"]).unwrap();
    until_told(&world, &MAIN, "Accepted", "SecretIncomplete", "ca.crt");
    let other = with(&tls, "/etcd/external/secret/name", json!("another"));
    world.apply_cluster(&other).unwrap();
    until_told(&world, &MAIN, "Accepted", "SecretForbidden", "etcdSecrets={another}");
    // An etcd that does not answer.
    let away = with(&spec, "/etcd/external", json!({"endpoints": ["http://127.0.0.1:1"]}));
    world.apply_cluster(&away).unwrap();
    let found = until_told(&world, &MAIN, "Etcd", "Unreachable", "127.0.0.1:1");
    assert_eq!(condition(&found, "Ready").1, "Unreachable", "{found:#}");
    assert!(kubectl.find(["statefulset", "main-agent", "-n", NAMESPACE]).unwrap().is_none(), "agents without an etcd");
    // One that does, then one of another cluster, then one that was emptied.
    world.apply_cluster(&spec).unwrap();
    until_told(&world, &MAIN, "Etcd", "Answers", "holds this cluster");
    let begun = Instant::now();
    while !world.cluster()["status"]["clusterId"].is_string() {
        assert!(begun.elapsed() < SOON, "{:#}", world.cluster());
        sleep(std::time::Duration::from_millis(200));
    }
    let id = world.cluster()["status"]["clusterId"].as_str().unwrap().to_owned();
    let other = Etcd::start().unwrap();
    let [torusctl] = torus_e2e::binaries::build("dev", ["torusctl"]).unwrap();
    let made = std::process::Command::new(torusctl).args(["--etcd", &other.url(), "init"]).status().unwrap();
    assert!(made.success());
    world.apply_cluster(&with(&spec, "/etcd/external/endpoints", json!([other.url()]))).unwrap();
    until_told(&world, &MAIN, "Etcd", "OtherCluster", &id);
    let empty = Etcd::start().unwrap();
    world.apply_cluster(&with(&spec, "/etcd/external/endpoints", json!([empty.url()]))).unwrap();
    until_told(&world, &MAIN, "Etcd", "MetadataLost", "Restore etcd from a backup");
    world.apply_cluster(&spec).unwrap();
    until_told(&world, &MAIN, "Etcd", "Answers", "holds this cluster");
    // A second cluster, and one where the operator does not look.
    for (name, namespace, reason, words) in [
        ("second", NAMESPACE, "AnotherCluster", "torus-system/main is served already"),
        ("main", "default", "WrongNamespace", "Make this one in \"torus-system\""),
    ] {
        let mut made = cluster(&spec);
        made["metadata"] = json!({"name": name, "namespace": namespace});
        kubectl.apply(&made.to_string()).unwrap();
        until_told(&world, &["toruscluster", name, "-n", namespace], "Accepted", reason, words);
        kubectl.run(["delete", "toruscluster", name, "-n", namespace, "--timeout=60s"]).unwrap();
    }
    // Volumes that cannot be.
    world.start_agents(2);
    let tell = |name: &str, spec: &Value, kind: &str, reason: &str, words: &str| {
        kubectl.apply(&volume(name, spec).to_string()).unwrap();
        until_told(&world, &["torusvolume", name], kind, reason, words);
    };
    let nowhere = json!({"size": "1Gi", "cluster": {"name": "x", "namespace": "y"}});
    tell("nowhere", &nowhere, "Ready", "NoCluster", "there is no TorusCluster y/x");
    tell("huge", &json!({"size": "60Ti"}), "Ready", "LargerThanPool", "ask for less, or add agents");
    tell("wide", &json!({"size": "8Mi", "replicas": 3}), "Ready", "TooFewAgents", "and 2 run");
    tell("lost", &json!({"size": "8Mi", "volumeName": "nobody"}), "Ready", "VolumeMissing", "correct spec.volumeName");
    let taken = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "taken", "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}},
    });
    kubectl.apply(&taken.to_string()).unwrap();
    tell(
        "foreign",
        &json!({"size": "8Mi", "claim": {"name": "taken"}}),
        "Ready",
        "ActionFailed",
        "Rename or delete it",
    );
    tell("first", &json!({"size": "8Mi", "claim": {"name": "shared"}}), "Ready", "Ready", "it can be used");
    tell("second", &json!({"size": "8Mi", "claim": {"name": "shared"}}), "Ready", "ClaimExists", "rename spec.claim");
    // The deletion of a cluster waits for its volumes, and names them.
    kubectl.run(["delete", "toruscluster", "main", "-n", NAMESPACE, "--wait=false"]).unwrap();
    until_told(&world, &MAIN, "Deleting", "VolumesExist", "default/first");
    // A cluster whose etcd is gone for good can be given up.
    kubectl.run(["delete", "torusvolume", "--all", "--timeout=90s"]).unwrap();
    let begun = Instant::now();
    while !world.cluster().is_null() {
        assert!(begun.elapsed() < SOON, "{:#}\n{}", world.cluster(), world.log());
        sleep(std::time::Duration::from_millis(300));
    }
}
