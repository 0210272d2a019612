//! Where pods are, and who they are: a node that has no storage agent, a user that is not root.

use super::World;
use super::world::Pod;
use crate::kube::node::PAUSE_IMAGE;
use anyhow::{Context, Result, ensure};
use serde_json::json;

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
    world.apply(&json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "somebody"},
        "spec": {
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 5,
            "securityContext": {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000},
            "containers": [{
                "name": "shell",
                "image": PAUSE_IMAGE,
                "imagePullPolicy": "Never",
                "command": ["/bin/sh", "-c", "trap exit TERM INT; sleep 1000000000 & wait"],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
        },
    }))?;
    world.until_running("somebody")?;
    let said = world.sh("somebody", "echo mine >/data/file; stat -c %g /data /data/file; id -u")?;
    // The directory belongs to the group, and what is made in it too.
    ensure!(said.split_ascii_whitespace().eq(["2000", "2000", "1000"]), "groups and user: {said}");
    world.delete_pod("somebody")
}
