//! Where pods are, and who they are: a node that has no storage agent, a user that is not root; and claims that cannot be met.

use super::World;
use super::world::{GONE, Pod, of_claim, shell};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// A pod on a node that has no storage agent.
pub fn node_without_agent(world: &mut World) -> Result<()> {
    let nodes = world.kubectl().json(["get", "nodes", "-l", "!torus.storage/storage-agent"])?;
    let node = nodes["items"][0]["metadata"]["name"].as_str().context("every node has a storage agent")?.to_owned();
    world.claim("data", "64Mi", &json!({}))?;
    let on = world.run_pod(&Pod::new("writer", "data").on(&node))?;
    ensure!(on == node, "the pod is on {on}");
    let written = world.write_file("writer", "/data/file", 8)?;
    world.delete_pod("writer")?;
    let other = world.other_than(&node)?;
    world.run_pod(&Pod::new("reader", "data").on(&other))?;
    ensure!(world.digest_of("reader", "/data/file")? == written, "the file is another one on {other}");
    world.delete_pod("reader")
}

/// A pod that is not root gets its group's volume.
pub fn fs_group(world: &mut World) -> Result<()> {
    world.claim("data", "64Mi", &json!({}))?;
    let mut spec = shell(&of_claim("data"));
    spec["securityContext"] = json!({"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000});
    world.apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "somebody"}, "spec": spec}))?;
    world.until_running("somebody")?;
    let said = world.sh("somebody", "echo mine >/data/file; stat -c %g /data /data/file; id -u")?;
    // The directory belongs to the group, and what is made in it too.
    ensure!(said.split_ascii_whitespace().eq(["2000", "2000", "1000"]), "groups and user: {said}");
    world.delete_pod("somebody")
}

/// What cannot be is said where a person looks for it: in the events of the claim, or of the pod.
pub fn refused(world: &mut World) -> Result<()> {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "e2e-odd"},
        "provisioner": "csi.torus.storage",
        "parameters": {"replica": "3"},
    });
    world.kubectl().apply(&class.to_string())?;
    world.claim("odd", "64Mi", &json!({"storageClassName": "e2e-odd"}))?;
    world.claim("huge", "60Ti", &json!({}))?;
    // A volume that somebody made up, with a claim of its own.
    let handle = "../../etc/shadow";
    let disk = format!("{}-made-up", world.namespace());
    let volume = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": disk},
        "spec": {
            "capacity": {"storage": "64Mi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "csi": {"driver": "csi.torus.storage", "volumeHandle": handle},
            "claimRef": {"namespace": world.namespace(), "name": "made-up"},
        },
    });
    world.kubectl().apply(&volume.to_string())?;
    world.claim("made-up", "64Mi", &json!({"storageClassName": "", "volumeName": disk}))?;
    world.pod(&Pod::new("waiting", "made-up"))?;
    told(world, "odd", &["\"replica\"", "replicas"])?;
    told(world, "huge", &["larger than the pool", "bytes in all"])?;
    told(world, "waiting", &[handle])?;
    // A pod that goes before its kubelet has told of the volume leaves the attachment there for as long as that kubelet
    // has nothing else to tell (kubernetes#117042).
    let pod = world.kubectl().json(["get", "pod", "waiting", "-n", world.namespace()])?;
    let node = pod["spec"]["nodeName"].as_str().context("the pod is on no node")?.to_owned();
    world.kubectl().until(["node", &node], "its kubelet tells of the volume", GONE, |node| {
        let mut used = node["status"]["volumesInUse"].as_array().into_iter().flatten().filter_map(Value::as_str);
        used.any(|volume| volume.ends_with(handle))
    })?;
    for claim in ["odd", "huge"] {
        let claim = world.kubectl().json(["get", "pvc", claim, "-n", world.namespace()])?;
        ensure!(claim["status"]["phase"] == "Pending", "{} is {}", claim["metadata"]["name"], claim["status"]["phase"]);
    }
    world.delete_pod("waiting")?;
    for claim in ["odd", "huge", "made-up"] {
        world.kubectl_here(["delete", "pvc", claim, "--wait=false"])?;
        world.kubectl().until_gone(["pvc", claim, "-n", world.namespace()], GONE)?;
    }
    world.kubectl().run(["delete", "storageclass", "e2e-odd"])?;
    world.kubectl().run(["delete", "pv", &disk, "--wait=false"])?;
    world.kubectl().until_gone(["pv", &disk], GONE)
}

/// Waits until an event of an object has all of `words` in it.
fn told(world: &World, name: &str, words: &[&str]) -> Result<()> {
    let field = format!("involvedObject.name={name}");
    let of = ["events", "-n", world.namespace(), "--field-selector", &field];
    let says = |event: &Value| {
        let message = event["message"].as_str().unwrap_or_default();
        words.iter().all(|word| message.contains(word)).then(|| message.to_owned())
    };
    let found = world.kubectl().until(of, &format!("{name} is told {words:?}"), GONE, |events| {
        events["items"].as_array().is_some_and(|events| events.iter().any(|event| says(event).is_some()))
    })?;
    let said = found["items"].as_array().into_iter().flatten().find_map(says).unwrap_or_default();
    world.say(&format!("{name}: {said}"));
    Ok(())
}
