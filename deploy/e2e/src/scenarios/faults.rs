//! What breaks while pods write.

use super::ledger::{self, Ledger};
use super::world::{GONE, Pod, of_claim, shell};
use super::{Needs, World};
use crate::kube::kubectl::is_true;
use crate::kube::torus::{NAME, NAMESPACE};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How long a pod of a dead node may take to run elsewhere.
const FAILOVER: Duration = Duration::from_secs(60);

/// A node with a storage agent loses its power under a pod that writes.
pub fn node_death(world: &mut World) -> Result<()> {
    let mut busy = nodes_of(world, &["csi-controller"])?;
    busy.push(node_of_leader(world)?);
    let victim = nodes_of(world, &["agent"])?.into_iter().find(|node| !busy.contains(node));
    death_of(world, &victim.context("every agent is beside the operator that leads or the CSI controller")?)
}

/// The node whose operator leads loses its power: nobody is there who would do anything about it, until another one leads.
pub fn operator_death(world: &mut World) -> Result<()> {
    let victim = node_of_leader(world)?;
    death_of(world, &victim)
}

fn death_of(world: &mut World, victim: &str) -> Result<()> {
    world.claim("data", "1Gi", &json!({}))?;
    world.apply(&deployment("data", victim))?;
    let of = ["pods", "-n", world.namespace(), "-l", "app=writer"];
    let pods = world.kubectl().until(of, "it runs", GONE, |pods| ready_elsewhere(pods, "").is_some())?;
    let (first, node) = ready_elsewhere(&pods, "").context("no pod")?;
    ensure!(node == victim, "the pod is on {node} and not on {victim}");
    let ledger = Ledger::start(world, &first)?;
    ledger.until_further(50, GONE)?;
    let begun = Instant::now();
    world.cluster_mut().power_off(victim)?;
    let told = ledger.end()?;
    world.say(&format!("{victim} is dead; {told} was written last"));
    let of = ["pods", "-n", world.namespace(), "-l", "app=writer"];
    let pods =
        world.kubectl().until(of, "it runs elsewhere", FAILOVER * 3, |pods| ready_elsewhere(pods, victim).is_some());
    let took = begun.elapsed();
    let (second, node) = ready_elsewhere(&pods?, victim).context("no pod")?;
    world.say(&format!("it runs on {node} after {:.1} s", took.as_secs_f64()));
    ledger::check(world, &second, told)?;
    let events = world.kubectl().run(["get", "events", "-A"])?;
    for reason in ["NodeDead", "Fenced", "NodeOutOfService"] {
        ensure!(events.contains(reason), "no event {reason} tells of it:\n{events}");
    }
    world.cluster_mut().power_on(victim)?;
    let has_no_taint = |node: &Value| !node["spec"]["taints"].to_string().contains("out-of-service");
    world.kubectl().until(["node", victim], "the taint is gone", GONE, has_no_taint)?;
    world.prepare(Needs::Pool)?;
    let of = ["toruscluster", NAME, "-n", NAMESPACE];
    world.kubectl().until(of, "all data has all of its copies", GONE, |pool| is_true(pool, "Healthy"))?;
    ensure!(took <= FAILOVER, "it took {:.1} s until the pod ran elsewhere", took.as_secs_f64());
    Ok(())
}

/// A Deployment of one pod that may first run on one node only, and then anywhere.
fn deployment(claim: &str, prefers: &str) -> Value {
    let preference = json!({"weight": 100, "preference": {"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [prefers]},
    ]}});
    let mut spec = shell(&of_claim(claim));
    spec["affinity"] = json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [preference]}});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "writer"},
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": {"app": "writer"}},
            "template": {"metadata": {"labels": {"app": "writer"}}, "spec": spec},
        },
    })
}

/// The name and node of a ready pod that is not on `dead`.
fn ready_elsewhere(pods: &Value, dead: &str) -> Option<(String, String)> {
    pods["items"].as_array()?.iter().find_map(|pod| {
        let node = pod["spec"]["nodeName"].as_str()?;
        let is_it = node != dead && is_true(pod, "Ready") && pod["metadata"]["deletionTimestamp"].is_null();
        is_it.then(|| Some((pod["metadata"]["name"].as_str()?.to_owned(), node.to_owned())))?
    })
}

