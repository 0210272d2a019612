//! The apiserver, asked from this process: where tests wait they ask often, and a `kubectl` for each question would cost more than
//! what is waited for. What a person types stays `kubectl`'s business ([`torus_e2e::kube::Kubectl`]).
//!
//! Kinds are named as kubectl names them, in the plural (`torusclusters`). Objects are JSON, as everywhere in these tests.

use futures::StreamExt;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::watch_object;
use kube::{Config, Error};
use serde_json::{Value, json};
use std::path::Path;
use std::pin::pin;
use std::sync::LazyLock;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep, timeout_at};

/// What all clients run on.
static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());
/// How long is waited after the apiserver did not answer.
pub const PAUSE: Duration = Duration::from_millis(200);

/// A client with the rights of one kubeconfig.
#[derive(Clone)]
pub struct Client(kube::Client);

impl Client {
    /// One that speaks to whom a kubeconfig names.
    pub fn of(kubeconfig: &Path) -> Client {
        wait(async {
            let read = Kubeconfig::read_from(kubeconfig).unwrap();
            let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.unwrap();
            Client(kube::Client::try_from(config).unwrap())
        })
    }

    /// Begins something that goes on beside the test.
    pub fn begin<F: Future<Output = ()> + Send + 'static>(
        &self,
        task: impl FnOnce(kube::Client) -> F,
    ) -> tokio::task::JoinHandle<()> {
        RUNTIME.spawn(task(self.0.clone()))
    }

    /// An object, if it is there. `namespace` is empty for what has none.
    pub fn find(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let found =
            wait(self.api(kind, namespace).get_opt(name)).unwrap_or_else(|error| panic!("{kind} {name}: {error}"));
        found.map(|object| of_kind(kind, &object))
    }

    /// All objects of a kind that have some labels, in one namespace or, if that is empty, in all.
    pub fn list(&self, kind: &str, namespace: &str, labels: &str) -> Vec<Value> {
        let params = ListParams::default().labels(labels);
        let found = wait(self.api(kind, namespace).list(&params)).unwrap_or_else(|error| panic!("{kind}: {error}"));
        found.items.iter().map(|object| of_kind(kind, object)).collect()
    }

    /// Makes an object of a kind.
    pub fn create(&self, kind: &str, object: &Value) {
        let data: DynamicObject = serde_json::from_value(object.clone()).unwrap();
        let namespace = data.metadata.namespace.clone().unwrap_or_default();
        wait(self.api(kind, &namespace).create(&PostParams::default(), &data))
            .unwrap_or_else(|error| panic!("{kind} {}: {error}", object["metadata"]["name"]));
    }

    /// Applies an object of a kind as the one who says all of it: what it leaves out goes.
    ///
    /// # Errors
    /// The apiserver's refusal.
    pub fn apply(&self, kind: &str, object: &Value) -> Result<(), Error> {
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (word(&object["metadata"]["namespace"]), word(&object["metadata"]["name"]));
        let params = PatchParams::apply("test").force();
        wait(self.api(kind, &namespace).patch(&name, &params, &Patch::Apply(object))).map(drop)
    }

    /// Changes an object by a merge patch.
    pub fn patch(&self, kind: &str, namespace: &str, name: &str, patch: &Value) {
        wait(self.api(kind, namespace).patch(name, &PatchParams::default(), &Patch::Merge(patch)))
            .unwrap_or_else(|error| panic!("{kind} {name}: {error}"));
    }

    /// Changes the status of an object by a merge patch.
    pub fn patch_status(&self, kind: &str, namespace: &str, name: &str, status: &Value) {
        let patch = json!({"status": status});
        wait(self.api(kind, namespace).patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)))
            .unwrap_or_else(|error| panic!("{kind} {name}: {error}"));
    }

    /// Asks for an object's deletion; it may be gone already, or stay for a while.
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) {
        match wait(self.api(kind, namespace).delete(name, &DeleteParams::default())) {
            Err(error) if !is_over(&error) => panic!("{kind} {name}: {error}"),
            _ => {}
        }
    }

    /// Watches an object until `holds`; it is null while it is not there.
    ///
    /// # Errors
    /// The object as it was last, when that takes longer than `limit`.
    pub fn until(
        &self,
        kind: &str,
        namespace: &str,
        name: &str,
        limit: Duration,
        holds: impl Fn(&Value) -> bool,
    ) -> Result<Value, Value> {
        let api = self.api(kind, namespace);
        wait(async {
            let deadline = Instant::now() + limit;
            let mut watched = pin!(watch_object(api, name));
            let mut last = Value::Null;
            loop {
                match timeout_at(deadline, watched.next()).await {
                    Ok(Some(Ok(object))) => {
                        last = object.map_or(Value::Null, |object| of_kind(kind, &object));
                        if holds(&last) {
                            return Ok(last);
                        }
                    }
                    Ok(Some(Err(_))) => sleep(PAUSE).await,
                    Ok(None) | Err(_) => return Err(last),
                }
            }
        })
    }

    fn api(&self, kind: &str, namespace: &str) -> Api<DynamicObject> {
        let resource = resource(kind);
        if namespace.is_empty() {
            Api::all_with(self.0.clone(), &resource)
        } else {
            Api::namespaced_with(self.0.clone(), namespace, &resource)
        }
    }
}

/// Waits for a call.
fn wait<F: Future>(call: F) -> F::Output {
    RUNTIME.block_on(call)
}

/// Whether what a call was about is not there any more, or is another by now.
pub fn is_over(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 404 || status.code == 409)
}

/// An object as kubectl shows it: what was listed does not say what it is.
fn of_kind(kind: &str, object: &DynamicObject) -> Value {
    let mut value = serde_json::to_value(object).unwrap();
    let resource = resource(kind);
    value["apiVersion"] = json!(resource.api_version);
    value["kind"] = json!(resource.kind);
    value
}

fn resource(plural: &str) -> ApiResource {
    let (group, version, kind) = match plural {
        "torusclusters" => ("torus.storage", "v1alpha1", "TorusCluster"),
        "torusvolumes" => ("torus.storage", "v1alpha1", "TorusVolume"),
        "configmaps" => ("", "v1", "ConfigMap"),
        "services" => ("", "v1", "Service"),
        "nodes" => ("", "v1", "Node"),
        "pods" => ("", "v1", "Pod"),
        "persistentvolumes" => ("", "v1", "PersistentVolume"),
        "persistentvolumeclaims" => ("", "v1", "PersistentVolumeClaim"),
        "events" => ("events.k8s.io", "v1", "Event"),
        "statefulsets" => ("apps", "v1", "StatefulSet"),
        "daemonsets" => ("apps", "v1", "DaemonSet"),
        "deployments" => ("apps", "v1", "Deployment"),
        "poddisruptionbudgets" => ("policy", "v1", "PodDisruptionBudget"),
        "csidrivers" => ("storage.k8s.io", "v1", "CSIDriver"),
        "storageclasses" => ("storage.k8s.io", "v1", "StorageClass"),
        other => panic!("{other} are unknown here"),
    };
    ApiResource {
        group: group.into(),
        version: version.into(),
        api_version: if group.is_empty() { version.into() } else { format!("{group}/{version}") },
        kind: kind.into(),
        plural: plural.into(),
    }
}
