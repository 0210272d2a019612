//! What is held, what is refused, and what goes.

use super::World;
use super::world::{GONE, Pod};
use crate::kube::kubectl::{condition, is_true};
use crate::kube::torus::{NAME, NAMESPACE};
use anyhow::{Result, ensure};
use serde_json::json;
use std::time::Duration;

/// A TorusVolume is deleted while a pod has it mounted.
pub fn deleted_while_mounted(world: &mut World) -> Result<()> {
    world.apply(&json!({
        "apiVersion": "torus.storage/v1alpha1",
        "kind": "TorusVolume",
        "metadata": {"name": "db"},
        "spec": {"size": "1Gi", "claim": {"name": "db"}},
    }))?;
    let of = ["torusvolume", "db", "-n", world.namespace()];
    world.kubectl().until(of, "it is ready", GONE, |volume| is_true(volume, "Ready"))?;
    world.run_pod(&Pod::new("user", "db"))?;
    let written = world.write_file("user", "/data/file", 8)?;
    world.kubectl_here(["delete", "torusvolume", "db", "--wait=false"])?;
    let held = world.kubectl().until(of, "it says what holds it", GONE, |volume| {
        condition(volume, "Deleting")
            .is_some_and(|deleting| deleting["message"].as_str().is_some_and(|m| !m.is_empty()))
    })?;
    world.say(&format!("held: {}", condition(&held, "Deleting").map_or("", |c| c["message"].as_str().unwrap_or(""))));
    // It has been given the time to go wrong.
    std::thread::sleep(Duration::from_secs(5));
    ensure!(world.kubectl().find(of)?.is_some(), "it is gone while a pod has it mounted");
    ensure!(world.digest_of("user", "/data/file")? == written, "the file is another one");
    world.write_file("user", "/data/more", 4)?;
    world.delete_pod("user")?;
    world.kubectl().until_gone(of, GONE)?;
    world.kubectl().until_gone(["pvc", "db", "-n", world.namespace()], GONE)
}

/// The chart is brought to other values while a pod has a volume.
pub fn helm_upgrade(world: &mut World) -> Result<()> {
    world.claim("data", "1Gi", &json!({}))?;
    world.run_pod(&Pod::new("user", "data"))?;
    let written = world.write_file("user", "/data/file", 8)?;
    world.cluster().install_chart(&["operator.log=info\\,torus_operator=debug"])?;
    world.cluster().until_pool_is_ready()?;
    ensure!(world.digest_of("user", "/data/file")? == written, "the file is another one");
    world.cluster().install_chart(&[])?;
    world.delete_pod("user")
}

/// Uninstalling is refused while there are volumes, and then done; nothing stays but the definitions. Installs it again.
pub fn helm_uninstall(world: &mut World) -> Result<()> {
    world.claim("kept", "1Gi", &json!({}))?;
    let of = ["pvc", "kept", "-n", world.namespace()];
    let claim = world.kubectl().until(of, "it is bound", GONE, |claim| claim["status"]["phase"] == "Bound")?;
    let volume = claim["spec"]["volumeName"].as_str().unwrap_or_default();
    let uninstall = ["uninstall", "torus", "-n", NAMESPACE, "--wait", "--timeout=3m"];
    ensure!(world.cluster().run_helm(uninstall).is_err(), "it was uninstalled while there was a volume");
    let said = world.kubectl().run(["logs", "job/torus-guard", "-n", NAMESPACE])?;
    ensure!(said.contains(volume), "the refusal does not name {volume}: {said}");
    world.kubectl_here(["delete", "pvc", "kept"])?;
    world.kubectl().until_gone(["pv", volume], GONE)?;
    world.kubectl().run(["delete", "toruscluster", NAME, "-n", NAMESPACE, "--timeout=120s"])?;
    world.cluster().run_helm(uninstall)?;
    let left = world.kubectl().run([
        "get",
        "all,cm,pdb,role,rolebinding",
        "-n",
        NAMESPACE,
        "-l",
        "app.kubernetes.io/name=torus",
        "-o",
        "name",
    ])?;
    ensure!(left.trim().is_empty(), "it is uninstalled, and left behind are: {left}");
    let crds = world.kubectl().run(["get", "crd", "-o", "name"])?;
    ensure!(crds.contains("torusvolumes.torus.storage"), "the definitions are gone, and all objects with them: {crds}");
    // The disks of the pool before are still there, of another cluster: a fresh one has others.
    for node in world.cluster().nodes() {
        node.said("sh", ["-c", "rm -rf /var/lib/torus/data /var/lib/torus/etcd"])?;
    }
    super::install::install(world)
}