/// The nodes on which pods of these components run.
fn nodes_of(world: &World, components: &[&str]) -> Result<Vec<String>> {
    let selector = format!("app.kubernetes.io/component in ({})", components.join(","));
    let pods = world.kubectl().json(["get", "pods", "-n", NAMESPACE, "-l", &selector])?;
    let nodes = pods["items"].as_array().into_iter().flatten().map(|pod| pod["spec"]["nodeName"].as_str());
    Ok(nodes.flatten().map(str::to_owned).collect())
}

/// The node of the operator that leads.
fn node_of_leader(world: &World) -> Result<String> {
    let lease = world.kubectl().json(["get", "lease", "torus-operator", "-n", NAMESPACE])?;
    let holder = lease["spec"]["holderIdentity"].as_str().context("no operator leads")?;
    let pod = world.kubectl().json(["get", "pod", holder, "-n", NAMESPACE])?;
    pod["spec"]["nodeName"].as_str().map(str::to_owned).context("the operator that leads is nowhere")
}

/// The agent that attaches a pod's volume is deleted while the pod writes.
pub fn agent_deleted(world: &mut World) -> Result<()> {
    let (ledger, node) = ledger::writer(world, "writer")?;
    // On a node that stores nothing it is a DaemonSet's pod, whose successor has another name.
    let (field, label) = (format!("spec.nodeName={node}"), "app.kubernetes.io/component in (agent,node)");
    let of = ["pods", "-n", NAMESPACE, "-l", label, "--field-selector", &field];
    let pods = world.kubectl().json([&["get"], &of[..]].concat())?;
    let [name, uid] = ["name", "uid"].map(|key| pods["items"][0]["metadata"][key].as_str().map(str::to_owned));
    let (name, uid) = (name.context("no agent there")?, uid.context("no agent there")?);
    ledger.until_further(20, GONE)?;
    world.kubectl().run(["delete", "pod", &name, "-n", NAMESPACE, "--wait=false"])?;
    world.kubectl().until(of, "another one is ready", GONE * 2, |pods| {
        let is_next = |pod: &Value| pod["metadata"]["uid"].as_str() != Some(&uid) && is_true(pod, "Ready");
        pods["items"].as_array().is_some_and(|pods| pods.iter().any(is_next))
    })?;
    world.say(&format!("{name} on {node} is replaced"));
    // The pod's own process has not noticed more than a pause.
    ledger.until_further(20, GONE)?;
    let told = ledger.end()?;
    ledger::check(world, "writer", told)?;
    world.delete_pod("writer")?;
    world.run_pod(&Pod::new("reader", "writer").on(&world.other_than(&node)?))?;
    ledger::check(world, "reader", told)?;
    world.delete_pod("reader")
}

/// All agents are brought to another revision while a pod writes.
pub fn rolling_update(world: &mut World) -> Result<()> {
    let (ledger, _) = ledger::writer(world, "writer")?;
    let of = ["toruscluster", NAME, "-n", NAMESPACE];
    let set = format!("{NAME}-agent");
    let set = ["sts", &set, "-n", NAMESPACE];
    let before = world.kubectl().json([&["get"], &set[..]].concat())?;
    let count = before["spec"]["replicas"].as_u64().context("agents without a number")?;
    let revision = |set: &Value| set["status"]["updateRevision"].clone();
    let patch = json!({"spec": {"agent": {"resources": {"requests": {"cpu": "110m"}}}}}).to_string();
    world.kubectl().run(["patch", of[0], of[1], of[2], of[3], "--type=merge", "-p", &patch])?;
    let is_changed = |set: &Value| revision(set) != revision(&before);
    let now = revision(&world.kubectl().until(set, "there is a new revision", GONE, is_changed)?);
    let selector = "app.kubernetes.io/component=agent";
    let pods = ["pods", "-n", NAMESPACE, "-l", selector];
    world.kubectl().until(pods, "all agents are of the new revision", GONE * 4, |pods| {
        let is_new =
            |pod: &&Value| pod["metadata"]["labels"]["controller-revision-hash"] == now && is_true(pod, "Ready");
        // The one that is being replaced may not be there at all.
        pods["items"].as_array().is_some_and(|pods| pods.iter().filter(is_new).count() as u64 == count)
    })?;
    world.cluster().until_pool_is_ready()?;
    ledger.until_further(20, GONE)?;
    let told = ledger.end()?;
    world.say(&format!("{told} was written last, with all agents of the new revision"));
    ledger::check(world, "writer", told)?;
    world.delete_pod("writer")
}
