//! A Kubernetes, the chart's rights in it, an operator that runs with them, an etcd and agents.

use crate::client::Client;
use crate::kubelets::Kubelets;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::thread::sleep;
use std::time::{Duration, Instant};
use torus_e2e::etcd::Etcd;
use torus_e2e::kube::{ControlPlane, Kubectl, Progress, go};
use torus_e2e::process::Process;
use torus_e2e::scratch::Scratch;
use torus_e2e::{binaries, ports};

/// Where the operator and its TorusCluster are.
pub const NAMESPACE: &str = "torus-system";
/// What is waited for takes a second or two; a loaded machine takes longer.
pub const SOON: Duration = Duration::from_secs(90);
/// The TorusCluster `main`: kind, namespace and name.
pub const MAIN: [&str; 3] = ["torusclusters", NAMESPACE, "main"];
/// The user that the operator is.
const OPERATOR: &str = "system:serviceaccount:torus-system:torus-operator";

/// How often is looked at what cannot be watched.
const POLL: Duration = Duration::from_millis(100);

/// Torus's programs, built once.
pub static PROGRAMS: LazyLock<Programs> = LazyLock::new(|| {
    let programs = ["torus-operator", "torus-agent", "torusctl", "kubectl-torus"];
    let [operator, agent, torusctl, kubectl_torus] = binaries::build("dev", programs).unwrap();
    Programs { operator, agent, torusctl, kubectl_torus }
});

pub struct Programs {
    pub operator: PathBuf,
    pub agent: PathBuf,
    pub torusctl: PathBuf,
    pub kubectl_torus: PathBuf,
}

/// Everything, less the operator's process. Each test has one of its own, as there is one Torus in a Kubernetes.
pub struct World {
    pub operator: Option<Process>,
    pub agents: Vec<Process>,
    pub etcd: Option<Etcd>,
    /// Asks the apiserver, as the administrator.
    pub client: Client,
    kubelets: Option<Kubelets>,
    pub plane: ControlPlane,
    pub scratch: Scratch,
    pub http: u16,
}

/// The root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Calls helm; what it printed, and whether it succeeded.
pub fn helm(kubectl: Option<&Kubectl>, args: &[&str]) -> (bool, String) {
    let program = go::HELM.program("helm", &Progress::default()).unwrap();
    let mut command = Command::new(program);
    command.args(args).current_dir(root());
    if kubectl.is_none() && args[0] == "template" {
        // It asks nobody, and would take an old one for granted.
        command.args(["--kube-version", "1.34.4"]);
    }
    command.env_remove("KUBECONFIG");
    if let Some(kubectl) = kubectl {
        command.env("KUBECONFIG", kubectl.kubeconfig());
    }
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    (output.status.success(), said.concat())
}

impl World {
    /// A Kubernetes alone.
    pub fn bare() -> World {
        let plane = ControlPlane::start().unwrap();
        let client = Client::of(plane.kubectl().kubeconfig());
        let scratch = Scratch::new("operator-test").unwrap();
        let http = ports::free().unwrap();
        World { operator: None, agents: Vec::new(), etcd: None, client, kubelets: None, plane, scratch, http }
    }

    /// With the chart installed, less the operator's own pod.
    pub fn installed() -> World {
        let world = World::bare();
        let args =
            ["install", "torus", "charts/torus", "-n", NAMESPACE, "--create-namespace", "--set", "etcdSecrets={etcd}"];
        let (done, said) = helm(Some(world.kubectl()), &args);
        assert!(done, "{said}");
        assert!(!said.to_lowercase().contains("warn"), "{said}");
        world.client.delete("deployments", NAMESPACE, "torus-operator");
        world.until_kinds_are_served();
        world
    }

    /// Waits until the apiserver answers for TorusClusters and TorusVolumes. Their definitions come with the chart's other objects, and helm
    /// does not wait for what is made of them; the apiserver itself serves them a little later than it calls them established.
    #[track_caller]
    pub fn until_kinds_are_served(&self) {
        let begun = Instant::now();
        while let Err(error) = self.kubectl().run(["get", "torusclusters,torusvolumes", "-A"]) {
            assert!(begun.elapsed() < SOON, "not served within {SOON:?}: {error:#}");
            sleep(POLL);
        }
    }

    pub fn kubectl(&self) -> &Kubectl {
        self.plane.kubectl()
    }

    /// Starts the operator with the rights of its service account.
    pub fn start_operator(&mut self) {
        let mut command = Command::new(&PROGRAMS.operator);
        command.env("KUBECONFIG", self.account("torus-operator")).env("TORUS_LOG", "info");
        command.args(["--namespace", NAMESPACE, "--image", "torus:test", "--identity", "under-test"]);
        command.arg("--http-address").arg(format!("127.0.0.1:{}", self.http));
        command.arg("--directory").arg(self.scratch.path());
        self.operator = Some(Process::start("operator", command, self.scratch.path()).unwrap());
    }

