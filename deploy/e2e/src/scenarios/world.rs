//! What scenarios act on, and the words in which they are written.

use super::Needs;
use crate::kube::kubectl::is_true;
use crate::kube::node::PAUSE_IMAGE;
use crate::kube::torus::{NAME, NAMESPACE};
use crate::kube::{Cluster, Kubectl};
use crate::process::until;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// How long a pod may take from being made to running, with its volume made, attached and mounted.
pub const POD: Duration = Duration::from_secs(120);
/// How long what is deleted may take to be gone.
pub const GONE: Duration = Duration::from_secs(120);
/// Stands after all that a script prints.
const END: &str = "-- end --";
/// How often a script is run whose end is lost.
const SH_TIMES: u32 = 5;

/// A cluster, and the namespace of the scenario that runs.
#[derive(Debug)]
pub struct World {
    cluster: Cluster,
    namespace: String,
}

/// A pod that waits, with a volume.
#[derive(Clone, Debug)]
pub struct Pod<'a> {
    /// Its name.
    pub name: &'a str,
    /// The claim whose volume it has: mounted at `/data`, or the device `/dev/volume`.
    pub claim: &'a str,
    /// Whether it has the device.
    pub block: bool,
    /// The node it must run on.
    pub node: Option<&'a str>,
}

impl<'a> Pod<'a> {
    /// One that has the volume of `claim` at `/data`.
    #[must_use]
    pub fn new(name: &'a str, claim: &'a str) -> Self {
        Self { name, claim, block: false, node: None }
    }

    /// The same on a certain node.
    #[must_use]
    pub fn on(self, node: &'a str) -> Self {
        Self { node: Some(node), ..self }
    }

    /// The same with the device `/dev/volume`.
    #[must_use]
    pub fn block(self) -> Self {
        Self { block: true, ..self }
    }
}

impl World {
    pub(super) fn new(cluster: Cluster) -> Self {
        Self { cluster, namespace: "default".into() }
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The cluster, to end and start nodes.
    pub fn cluster_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }

