//! FlexVolume, as on clusters from before CSI.

use super::World;
use super::world::{GONE, shell};
use anyhow::{Result, ensure};
use serde_json::json;

/// A pod that names the driver itself, on two nodes one after the other.
pub fn flex_volume(world: &mut World) -> Result<()> {
    world.torusctl(["volume", "create", "flex", "1GiB"])?;
    let tried = mounted_twice(world);
    let deleted = world.torusctl(["volume", "delete", "flex", "--yes"]);
    tried?;
    deleted.map(drop)
}

fn mounted_twice(world: &World) -> Result<()> {
    let pod = |name: &str, node: Option<&str>| {
        let mut spec = shell(&json!({"flexVolume": {
            "driver": "coreos.com/torus", "fsType": "ext4", "options": {"volume": "flex"},
        }}));
        if let Some(node) = node {
            spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        }
        world.apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}))?;
        world.until_running(name)
    };
    let first = pod("writer", None)?;
    let mount = world.sh("writer", "grep ' /data ' /proc/mounts")?;
    ensure!(mount.contains(" ext4 "), "mounted: {mount}");
    let written = world.write_file("writer", "/data/file", 16)?;
    world.delete_pod("writer")?;
    pod("reader", Some(&world.other_than(&first)?))?;
    let read = world.digest_of("reader", "/data/file")?;
    ensure!(read == written, "written {written}, read {read}");
    world.kubectl_here(["delete", "pod", "reader", "--wait=false"])?;
    world.kubectl().until_gone(["pod", "reader", "-n", world.namespace()], GONE)
}
