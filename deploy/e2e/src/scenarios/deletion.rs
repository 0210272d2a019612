//! What is held, what is refused, and what goes.

use super::World;
use super::world::{GONE, Pod};
use crate::kube::kubectl::{condition, is_true};
use crate::kube::torus::{NAME, NAMESPACE};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
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

/// Uninstalling is refused while there are volumes, and then done; nothing stays but the definitions.
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
    world.remove_pool()?;
    world.cluster().run_helm(uninstall)?;
    // Helm does not wait for pods: they end by themselves.
    let ours = "app.kubernetes.io/name=torus";
    let of = ["all,cm,pdb,role,rolebinding", "-n", NAMESPACE, "-l", ours];
    world.kubectl().until_gone(of, GONE).context("it is uninstalled, and something of it is left")?;
    let crds = world.kubectl().run(["get", "crd", "-o", "name"])?;
    ensure!(crds.contains("torusvolumes.torus.storage"), "the definitions are gone, and all objects with them: {crds}");
    Ok(())
}

/// The data plane is gone for good. A namespace with a volume goes all the same, and keeps the data; then the operator's own goes, with what
/// belongs to it outside, and lets go of the volumes that are left.
pub fn namespace_deleted(world: &mut World) -> Result<()> {
    let other = format!("{}-other", world.namespace());
    world.kubectl().run(["create", "namespace", &other])?;
    let volume = |namespace: &str, claim: Value| {
        let volume = json!({
            "apiVersion": "torus.storage/v1alpha1",
            "kind": "TorusVolume",
            "metadata": {"name": "db", "namespace": namespace},
            "spec": {"size": "64Mi", "claim": claim},
        });
        world.kubectl().apply(&volume.to_string())
    };
    volume(&other, json!({"name": "db"}))?;
    volume(world.namespace(), Value::Null)?;
    for namespace in [other.as_str(), world.namespace()] {
        let of = ["torusvolume", "db", "-n", namespace];
        world.kubectl().until(of, "it is ready", GONE, |volume| is_true(volume, "Ready"))?;
    }
    let bound = world.kubectl().json(["get", "pvc", "db", "-n", &other])?;
    let disk = bound["spec"]["volumeName"].as_str().context("the claim has no volume")?.to_owned();
    remove_data_plane(world)?;
    world.kubectl().run(["delete", "namespace", &other, "--wait=false"])?;
    world.kubectl().until_gone(["namespace", &other], GONE)?;
    world.say("the namespace of a volume is gone");
    // Whatever still knows of the data outside of it is not cleared away by force. It may go by itself at any time.
    let freed =
        world.kubectl().run(["patch", "pv", &disk, "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]);
    if world.kubectl().find(["pv", &disk])?.is_some() {
        freed?;
    }
    world.kubectl().run(["delete", "namespace", NAMESPACE, "--wait=false"])?;
    world.kubectl().until_gone(["namespace", NAMESPACE], GONE)?;
    world.say("the operator's namespace is gone");
    let outside = world.kubectl().run(["get", "storageclass,csidriver", "-o", "name"])?;
    ensure!(!outside.contains("torus"), "left is {outside}");
    for label in ["torus.storage/storage-agent", "csi.torus.storage/cluster"] {
        let labelled = world.kubectl().run(["get", "nodes", "-l", label, "-o", "name"])?;
        ensure!(labelled.trim().is_empty(), "these still have the label {label}: {labelled}");
    }
    let kept = world.kubectl().json(["get", "torusvolume", "db", "-n", world.namespace()])?;
    ensure!(
        kept["metadata"]["finalizers"].is_null(),
        "nobody is left who takes away {}",
        kept["metadata"]["finalizers"]
    );
    world.forget_pool()
}

/// Ends etcd, the agents and the CSI controller for good: the operator is told not to make them again.
fn remove_data_plane(world: &World) -> Result<()> {
    let pause = r#"{"spec":{"paused":true}}"#;
    world.kubectl().run(["patch", "toruscluster", NAME, "-n", NAMESPACE, "--type=merge", "-p", pause])?;
    let of = ["toruscluster", NAME, "-n", NAMESPACE];
    world.kubectl().until(of, "it is paused", GONE, |pool| pool["status"]["phase"] == "Paused")?;
    let ours = "app.kubernetes.io/managed-by=torus-operator";
    world.kubectl().run(["delete", "sts,ds,deploy", "-n", NAMESPACE, "-l", ours, "--wait=false"])?;
    world.kubectl().until_gone(["pods", "-n", NAMESPACE, "-l", ours], GONE)?;
    world.say("etcd, agents and the CSI controller are gone");
    Ok(())
}