    /// `kubectl`.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        self.cluster.kubectl()
    }

    /// The namespace of this scenario.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Tells what is going on.
    pub fn say(&self, what: &str) {
        self.cluster.progress().say(&format!("  {what}"));
    }

    /// `kubectl` in the namespace of this scenario.
    ///
    /// # Errors
    /// When it fails.
    pub fn kubectl_here<'a>(&'a self, args: impl IntoIterator<Item = &'a str>) -> Result<String> {
        self.kubectl().run(["-n", &self.namespace].into_iter().chain(args))
    }

    /// Applies an object in the namespace of this scenario.
    ///
    /// # Errors
    /// When it is refused.
    pub fn apply(&self, object: &Value) -> Result<()> {
        self.kubectl().feed(["-n", &self.namespace, "apply", "-f", "-"], &object.to_string()).map(drop)
    }

    /// Makes a claim of the class of Torus. `spec`: what its spec has besides, such as a `volumeMode`.
    ///
    /// # Errors
    /// When it is refused.
    pub fn claim(&self, name: &str, size: &str, spec: &Value) -> Result<()> {
        let mut claim = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name},
            "spec": {
                "storageClassName": "torus",
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": size}},
            },
        });
        for (key, value) in spec.as_object().into_iter().flatten() {
            claim["spec"][key] = value.clone();
        }
        self.apply(&claim)
    }

    /// Makes a pod that waits.
    ///
    /// # Errors
    /// When it is refused.
    pub fn pod(&self, pod: &Pod<'_>) -> Result<()> {
        let mut spec = shell(&of_claim(pod.claim));
        if pod.block {
            let container = &mut spec["containers"][0];
            container["volumeMounts"] = json!([]);
            container["volumeDevices"] = json!([{"name": "data", "devicePath": "/dev/volume"}]);
        }
        if let Some(node) = pod.node {
            spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
        }
        self.apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod.name}, "spec": spec}))
    }

    /// Makes a pod and waits until it runs; the node it is on.
    ///
    /// # Errors
    /// When it does not run in time; its state is in the text.
    pub fn run_pod(&self, pod: &Pod<'_>) -> Result<String> {
        self.pod(pod)?;
        self.until_running(pod.name)
    }

    /// Waits until a pod is ready; the node it is on.
    ///
    /// # Errors
    /// As [`World::run_pod`].
    pub fn until_running(&self, pod: &str) -> Result<String> {
        let of = ["pod", pod, "-n", &self.namespace];
        let running = self.kubectl().until(of, "it is ready", POD, |pod| is_true(pod, "Ready"));
        let running = running.with_context(|| self.events_of(pod))?;
        Ok(running["spec"]["nodeName"].as_str().unwrap_or_default().to_owned())
    }

    /// The latest events of an object of this namespace, as a sentence for a failure.
    fn events_of(&self, name: &str) -> String {
        let field = format!("involvedObject.name={name}");
        let args = ["get", "events", "--field-selector", &field, "--sort-by=.lastTimestamp"];
        format!("events of {name}:\n{}", self.kubectl_here(args).unwrap_or_else(|error| error.to_string()))
    }

    /// Deletes a pod and waits until it is gone.
    ///
    /// # Errors
    /// When it does not go in time.
    pub fn delete_pod(&self, pod: &str) -> Result<()> {
        self.kubectl_here(["delete", "pod", pod, "--wait=false"])?;
        self.kubectl().until_gone(["pod", pod, "-n", &self.namespace], GONE)
    }

    /// What a shell script prints in a pod. It may be run more than once, and must bear that.
    ///
    /// # Errors
    /// When it fails.
    pub fn sh(&self, pod: &str, script: &str) -> Result<String> {
        // The end of what is printed may be lost on the way, with nothing said of it (kubernetes#124571): the mark is what came last.
        let marked = format!("sh -ec \"$1\"; echo '{END}'");
        for _ in 0..SH_TIMES {
            let said = self.kubectl_here(["exec", pod, "--", "sh", "-ec", &marked, "sh", script])?;
            if let Some(whole) = said.strip_suffix(&format!("{END}\n")) {
                return Ok(whole.to_owned());
            }
            self.say(&format!("the end of what {pod} printed was lost: once more"));
        }
        bail!("the end of what {pod} printed was lost {SH_TIMES} times: {script}")
    }

    /// Fills a new file in a pod with `mib` of random bytes, synced; its digest.
    ///
    /// # Errors
    /// When it fails.
    pub fn write_file(&self, pod: &str, path: &str, mib: u32) -> Result<String> {
        let script = format!("dd if=/dev/urandom of={path} bs=1M count={mib} 2>/dev/null; sync; sha256sum <{path}");
        digest(&self.sh(pod, &script)?)
    }

    /// The digest of a file in a pod.
    ///
    /// # Errors
    /// When it fails.
    pub fn digest_of(&self, pod: &str, path: &str) -> Result<String> {
        digest(&self.sh(pod, &format!("sha256sum <{path}"))?)
    }

    /// What `torusctl` prints, in the first agent's pod.
    ///
    /// # Errors
    /// When it fails.
    pub fn torusctl<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<String> {
        let pod = format!("{NAME}-agent-0");
        // Where etcd is, as the agent's own settings have it.
        let script = r#"torusctl --etcd "$(sed -n 's/^etcd: //p' /etc/torus/agent.yaml | tr -d '"')" "$@""#;
        let args: Vec<_> = args.into_iter().map(str::to_owned).collect();
        let all = ["-n", NAMESPACE, "exec", &pod, "-c", "agent", "--", "sh", "-c", script, "torusctl"];
        self.kubectl().run(all.into_iter().chain(args.iter().map(String::as_str)))
    }

    /// The nodes' names.
    #[must_use]
    pub fn node_names(&self) -> Vec<String> {
        self.cluster.nodes().iter().map(|node| node.name().to_owned()).collect()
    }

    /// A node that is not `node`.
    ///
    /// # Errors
    /// When there is only one.
    pub fn other_than(&self, node: &str) -> Result<String> {
        self.node_names().into_iter().find(|other| other != node).context("there is only one node")
    }

    pub(super) fn begin_scenario(&mut self, name: &str) -> Result<()> {
        self.namespace = format!("e2e-{name}");
        self.kubectl().run(["create", "namespace", &self.namespace]).map(drop)
    }

    /// Deletes the scenario's namespace: nothing in it may hold that up.
    pub(super) fn end_scenario(&mut self) -> Result<()> {
        self.kubectl().run(["delete", "namespace", &self.namespace, "--wait=false", "--ignore-not-found"])?;
        let gone = self.kubectl().until_gone(["namespace", &self.namespace], GONE * 2);
        gone.context("the scenario's namespace does not go")?;
        let left = until("its PersistentVolumes are gone", GONE, || {
            std::thread::sleep(Duration::from_millis(300));
            let volumes = self.kubectl().json(["get", "pv"])?;
            let is_of_it = |volume: &Value| volume["spec"]["claimRef"]["namespace"] == self.namespace.as_str();
            Ok(!volumes["items"].as_array().is_some_and(|all| all.iter().any(is_of_it)))
        });
        left.with_context(|| self.kubectl().run(["get", "pv,volumeattachment"]).unwrap_or_default())
    }

    /// The same as far as it goes.
    pub(super) fn end_scenario_after_failure(&mut self) {
        if let Err(error) = self.end_scenario() {
            self.say(&format!("{error:#}"));
        }
    }

    /// Waits until all nodes are ready.
    pub(super) fn until_nodes_are_ready(&self) -> Result<()> {
        self.node_names().iter().try_for_each(|node| {
            self.kubectl().until(["node", node], "it is ready", POD, |node| is_true(node, "Ready")).map(drop)
        })
    }

    /// Makes what is not there of what a scenario needs.
    pub(super) fn prepare(&self, needs: Needs) -> Result<()> {
        if needs == Needs::Nodes {
            return Ok(());
        }
        if self.kubectl().find(["deployment", "torus-operator", "-n", NAMESPACE])?.is_none() {
            self.cluster.install_chart(&[])?;
        }
        if needs == Needs::Chart {
            return Ok(());
        }
        match self.kubectl().find(["toruscluster", NAME, "-n", NAMESPACE])? {
            Some(_) => self.cluster.until_pool_is_ready().map(drop),
            None => self.cluster.make_pool(&self.cluster.usual_pool()),
        }
    }

    /// Deletes the TorusCluster, if there is one, waits until its pods are gone, and has the nodes forget its data.
    pub(super) fn remove_pool(&self) -> Result<()> {
        let pool = ["toruscluster", NAME, "-n", NAMESPACE];
        self.kubectl().run(["delete", pool[0], pool[1], pool[2], pool[3], "--wait=false", "--ignore-not-found"])?;
        self.kubectl().until_gone(pool, GONE)?;
        let ours = "app.kubernetes.io/managed-by=torus-operator";
        self.kubectl().until_gone(["pods", "-n", NAMESPACE, "-l", ours], GONE)?;
        self.forget_pool()
    }

    /// Removes the disks of a pool that is gone: a later one would not take those of another.
    pub(super) fn forget_pool(&self) -> Result<()> {
        self.cluster
            .nodes()
            .iter()
            .try_for_each(|node| node.said("rm", ["-rf", "/var/lib/torus/data", "/var/lib/torus/etcd"]).map(drop))
    }

    pub(super) fn leave(self) -> Result<PathBuf> {
        let kubeconfig = self.kubectl().kubeconfig().to_path_buf();
        self.cluster.leave()?;
        Ok(kubeconfig)
    }
}

/// The digest that `sha256sum` prints.
fn digest(said: &str) -> Result<String> {
    let digest = said.split_ascii_whitespace().next().unwrap_or_default();
    ensure!(digest.len() == 64, "sha256sum printed {said:?}");
    Ok(digest.to_owned())
}

/// A claim as the source of a pod's volume.
#[must_use]
pub fn of_claim(claim: &str) -> Value {
    json!({"persistentVolumeClaim": {"claimName": claim}})
}

/// The spec of a pod whose one container waits, with a volume of this source on /data.
#[must_use]
pub fn shell(source: &Value) -> Value {
    let mut volume = source.clone();
    volume["name"] = "data".into();
    json!({
        "automountServiceAccountToken": false,
        "dnsPolicy": "Default",
        "terminationGracePeriodSeconds": 5,
        "containers": [{
            "name": "shell",
            "image": PAUSE_IMAGE,
            "imagePullPolicy": "Never",
            "command": ["/bin/sh", "-c", "trap exit TERM INT; sleep 1000000000 & wait"],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        }],
        "volumes": [volume],
    })
}
