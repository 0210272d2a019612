//! A pool from its beginning to its end, and the operator that is killed all the time meanwhile.

use super::World;
use super::world::GONE;
use crate::kube::kubectl::{condition, is_true};
use crate::kube::node::Node;
use crate::kube::objects::{list, made};
use crate::kube::torus::{NAME, NAMESPACE, READY};
use crate::pauses::Pauses;
use crate::process::until;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Kills that must have happened at least: fewer would show nothing.
const KILLS_MIN: u32 = 8;
/// How long a kubelet may take to start an operator again that was killed.
const BACK: Duration = Duration::from_secs(60);

/// A pool is made, grows and is deleted, with nothing in its way and with an operator that is killed every few seconds: what there is
/// after each step is the same.
pub fn operator_killed(world: &mut World) -> Result<()> {
    world.remove_pool()?;
    let world = &*world;
    let undisturbed = whole_life(world)?;
    world.say("and now with an operator that is killed");
    let (killed, kills) = while_killed(world, Pauses::new(7, 2000, 5000), || whole_life(world))?;
    world.say(&format!("its operators were killed {kills} times"));
    ensure!(kills >= KILLS_MIN, "they were killed {kills} times only");
    for (step, (undisturbed, killed)) in ["installed", "grown", "deleted"].iter().zip(undisturbed.iter().zip(&killed)) {
        ensure!(undisturbed == killed, "{step}: {}", differences(undisturbed, killed));
    }
    Ok(())
}

/// What there is when a pool with two volumes is ready, when it has one more agent, and when it is deleted.
fn whole_life(world: &World) -> Result<[Value; 3]> {
    let kubectl = world.kubectl();
    let pool = ["toruscluster", NAME, "-n", NAMESPACE];
    let look_when_whole = |agents: &str| {
        kubectl.until(pool, &format!("{agents} agents are ready"), READY, |pool| {
            pool["status"]["agentsSummary"] == agents
                && pool["status"]["observedGeneration"] == pool["metadata"]["generation"]
                && ["Ready", "Healthy"].iter().all(|kind| is_true(pool, kind))
                && !is_true(pool, "Updating")
        })?;
        for volume in ["a", "b"] {
            let of = ["torusvolume", volume, "-n", world.namespace()];
            kubectl.until(of, "it is ready", GONE, |volume| is_true(volume, "Ready"))?;
        }
        let is_on_all = |sets: &Value| {
            sets["items"]
                .as_array()
                .is_some_and(|sets| sets.iter().all(|set| set["status"]["numberUnavailable"].is_null()))
        };
        kubectl.until(["ds", "-n", NAMESPACE], "they are on all their nodes", GONE, is_on_all)?;
        made(kubectl, &kubectl.json([&["get"], &pool[..]].concat())?)
    };
    // An agent may be missed for a moment between the two looks. The budget, and nothing else that is made, is another then, and says
    // so itself: whoever changed it may have been killed before it wrote the status.
    let budget = format!("PodDisruptionBudget {NAMESPACE}/{NAME}-agent");
    let until_whole = |agents: &str| {
        let begun = Instant::now();
        loop {
            let made = look_when_whole(agents)?;
            if made[&budget]["spec"]["maxUnavailable"] == 1 {
                return Ok::<_, anyhow::Error>(made);
            }
            ensure!(begun.elapsed() < READY, "the pool is whole, and its budget is {}", made[&budget]);
        }
    };
    kubectl.apply(&world.cluster().usual_pool().to_string())?;
    for name in ["a", "b"] {
        world.apply(&json!({
            "apiVersion": "torus.storage/v1alpha1", "kind": "TorusVolume", "metadata": {"name": name},
            "spec": {"size": "64Mi", "claim": {"name": name}},
        }))?;
    }
    let installed = until_whole("3/3")?;
    world.say("it is installed");
    let grow = json!({"spec": {"storage": {"count": 4}}}).to_string();
    kubectl.run(["patch", pool[0], pool[1], pool[2], pool[3], "--type=merge", "-p", &grow])?;
    let grown = until_whole("4/4")?;
    world.say("it has grown");
    world.kubectl_here(["delete", "torusvolumes", "--all", "--wait=false"])?;
    kubectl.until_gone(["torusvolumes", "-n", world.namespace()], GONE)?;
    world.remove_pool()?;
    // What the pool owned, Kubernetes deletes in its own time.
    let mut left = Ok(Vec::new());
    let gone = until("nothing of the pool is left", GONE, || {
        thread::sleep(Duration::from_millis(200));
        left = list(kubectl);
        Ok(left.as_ref().is_ok_and(Vec::is_empty))
    });
    gone.with_context(|| format!("there still are {left:?}"))?;
    world.say("it is gone");
    Ok([installed, grown, made(kubectl, &Value::Null)?])
}