    /// Kills the operator, as a machine that loses its power does.
    pub fn kill_operator(&mut self) {
        if let Some(mut operator) = self.operator.take() {
            operator.kill().unwrap();
        }
    }

    /// A kubeconfig with the token of a service account, which is good for hours.
    pub fn account(&self, name: &str) -> PathBuf {
        let path = self.scratch.path().join(format!("{name}.kubeconfig"));
        if path.exists() {
            return path;
        }
        let token = self.kubectl().run(["create", "token", name, "-n", NAMESPACE, "--duration=8h"]).unwrap();
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {
                "server": self.plane.url(), "certificate-authority": self.plane.pki().file("ca.crt"),
            }}],
            "users": [{"name": "u", "user": {"token": token.trim()}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        });
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// Starts an etcd for Torus.
    pub fn start_etcd(&mut self) -> String {
        let etcd = self.etcd.insert(Etcd::start().unwrap());
        etcd.url()
    }

    /// Makes nodes `n0`, `n1`, … that are ready.
    pub fn nodes(&self, count: usize) {
        for number in 0..count {
            let name = format!("n{number}");
            let labels = json!({
                "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("z{number}"), "disk": "ssd", "x": "",
            });
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
            self.client.create("nodes", &node);
            self.node_is_ready(&name, "True");
            let amounts = json!({"cpu": "64", "memory": "256Gi", "pods": "200"});
            self.client.patch_status("nodes", "", &name, &json!({"capacity": amounts, "allocatable": amounts}));
            // Without its controller, nobody takes it away.
            self.client.patch("nodes", "", &name, &json!({"spec": {"taints": null}}));
        }
    }

    /// From now on pods are looked after.
    pub fn start_kubelets(&mut self) {
        self.kubelets = Some(Kubelets::start(&self.client));
    }

    /// What its kubelet, or the controller that misses it, says of a node.
    pub fn node_is_ready(&self, name: &str, status: &str) {
        let at = "2026-01-01T00:00:00Z";
        let ready = json!({
            "type": "Ready", "status": status, "reason": "Test", "message": "as the test says",
            "lastHeartbeatTime": at, "lastTransitionTime": at,
        });
        self.client.patch_status("nodes", "", name, &json!({"conditions": [ready]}));
    }

    /// Starts agents called `n0`, `n1`, …, as those in the pods of a cluster on host paths are. They wait for the cluster to be made.
    pub fn start_agents(&mut self, count: usize) {
        let url = self.etcd.as_ref().unwrap().url();
        for number in 0..count {
            let name = format!("n{number}");
            let mut command = Command::new(&PROGRAMS.agent);
            command.args(["--etcd", &url, "--name", &name, "--domain", &format!("z{number}/{name}"), "--auto-join"]);
            command.arg("--data-dir").arg(self.scratch.path().join(&name));
            command.args(["--size", "1GiB", "--fill", "reserve", "--host", "127.0.0.1"]);
            for (flag, prefix) in
                [("--port", ""), ("--control-address", "127.0.0.1:"), ("--http-address", "127.0.0.1:")]
            {
                command.arg(flag).arg(format!("{prefix}{}", ports::free().unwrap()));
            }
            self.agents.push(Process::start(&name, command, self.scratch.path()).unwrap());
        }
    }

    /// Waits until something holds for an object, which is null while it is not there.
    #[track_caller]
    pub fn until(&self, [kind, namespace, name]: [&str; 3], what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        self.client.until(kind, namespace, name, SOON, holds).unwrap_or_else(|last| {
            panic!("{kind} {name}, not within {SOON:?}: {what}; {:#}\n{}", brief(&last), self.log())
        })
    }

    /// Waits until something holds for the TorusCluster `main`.
    #[track_caller]
    pub fn until_cluster(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        self.until(MAIN, what, holds)
    }

    /// Waits until something holds that is not to be seen at one object alone.
    #[track_caller]
    pub fn until_all(&self, what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(
                begun.elapsed() < limit,
                "not within {limit:?}: {what}; {:#}\n{}",
                brief(&self.cluster()),
                self.log()
            );
            sleep(POLL);
        }
    }

    /// Deletes an object, and waits until it is gone.
    #[track_caller]
    pub fn delete(&self, object: [&str; 3]) {
        let [kind, namespace, name] = object;
        self.client.delete(kind, namespace, name);
        self.until(object, "it is gone", Value::is_null);
    }

    /// The TorusCluster `main`, or null.
    pub fn cluster(&self) -> Value {
        let [kind, namespace, name] = MAIN;
        self.client.find(kind, namespace, name).unwrap_or_default()
    }

    /// All TorusVolumes.
    pub fn volumes(&self) -> Vec<Value> {
        self.client.list("torusvolumes", "", "")
    }

    /// What the operator said last.
    pub fn log(&self) -> String {
        self.operator.as_ref().map(Process::log_tail).unwrap_or_default()
    }

    /// A TorusCluster on the etcd that was started.
    pub fn spec(&self) -> Value {
        let url = self.etcd.as_ref().unwrap().url();
        json!({
            "storage": {"count": 3, "hostPath": {"size": "1Gi"}},
            "etcd": {"external": {"endpoints": [url]}},
        })
    }

    pub fn apply_cluster(&self, spec: &Value) -> anyhow::Result<String> {
        self.kubectl().apply(&cluster(spec).to_string())
    }

    pub fn apply_volume(&self, name: &str, spec: &Value) -> anyhow::Result<String> {
        self.kubectl().apply(&volume(name, spec).to_string())
    }

    /// A whole cluster that is ready: operator, etcd, three agents, three nodes.
    pub fn ready() -> World {
        let mut world = World::installed();
        world.make_ready(3);
        world
    }

    /// Operator, etcd, three agents, and so many nodes.
    pub fn make_ready(&mut self, nodes: usize) {
        self.nodes(nodes);
        self.make_ready_on_nodes();
    }

    /// The same on nodes that are there.
    pub fn make_ready_on_nodes(&mut self) {
        self.make_pool();
        self.make_agents();
    }

    /// Operator, etcd, and a cluster that waits for its agents.
    pub fn make_pool(&mut self) {
        self.start_kubelets();
        self.start_etcd();
        self.start_operator();
        self.apply_cluster(&self.spec()).unwrap();
        self.until_cluster("it is made in etcd", |cluster| cluster["status"]["clusterId"].is_string());
    }

    /// Its three agents, with which it is ready.
    pub fn make_agents(&mut self) {
        self.start_agents(3);
        self.until_cluster("it is ready", |cluster| {
            condition(cluster, "Ready").0 == "True"
                && cluster["status"]["agents"].as_array().is_some_and(|agents| agents.len() == 3)
        });
    }

    /// Writes of the operator since a moment, from the apiserver's audit log: verb, resource and name. Its lease is left out: it says
    /// that it lives.
    pub fn writes(&self, since: &str) -> BTreeMap<String, usize> {
        let mut found = BTreeMap::new();
        for line in fs::read_to_string(self.plane.audit()).unwrap().lines() {
            let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
            let time = event["stageTimestamp"].as_str().unwrap_or_default();
            let object = &event["objectRef"];
            if event["user"]["username"] != OPERATOR || time < since || object["resource"] == "leases" {
                continue;
            }
            let word = |name: &str| object[name].as_str().unwrap_or_default().to_owned();
            let what = format!(
                "{} {} {}/{} {}",
                event["verb"].as_str().unwrap_or_default(),
                word("resource"),
                word("namespace"),
                word("name"),
                word("subresource")
            );
            *found.entry(what).or_default() += 1;
        }
        found
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the operator said last:\n{}", self.log());
        }
        // Before what they speak to.
        self.kubelets = None;
        self.operator = None;
        self.agents.clear();
        self.etcd = None;
    }
}

