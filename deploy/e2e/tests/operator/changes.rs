//! A walk through a hundred changes, sound ones and others: after each sound one, what is there is what a fresh object of that spec gives;
//! the others are refused with a sentence, and change nothing. What is walked is changed by `kubectl apply`, as a person does it.

use crate::objects::{OWNED, objects, of_kinds};
use crate::world::{MAIN, SOON, World, cluster, condition, volume, with};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const STEPS: usize = 100;

/// A small generator of chance: the same walk each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }

    fn of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}

/// Sound changes of a cluster's spec: a path, and what may be there; null takes it away.
fn sound() -> Vec<(&'static str, Vec<Value>)> {
    let tolerations = json!([{"key": "a", "operator": "Exists"}, {"key": "b", "value": "c", "effect": "NoSchedule"}]);
    let resources = json!({"requests": {"cpu": "0.5", "memory": "1024Mi"}, "limits": {"memory": "2Gi"}});
    vec![
        ("/image", vec![Value::Null, json!("torus:one"), json!("torus:two")]),
        ("/imagePullPolicy", vec![Value::Null, json!("Always"), json!("Never")]),
        ("/imagePullSecrets", vec![Value::Null, json!([{"name": "a"}]), json!([{"name": "a"}, {"name": "b"}])]),
        ("/replicas", vec![json!(2), json!(3)]),
        ("/minReplicas", vec![Value::Null, json!(1), json!(2)]),
        ("/placement/domainLabels", vec![json!([]), json!(["topology.kubernetes.io/zone"]), json!(["a/b", "c"])]),
        ("/network/dataPort", vec![Value::Null, json!(41_000)]),
        ("/network/host", vec![json!(true), json!(false)]),
        ("/agent/tolerations", vec![Value::Null, tolerations.clone()]),
        ("/agent/nodeSelector", vec![Value::Null, json!({"disk": "ssd"}), json!({"disk": "ssd", "x": ""})]),
        ("/agent/resources", vec![Value::Null, resources.clone()]),
        ("/agent/priorityClassName", vec![Value::Null, json!("system-cluster-critical")]),
        ("/update/type", vec![json!("OnDelete"), json!("WhenRedundant")]),
        ("/nodePlugin/enabled", vec![json!(true), json!(false)]),
        ("/nodePlugin/pod/tolerations", vec![Value::Null, tolerations]),
        ("/nodePlugin/kubeletDir", vec![Value::Null, json!("/var/snap/kubelet")]),
        ("/nodePlugin/flexVolumeDir", vec![Value::Null, json!("/usr/libexec/kubernetes/volume")]),
        ("/csi/replicas", vec![json!(1), json!(2)]),
        ("/csi/pod/resources", vec![Value::Null, resources]),
        ("/csi/resizerImage", vec![Value::Null, json!("resizer:x")]),
        ("/storageClass/create", vec![json!(true), json!(false)]),
        ("/storageClass/default", vec![json!(true), json!(false)]),
        ("/storageClass/reclaimPolicy", vec![json!("Delete"), json!("Retain")]),
        ("/storageClass/fsType", vec![json!("ext4"), json!("xfs")]),
        ("/monitoring/scrapeAnnotations", vec![json!(true), json!(false)]),
        ("/failover/outOfServiceTaint", vec![json!(true), json!(false)]),
        ("/failover/graceSeconds", vec![Value::Null, json!(30)]),
        ("/deletionPolicy", vec![json!("KeepData"), json!("RefuseWhileVolumesExist")]),
        ("/storage/count", vec![json!(3), json!(4), json!(5)]),
    ]
}

/// Changes that cannot be, and what is said to them.
fn unsound() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("/storage/count", json!(2), "can only grow"),
        ("/replicas", json!(9), "less than or equal to 7"),
        ("/minReplicas", json!(7), "minReplicas cannot be more than replicas"),
        ("/storage/hostPath/size", json!("2Gi"), "keeps the size"),
        ("/storage/hostPath/path", json!("/elsewhere"), "the data is there"),
        ("/placement/ring", json!("Mod"), "cannot be changed"),
        ("/placement/spreadLevel", json!(5), "do not have"),
        ("/network/httpPort", json!(40_001), "must differ"),
        ("/etcd/external/prefix", json!("/other/"), "prefix cannot be changed"),
        ("/etcd/managed", json!({}), "exactly one of etcd.external and etcd.managed"),
        ("/storageClass/name", json!("../x"), "should match"),
        ("/nodePlugin/kubeletDir", json!("/var/../x"), "has no .. in it"),
    ]
}

