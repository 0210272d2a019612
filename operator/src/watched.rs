//! What is watched of Kubernetes, kept in memory: a pass reads nothing else of it, so that one that finds nothing to do asks
//! the apiserver nothing.

use crate::pass::observe;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ApiResource, DynamicObject};
use kube::runtime::reflector::{Store, store::Writer};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use tokio::sync::Notify;
use torus_api::{ClusterRef, TorusCluster, TorusVolume};
use torus_plan::cluster;
use torus_plan::contract::{LABEL_CLUSTER, LABEL_MANAGED_BY, LABEL_VOLUME, MANAGED_BY};
use torus_plan::objects::{Key, Kind, Owner};
use torus_plan::volume::{Identity, holders};

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

/// What there is of and for TorusVolumes, as it is when a pass begins.
pub struct OfVolumes {
    /// By the uid of their TorusVolume.
    persistent_volumes: BTreeMap<String, Arc<DynamicObject>>,
    /// By namespace and name.
    claims: BTreeMap<(String, String), Arc<DynamicObject>>,
    /// The TorusVolume that each volume belongs to, by the volume's name.
    holders: BTreeMap<String, Identity>,
}

impl OfVolumes {
    /// The TorusVolume that a volume of this name belongs to.
    pub fn holder(&self, volume: &str) -> Option<&Identity> {
        self.holders.get(volume)
    }

    /// The PersistentVolume of a TorusVolume.
    pub fn persistent_volume(&self, uid: &str) -> Option<&Arc<DynamicObject>> {
        self.persistent_volumes.get(uid)
    }

    /// The claim of a name, if the operator made it, for whichever TorusVolume.
    pub fn claim(&self, namespace: &str, name: &str) -> Option<&Arc<DynamicObject>> {
        self.claims.get(&(namespace.to_owned(), name.to_owned()))
    }
}

/// Tells two states of an object apart.
pub fn version(object: &DynamicObject) -> Option<String> {
    Some(format!("{} {}", object.metadata.uid.as_ref()?, object.metadata.resource_version.as_ref()?))
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

    /// All objects of a TorusCluster, as JSON.
    pub fn of_cluster(&self, name: &str) -> BTreeMap<Key, Value> {
        let mut found = BTreeMap::new();
        for (kind, store) in &self.objects {
            if matches!(kind, Kind::PersistentVolume | Kind::PersistentVolumeClaim) {
                continue;
            }
            for object in store.state().into_iter().filter(|object| label(&**object, LABEL_CLUSTER) == Some(name)) {
                let mut body = serde_json::to_value(&*object).unwrap_or_default();
                // What was listed, and not changed since, does not say what it is: a list says it once for all.
                body["apiVersion"] = json!(kind.api_version());
                body["kind"] = json!(kind.names().2);
                found.insert(key(*kind, &object), body);
            }
        }
        found
    }

    /// All PersistentVolumes and claims of TorusVolumes, and which of these has which volume.
    pub fn of_volumes(&self) -> OfVolumes {
        let of = |kind| self.objects.get(&kind).map(Store::state).unwrap_or_default();
        let by_uid = |object: Arc<DynamicObject>| Some((label(&*object, LABEL_VOLUME)?.to_owned(), object));
        let by_name =
            |object: Arc<DynamicObject>| ((object.namespace().unwrap_or_default(), object.name_any()), object);
        OfVolumes {
            persistent_volumes: of(Kind::PersistentVolume).into_iter().filter_map(by_uid).collect(),
            claims: of(Kind::PersistentVolumeClaim).into_iter().map(by_name).collect(),
            holders: holders(self.volumes.state().iter().map(|object| &**object)),
        }
    }

    /// The pods of a TorusCluster that belong to a StatefulSet, by name.
    pub fn pods_of(&self, name: &str) -> BTreeMap<String, cluster::Pod> {
        let pods = self.pods.state();
        pods.iter()
            .filter(|pod| label(&***pod, LABEL_CLUSTER) == Some(name))
            .filter_map(|pod| observe::pod(pod))
            .collect()
    }

    /// TorusVolumes that are in a TorusCluster, or would be: `namespace/name`.
    pub fn volumes_in(&self, owner: &Owner) -> BTreeSet<String> {
        let is_in = |volume: &Arc<TorusVolume>| match &volume.spec.cluster {
            Some(ClusterRef { name, namespace }) => *name == owner.name && *namespace == owner.namespace,
            None => true,
        };
        let volumes = self.volumes.state().into_iter().filter(is_in);
        volumes.map(|volume| format!("{}/{}", volume.namespace().unwrap_or_default(), volume.name_any())).collect()
    }
}

fn label<'a>(object: &'a impl Resource, name: &str) -> Option<&'a str> {
    object.meta().labels.as_ref()?.get(name).map(String::as_str)
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
        // Who owns which field is half of an object, and nothing here looks at it.
        let slim = watcher(api, config).default_backoff().modify(|object| object.meta_mut().managed_fields = None);
        let mut events = std::pin::pin!(reflector(writer, slim));
        while let Some(event) = events.next().await {
            match event {
                Ok(_) => changed.notify_one(),
                Err(error) => tracing::warn!("a watch broke, and is taken up again: {error}"),
            }
        }
    });
    store
}