/// Does something while the operators on all nodes are killed (-9) now and then; what it came to, and how many were killed.
fn while_killed<T>(world: &World, pauses: Pauses, what: impl FnOnce() -> Result<T>) -> Result<(T, u32)> {
    let (stop, kills) = (AtomicBool::new(false), AtomicU32::new(0));
    let nodes = world.cluster().nodes();
    let (done, killer) = thread::scope(|scope| {
        let killer = scope.spawn(|| kill_operators(nodes, pauses, &stop, &kills));
        let done = what();
        stop.store(true, Ordering::Relaxed);
        (done, killer.join().expect("killing does not panic"))
    });
    killer?;
    Ok((done?, kills.into_inner()))
}

fn kill_operators(nodes: &[Node], mut pauses: Pauses, stop: &AtomicBool, kills: &AtomicU32) -> Result<()> {
    // Those of the node: it has process ids of its own. One that is not there now is started again already.
    let script = "for pid in $(pidof torus-operator); do kill -9 $pid && echo $pid; done; true";
    let is_over = || stop.load(Ordering::Relaxed);
    while !is_over() {
        let killed: Vec<_> = nodes.iter().map(|node| node.said("sh", ["-c", script])).collect::<Result<_>>()?;
        // How long kubelets take to start others is no part of their lives.
        for (node, killed) in nodes.iter().zip(&killed).filter(|(_, killed)| !killed.is_empty()) {
            kills.fetch_add(u32::try_from(killed.lines().count()).unwrap_or(0), Ordering::Relaxed);
            until(&format!("an operator runs on {} again", node.name()), BACK, || {
                thread::sleep(Duration::from_millis(100));
                let running = node.said("sh", ["-c", "pidof torus-operator; true"])?;
                Ok(is_over() || running.split_whitespace().any(|pid| killed.lines().all(|killed| killed != pid)))
            })?;
        }
        if !is_over() {
            thread::sleep(pauses.draw());
        }
    }
    Ok(())
}

/// What differs between two sets of objects, as a sentence.
fn differences(one: &Value, other: &Value) -> String {
    let none = serde_json::Map::new();
    let (one, other) = (one.as_object().unwrap_or(&none), other.as_object().unwrap_or(&none));
    let keys: std::collections::BTreeSet<_> = one.keys().chain(other.keys()).collect();
    let differ = keys.into_iter().filter(|key| one.get(*key) != other.get(*key));
    differ.map(|key| format!("{key} is {:?} and {:?}", one.get(key), other.get(key))).collect::<Vec<_>>().join("\n")
}

/// A pool whose etcd is outside of the cluster, over TLS with certificates of both sides.
pub fn etcd_external(world: &mut World) -> Result<()> {
    use crate::etcd::{Etcd, Options, Tls};
    world.remove_pool()?;
    let host = world.cluster().control().address();
    let pki = world.cluster().control().pki();
    let (server, client) = (pki.sign("torus-etcd", None, &[host.to_string()])?, pki.sign("torus", None, &[])?);
    let tls = Tls { cert: server.cert, key: server.key, client_ca: Some(pki.file("ca.crt")) };
    let etcd = Etcd::start_with(Options { host: Some(host), tls: Some(tls), ..Options::default() })?;
    let file = |name: &str, path: &std::path::Path| format!("--from-file={name}={}", path.display());
    let parts = [file("ca.crt", &pki.file("ca.crt")), file("tls.crt", &client.cert), file("tls.key", &client.key)];
    world.kubectl().run(
        ["create", "secret", "generic", "e2e-etcd", "-n", NAMESPACE]
            .into_iter()
            .chain(parts.iter().map(String::as_str)),
    )?;
    // What the operator says of a secret that it may not read, before it is named to the chart.
    let mut pool = world.cluster().usual_pool();
    pool["spec"]["etcd"] = json!({"external": {"endpoints": [etcd.url()], "secret": {"name": "e2e-etcd"}}});
    world.kubectl().apply(&pool.to_string())?;
    let of = ["toruscluster", NAME, "-n", NAMESPACE];
    world.kubectl().until(of, "it is refused: SecretForbidden", GONE, |pool| {
        condition(pool, "Accepted")
            .is_some_and(|accepted| accepted["status"] == "False" && accepted["reason"] == "SecretForbidden")
    })?;
    world.cluster().install_chart(&["etcdSecrets={e2e-etcd}"])?;
    world.cluster().until_pool_is_ready()?;
    let sets = world.kubectl().run(["get", "sts", "-n", NAMESPACE, "-o", "name"])?;
    ensure!(sets.lines().count() == 1, "beside the agents there are {sets}");
    super::moves::volume_with_claim(world)?;
    world.kubectl_here(["delete", "torusvolumes", "--all", "--wait=false"])?;
    world.kubectl().until_gone(["torusvolumes", "-n", world.namespace()], GONE)?;
    world.remove_pool()?;
    world.kubectl().run(["delete", "secret", "e2e-etcd", "-n", NAMESPACE])?;
    drop(etcd);
    Ok(())
}