#[test]
fn a_hundred_changes_come_to_what_fresh_objects_come_to() {
    // As many nodes as there are ever to be agents.
    let mut walked = World::installed();
    walked.make_ready(5);
    let mut fresh = World::installed();
    fresh.make_ready(5);
    let mut chance = Chance(20_261_128);
    let mut spec = walked.spec();
    let mut volumes: BTreeMap<String, Value> = BTreeMap::new();
    let (sound, unsound) = (sound(), unsound());
    let (mut taken, mut refused) = (0, 0);
    for step in 0..STEPS {
        match chance.below(10) {
            0..=4 => {
                let (path, values) = chance.of(&sound);
                let changed = with(&spec, path, chance.of(values).clone());
                match walked.apply_cluster(&changed) {
                    Ok(_) => {
                        spec = changed;
                        taken += 1;
                        renew(&fresh, &with(&spec, "/etcd", fresh.spec()["etcd"].clone()));
                        println!("step {step}: {path} = {}", spec.pointer(path).unwrap_or(&Value::Null));
                    }
                    // Two sound values that do not go together, such as fewer agents than there are.
                    Err(error) => {
                        let said = format!("{error:#}");
                        let is_told = ["can only grow", "minReplicas cannot be more", "do not have", "each copy is on"];
                        assert!(is_told.iter().any(|words| said.contains(words)), "{path}: {said}");
                        refused += 1;
                        continue;
                    }
                }
            }
            5 | 6 => {
                let (path, value, words) = chance.of(&unsound);
                let said = walked.apply_cluster(&with(&spec, path, value.clone()));
                let said = format!("{:#}", said.expect_err(&format!("{path} = {value} was taken")));
                assert!(said.contains(words), "{path} = {value}: {said}");
                refused += 1;
                continue;
            }
            7 if volumes.len() < 4 => {
                let name = format!("v{step}");
                let claim = if chance.below(2) == 0 { json!({"name": name}) } else { Value::Null };
                let mode = chance.of(&["Filesystem", "Block"]);
                let made = with(&json!({"size": "8Mi", "volumeMode": mode}), "/claim", claim);
                walked.apply_volume(&name, &made).unwrap();
                make(&fresh, &name, &made);
                println!("step {step}: {name} is made, {made}");
                volumes.insert(name, made);
                taken += 1;
            }
            8 if !volumes.is_empty() => {
                let names: Vec<_> = volumes.keys().cloned().collect();
                let name = chance.of(&names).clone();
                let (path, value) =
                    chance.of(&[("/deletionPolicy", json!("Retain")), ("/deletionPolicy", Value::Null)]).clone();
                let path = if volumes[&name]["claim"].is_null() { "/claim" } else { path };
                let value = if path == "/claim" { json!({"name": name}) } else { value };
                let changed = with(&volumes[&name], path, value);
                walked.apply_volume(&name, &changed).unwrap();
                // A fresh one of that spec.
                make(&fresh, &name, &with(&volumes[&name], "/deletionPolicy", Value::Null));
                fresh.delete(["torusvolumes", "default", &name]);
                make(&fresh, &name, &changed);
                println!("step {step}: {name} {path}");
                volumes.insert(name, changed);
                taken += 1;
            }
            _ if !volumes.is_empty() => {
                let names: Vec<_> = volumes.keys().cloned().collect();
                let name = chance.of(&names).clone();
                let bad = [
                    ("/size", json!("4Mi"), "never shrinks"),
                    ("/replicas", json!(3), "cannot be changed"),
                    ("/fsType", json!("xfs"), "fsType"),
                ];
                let (path, value, words) = chance.of(&bad).clone();
                let said = walked.apply_volume(&name, &with(&volumes[&name], path, value));
                let said = format!("{:#}", said.expect_err(&format!("{name} {path} was taken")));
                assert!(said.contains(words), "{path}: {said}");
                refused += 1;
                continue;
            }
            _ => continue,
        }
        equal(&walked, &fresh, step);
    }
    println!("{taken} changes taken, {refused} refused");
    assert!(taken > 30 && refused > 15, "{taken} taken, {refused} refused");
}

fn make(world: &World, name: &str, spec: &Value) {
    world.client.apply("torusvolumes", &volume(name, spec)).unwrap();
}

/// The TorusCluster anew; the volumes stay.
fn renew(world: &World, spec: &Value) {
    let [kind, namespace, name] = MAIN;
    world.client.patch(kind, namespace, name, &json!({"spec": {"deletionPolicy": "KeepData"}}));
    world.delete(MAIN);
    // What it owned goes by itself: a fresh one is not to find any of it.
    world.until_all("what it owned is gone", SOON, || of_kinds(world, &OWNED).is_empty());
    world.client.apply(kind, &cluster(spec)).unwrap();
}

/// Waits until both are the same.
fn equal(walked: &World, fresh: &World, step: usize) {
    let begun = Instant::now();
    loop {
        let settled = [walked, fresh].iter().all(|world| {
            let cluster = world.cluster();
            cluster["status"]["observedGeneration"] == cluster["metadata"]["generation"]
                && world.volumes().iter().all(|volume| condition(volume, "Ready").0 == "True")
        });
        if settled && objects(walked) == objects(fresh) {
            return;
        }
        if begun.elapsed() > SOON {
            let (here, there) = (objects(walked), objects(fresh));
            let (here, there) = (here.as_object().unwrap(), there.as_object().unwrap());
            let names: std::collections::BTreeSet<_> = here.keys().chain(there.keys()).collect();
            for name in names {
                if here.get(name) != there.get(name) {
                    eprintln!(
                        "{name}\nwalked: {:#}\nfresh: {:#}",
                        here.get(name).unwrap_or(&Value::Null),
                        there.get(name).unwrap_or(&Value::Null)
                    );
                }
            }
            panic!("step {step}: not the same after {SOON:?}, settled: {settled}\n{}\n{}", walked.log(), fresh.log());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
