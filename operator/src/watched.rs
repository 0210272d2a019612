//! What is watched of Kubernetes, kept in memory: a pass reads nothing else of it, so that one that finds nothing to do asks
//! the apiserver nothing.

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ApiResource, DynamicObject};
use kube::runtime::reflector::{Store, store::Writer};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use tokio::sync::Notify;
use torus_api::{TorusCluster, TorusVolume};
use torus_plan::contract::{LABEL_CLUSTER, LABEL_MANAGED_BY, MANAGED_BY};
use torus_plan::objects::{Key, Kind};

/// Everything watched.
pub struct Watched {
    /// All TorusClusters.
    pub clusters: Store<TorusCluster>,
    /// All TorusVolumes.
    pub volumes: Store<TorusVolume>,
    /// All nodes.
    pub nodes: Store<Node>,
    /// Pods in the operator's namespace that belong to a cluster.
    pub pods: Store<Pod>,
    objects: BTreeMap<Kind, Store<DynamicObject>>,
    /// Told of every change.
    pub changed: Arc<Notify>,
}

/// The resource of a kind, for calls without a type.
pub fn resource(kind: Kind) -> ApiResource {
    let (group, version, name, plural) = kind.names();
    ApiResource {
        group: group.into(),
        version: version.into(),
        api_version: kind.api_version(),
        kind: name.into(),
        plural: plural.into(),
    }
}

impl Watched {
    /// Begins to watch. The tasks end with the program.
    pub fn begin(client: &Client, namespace: &str) -> Watched {
        let changed = Arc::new(Notify::new());
        let ours = watcher::Config::default().labels(&format!("{LABEL_MANAGED_BY}={MANAGED_BY}"));
        let objects = Kind::ALL.into_iter().map(|kind| {
            let resource = resource(kind);
            let api = match kind {
                // Claims are where their TorusVolumes are.
                Kind::PersistentVolumeClaim => Api::all_with(client.clone(), &resource),
                _ if kind.is_namespaced() => Api::namespaced_with(client.clone(), namespace, &resource),
                _ => Api::all_with(client.clone(), &resource),
            };
            (kind, watch(api, resource, ours.clone(), &changed))
        });
        let any = watcher::Config::default();
        Watched {
            objects: objects.collect(),
            clusters: watch(Api::all(client.clone()), (), any.clone(), &changed),
            volumes: watch(Api::all(client.clone()), (), any.clone(), &changed),
            nodes: watch(Api::all(client.clone()), (), any.clone(), &changed),
            pods: watch(Api::namespaced(client.clone(), namespace), (), any.labels(LABEL_CLUSTER), &changed),
            changed,
        }
    }

    /// Waits until everything was listed once.
    pub async fn ready(&self) {
        // A writer is dropped when the program ends: then nobody asks any more.
        let _ = self.clusters.wait_until_ready().await;
        let _ = self.volumes.wait_until_ready().await;
        let _ = self.nodes.wait_until_ready().await;
        let _ = self.pods.wait_until_ready().await;
        for store in self.objects.values() {
            let _ = store.wait_until_ready().await;
        }
    }

    /// All objects of ours that `wanted` picks, as JSON.
    pub fn objects(&self, wanted: impl Fn(Kind, &DynamicObject) -> bool) -> BTreeMap<Key, Value> {
        let mut found = BTreeMap::new();
        for (kind, store) in &self.objects {
            for object in store.state().into_iter().filter(|object| wanted(*kind, object)) {
                found.insert(key(*kind, &object), serde_json::to_value(&*object).unwrap_or_default());
            }
        }
        found
    }
}

fn key(kind: Kind, object: &DynamicObject) -> Key {
    Key {
        kind,
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        name: object.metadata.name.clone().unwrap_or_default(),
    }
}

fn watch<K>(api: Api<K>, kind: K::DynamicType, config: watcher::Config, changed: &Arc<Notify>) -> Store<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Clone + Eq + Hash + Send + Sync + 'static,
{
    let writer = Writer::new(kind);
    let store = writer.as_reader();
    let changed = changed.clone();
    tokio::spawn(async move {
        let mut events = std::pin::pin!(reflector(writer, watcher(api, config)).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(_) => changed.notify_one(),
                Err(error) => tracing::warn!("a watch broke, and is taken up again: {error}"),
            }
        }
    });
    store
}
