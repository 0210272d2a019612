//! Kinds of volumes, many at once, and growing ones.

use super::World;
use super::world::{POD, Pod};
use crate::process::until;
use anyhow::{Context, Result, ensure};
use serde_json::json;

/// A device without a filesystem.
pub fn raw_block(world: &mut World) -> Result<()> {
    world.claim("data", "1Gi", &json!({"volumeMode": "Block"}))?;
    let first = world.run_pod(&Pod::new("writer", "data").block())?;
    let size: u64 = world.sh("writer", "blockdev --getsize64 /dev/volume")?.trim().parse().context("no size")?;
    ensure!(size == 1 << 30, "a device for 1Gi has {size} bytes");
    let script = "dd if=/dev/urandom of=/tmp/part bs=1M count=16 2>/dev/null
        dd if=/tmp/part of=/dev/volume bs=1M seek=100 conv=fsync 2>/dev/null; sha256sum </tmp/part";
    let written = world.sh("writer", script)?;
    world.delete_pod("writer")?;
    world.run_pod(&Pod::new("reader", "data").block().on(&world.other_than(&first)?))?;
    let read = world.sh("reader", "dd if=/dev/volume bs=1M skip=100 count=16 2>/dev/null | sha256sum")?;
    ensure!(read == written, "written {written}, read {read}");
    world.delete_pod("reader")
}

/// A class for XFS beside the pool's own for ext4: each gets what it names.
pub fn filesystems(world: &mut World) -> Result<()> {
    world.kubectl().apply(
        &json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": "e2e-xfs"},
            "provisioner": "csi.torus.storage",
            "allowVolumeExpansion": true,
            "parameters": {"csi.storage.k8s.io/fstype": "xfs"},
        })
        .to_string(),
    )?;
    let tried = [("ext4", "torus"), ("xfs", "e2e-xfs")].into_iter().try_for_each(|(filesystem, class)| {
        world.claim(filesystem, "1Gi", &json!({"storageClassName": class}))?;
        let first = world.run_pod(&Pod::new(filesystem, filesystem))?;
        let mount = world.sh(filesystem, "grep ' /data ' /proc/mounts")?;
        ensure!(mount.split(' ').nth(2) == Some(filesystem), "asked for {filesystem}, mounted {mount}");
        let written = world.write_file(filesystem, "/data/file", 32)?;
        world.delete_pod(filesystem)?;
        world.run_pod(&Pod::new(filesystem, filesystem).on(&world.other_than(&first)?))?;
        let read = world.digest_of(filesystem, "/data/file")?;
        ensure!(read == written, "{filesystem}: written {written}, read {read}");
        world.delete_pod(filesystem)
    });
    world.kubectl().run(["delete", "storageclass", "e2e-xfs"])?;
    tried
}

/// How many volumes are made, mounted and written at once.
const MANY: usize = 20;

/// Many claims and pods at the same time.
pub fn twenty_at_once(world: &mut World) -> Result<()> {
    let names: Vec<_> = (1..=MANY).map(|number| format!("v{number}")).collect();
    for name in &names {
        world.claim(name, "256Mi", &json!({}))?;
        world.pod(&Pod::new(name, name))?;
    }
    let of = ["pods", "-n", world.namespace()];
    world.kubectl().until(of, "all pods run", POD * 3, |pods| {
        let pods = pods["items"].as_array();
        pods.is_some_and(|pods| {
            pods.len() == MANY && pods.iter().all(|pod| crate::kube::kubectl::is_true(pod, "Ready"))
        })
    })?;
    world.say("all run");
    let write = |name: &String| Ok((name.clone(), world.write_file(name, "/data/file", 4)?));
    let written: Vec<_> = names.iter().map(write).collect::<Result<_>>()?;
    for (name, digest) in written {
        let read = world.digest_of(&name, "/data/file")?;
        ensure!(read == digest, "{name}: written {digest}, read {read}");
    }
    world.kubectl_here(["delete", "pods", "--all", "--wait=false"])?;
    world.kubectl().until_gone(of, POD * 2)
}

/// A claim that asks for more while a pod has the volume.
pub fn expansion(world: &mut World) -> Result<()> {
    world.claim("files", "1Gi", &json!({}))?;
    world.claim("device", "1Gi", &json!({"volumeMode": "Block"}))?;
    let node = world.run_pod(&Pod::new("files", "files"))?;
    world.run_pod(&Pod::new("device", "device").block().on(&node))?;
    let written = world.write_file("files", "/data/file", 16)?;
    let patch = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}}).to_string();
    for claim in ["files", "device"] {
        world.kubectl_here(["patch", "pvc", claim, "-p", &patch])?;
    }
    until("the device has 2 GiB", POD * 2, || {
        std::thread::sleep(std::time::Duration::from_secs(1));
        Ok(world.sh("device", "blockdev --getsize64 /dev/volume")?.trim() == (2u64 << 30).to_string())
    })?;
    let kib = |world: &World| -> Result<u64> {
        let said = world.sh("files", "df -k /data | tail -n 1")?;
        said.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse().ok()).context("df says nothing")
    };
    // The kubelet calls a minute or so after the claim was changed. Where the agent lacks CAP_SYS_RESOURCE the kernel grows ext4 only
    // when it is mounted next (docs/KUBERNETES.md); the claim says so then.
    let online = until("the filesystem has grown", POD, || {
        std::thread::sleep(std::time::Duration::from_secs(1));
        Ok(kib(world)? > 1_800_000)
    });
    if online.is_err() {
        let claim = world.kubectl_here(["get", "pvc", "files", "-o", "json"])?;
        ensure!(claim.contains("FileSystemResizePending"), "it has not grown, and the claim does not say why: {claim}");
        world.say("ext4 does not grow while it is mounted here, and the claim says what it waits for");
        world.delete_pod("files")?;
        world.run_pod(&Pod::new("files", "files"))?;
        let size = kib(world)?;
        ensure!(size > 1_800_000, "after it was mounted again the filesystem has {size} KiB");
    }
    let of = ["pvc", "files", "-n", world.namespace()];
    world.kubectl().until(of, "the claim has 2Gi", POD, |claim| claim["status"]["capacity"]["storage"] == "2Gi")?;
    ensure!(world.digest_of("files", "/data/file")? == written, "the file is another one");
    world.delete_pod("device")?;
    world.delete_pod("files")
}