/// Now, as the audit log has it.
pub fn now() -> String {
    let output = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%6NZ"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub fn cluster(spec: &Value) -> Value {
    json!({
        "apiVersion": "torus.storage/v1alpha1", "kind": "TorusCluster",
        "metadata": {"name": "main", "namespace": NAMESPACE}, "spec": spec,
    })
}

pub fn volume(name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "torus.storage/v1alpha1", "kind": "TorusVolume",
        "metadata": {"name": name, "namespace": "default"}, "spec": spec,
    })
}

/// What matters of an object that was waited for in vain.
fn brief(object: &Value) -> Value {
    json!({"generation": object["metadata"]["generation"], "finalizers": object["metadata"]["finalizers"], "status": object["status"]})
}

/// Status, reason and message of a condition; empty where there is none.
pub fn condition(object: &Value, kind: &str) -> (String, String, String) {
    let found = torus_e2e::kube::kubectl::condition(object, kind);
    let word = |name: &str| found.and_then(|found| found[name].as_str()).unwrap_or_default().to_owned();
    (word("status"), word("reason"), word("message"))
}

/// An object with something else at a path such as `/spec/size`; null takes it away.
pub fn with(object: &Value, path: &str, value: Value) -> Value {
    let mut changed = object.clone();
    let (parent, field) = path.rsplit_once('/').unwrap();
    let mut place = &mut changed;
    for part in parent.split('/').skip(1) {
        place = place.as_object_mut().unwrap().entry(part).or_insert_with(|| json!({}));
    }
    let place = place.as_object_mut().unwrap();
    if value.is_null() {
        place.remove(field);
    } else {
        place.insert(field.into(), value);
    }
    changed
}
