//! Data follows a pod.

use super::World;
use super::world::Pod;
use crate::kube::kubectl::is_true;
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::Duration;

/// A claim, a pod that writes, the same on another node.
pub fn pod_moves(world: &mut World) -> Result<()> {
    world.claim("data", "1Gi", &json!({}))?;
    let first = world.run_pod(&Pod::new("writer", "data"))?;
    let written = world.write_file("writer", "/data/file", 64)?;
    world.say(&format!("64 MiB are written on {first}"));
    world.delete_pod("writer")?;
    for node in world.node_names().iter().filter(|node| **node != first) {
        let on = world.run_pod(&Pod::new("reader", "data").on(node))?;
        ensure!(on == *node, "the pod is on {on} and not on {node}");
        let read = world.digest_of("reader", "/data/file")?;
        ensure!(read == written, "written {written}, but {node} reads {read}");
        world.say(&format!("{node} reads the same"));
        world.delete_pod("reader")?;
    }
    Ok(())
}

/// A TorusVolume that brings its claim.
pub fn volume_with_claim(world: &mut World) -> Result<()> {
    world.apply(&json!({
        "apiVersion": "torus.storage/v1alpha1",
        "kind": "TorusVolume",
        "metadata": {"name": "db"},
        "spec": {"size": "1Gi", "replicas": 2, "claim": {"name": "db-data"}},
    }))?;
    let of = ["torusvolume", "db", "-n", world.namespace()];
    world.kubectl().until(of, "it is ready", Duration::from_secs(60), |volume| is_true(volume, "Ready"))?;
    let first = world.run_pod(&Pod::new("writer", "db-data"))?;
    let written = world.write_file("writer", "/data/file", 16)?;
    world.delete_pod("writer")?;
    let other = world.other_than(&first)?;
    world.run_pod(&Pod::new("reader", "db-data").on(&other))?;
    let read = world.digest_of("reader", "/data/file")?;
    ensure!(read == written, "written {written}, read {read}");
    world.delete_pod("reader")
}
