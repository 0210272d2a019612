//! One pass over everything: what is watched and what the metadata store says, the plans, their actions, the statuses.
//!
//! A pass begins when something changed or a few seconds went by. It looks at everything in memory, and at the metadata store only as
//! far as that changed; what it finds unchanged it leaves alone, so that a pass that finds nothing writes nothing.
//!
//! Dead nodes come first: nothing else may keep them waiting. For the same reason what may take long, such as deleting data on agents,
//! goes on beside the passes.

mod cluster;
mod failover;
pub mod observe;
mod volume;

use crate::apply;
use crate::delays::Delays;
use crate::metadata::{Connection, Look};
use crate::patch::merge_patch;
use crate::teller::Teller;
use crate::watched::Watched;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::time::timeout;
use torus_api::TorusCluster;
use torus_core::meta::MetadataStore;
use torus_plan::cluster::{Refusal, Store};
use torus_plan::contract::{FINALIZER_CLUSTER, FINALIZER_VOLUME};
use torus_plan::failover::Failover;
use torus_plan::story::Told;
use volume::{Deletions, Settled};

/// Volumes that are looked at at the same time.
const VOLUMES_AT_ONCE: usize = 8;
/// How long the last passes may go on: less than what a pod is given to end.
const FAREWELL: Duration = Duration::from_secs(20);
/// The longest pause between two of them.
const FAREWELL_PAUSE: Duration = Duration::from_secs(1);

/// What the operator was told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its namespace: TorusClusters are served there.
    pub namespace: String,
    /// Its image: what agents run unless their cluster says otherwise.
    pub image: String,
    /// Its name in the election.
    pub identity: String,
    /// A directory of its own, for certificates.
    pub directory: PathBuf,
}

/// What a pass came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Actions carried out.
    pub actions: u64,
    /// Statuses written.
    pub statuses: u64,
    /// Actions that failed.
    pub failures: u64,
}

/// What is kept from one pass to the next.
pub struct Passes {
    client: Client,
    settings: Settings,
    watched: Arc<Watched>,
    teller: Teller,
    connection: Option<Arc<Connection>>,
    failover: Failover,
    began: Instant,
    book: Mutex<Book>,
    deletions: Deletions,
    /// Whether these are the last passes, the operator's namespace being deleted.
    is_farewell: bool,
}

/// What several volumes write to at the same time.
#[derive(Default)]
struct Book {
    tally: Tally,
    delays: Delays,
    /// Volumes with which there was nothing to do, by uid, and what they looked like then.
    settled: BTreeMap<String, Settled>,
}

/// The cluster of a pass, for its volumes and for failover.
struct Served {
    cluster: Arc<TorusCluster>,
    /// What the metadata store said; its cluster is this one's, if it has one at all.
    look: Arc<Look>,
    is_ours: bool,
}

impl Served {
    fn found(&self) -> Option<&torus_plan::cluster::StoreCluster> {
        match &self.look.store {
            Store::Cluster(found) if self.is_ours => Some(found),
            _ => None,
        }
    }
}

impl Passes {
    /// Ready for the first pass.
    #[must_use]
    pub fn new(client: Client, settings: Settings, watched: Arc<Watched>) -> Passes {
        let teller = Teller::new(client.clone(), &settings.identity);
        Passes {
            client,
            settings,
            watched,
            teller,
            connection: None,
            failover: Failover::default(),
            began: Instant::now(),
            book: Mutex::default(),
            deletions: Deletions::default(),
            is_farewell: false,
        }
    }

    /// One pass.
    pub async fn pass(&mut self) -> Tally {
        self.book().tally = Tally::default();
        let served = self.served();
        let mut open = None;
        for cluster in self.clusters() {
            let refused = match &served {
                Some(served) if served.uid() == cluster.uid() => None,
                _ if cluster.namespace().as_deref() != Some(&self.settings.namespace) => {
                    Some(Refusal::Namespace { served: self.settings.namespace.clone() })
                }
                Some(served) => Some(Refusal::Older(format!("{}/{}", self.settings.namespace, served.name_any()))),
                None => None,
            };
            let is_served = refused.is_none();
            let found = self.cluster(&cluster, refused).await;
            if is_served {
                if !self.is_farewell {
                    self.failover(&found).await;
                }
                open = Some(found);
            }
        }
        self.volumes(open.as_ref()).await;
        self.book().tally
    }

    /// What one does that does not lead: it counts for how long nodes are silent, so that it need not begin to when it takes over from
    /// a leader that died with its node.
    pub async fn stand_by(&mut self) {
        let Some(cluster) = self.served() else { return };
        let status = cluster.status.clone().unwrap_or_default();
        let endpoints = status.etcd.map(|etcd| etcd.endpoints).unwrap_or_default();
        if endpoints.is_empty() {
            return;
        }
        let (_, secret) = self.secret(&cluster).await;
        let look = self.look(&cluster.spec, &endpoints, secret).await;
        let is_ours = matches!(&look.store, Store::Cluster(found) if status.cluster_id.as_ref() == Some(&found.id));
        self.count_silence(&Served { cluster, look, is_ours });
    }

    /// The last passes, if the operator's own namespace is being deleted: nobody will look after anything any more, so finalizers and
    /// what is in no namespace go now. Kubernetes (1.33 and newer) ends the pods of a namespace before it deletes anything else.
    pub async fn farewell(&mut self) {
        if !self.is_namespace_deleting(&self.settings.namespace).await {
            return;
        }
        tracing::info!("the namespace {} is being deleted: letting go of everything", self.settings.namespace);
        self.is_farewell = true;
        let end = Instant::now() + FAREWELL;
        while self.holds_anything() && Instant::now() < end {
            self.pass().await;
            let _ = timeout(FAREWELL_PAUSE, self.watched.changed.notified()).await;
        }
    }

    fn holds_anything(&self) -> bool {
        let held = |finalizers: &[String], ours: &str| finalizers.iter().any(|name| name == ours);
        self.served().is_some_and(|cluster| held(cluster.finalizers(), FINALIZER_CLUSTER))
            || self.watched.volumes.find(|volume| held(volume.finalizers(), FINALIZER_VOLUME)).is_some()
    }

    /// All TorusClusters, the oldest first.
    fn clusters(&self) -> Vec<Arc<TorusCluster>> {
        let mut clusters = self.watched.clusters.state();
        clusters.sort_by_key(|cluster| (cluster.creation_timestamp().map(|time| time.0), cluster.uid()));
        clusters
    }

    /// The one that is served: the oldest in our namespace.
    fn served(&self) -> Option<Arc<TorusCluster>> {
        let ours = Some(self.settings.namespace.as_str());
        self.clusters().into_iter().find(|cluster| cluster.namespace().as_deref() == ours)
    }

    /// Whether the apiserver says so. One that is not there, or cannot be asked for, proves nothing: what is in it would not be there
    /// either.
    async fn is_namespace_deleting(&self, name: &str) -> bool {
        let api: Api<Namespace> = Api::all(self.client.clone());
        matches!(api.get_opt(name).await, Ok(Some(found)) if found.metadata.deletion_timestamp.is_some())
    }

    async fn volumes(&self, served: Option<&Served>) {
        let volumes = self.watched.volumes.state();
        let there: BTreeSet<_> = volumes.iter().filter_map(|volume| volume.uid()).collect();
        self.book().settled.retain(|uid, _| there.contains(uid));
        let objects = self.watched.of_volumes();
        let (this, objects) = (self, &objects);
        futures::stream::iter(volumes)
            .for_each_concurrent(VOLUMES_AT_ONCE, |volume| async move { this.volume(&volume, objects, served).await })
            .await;
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Counters and maps: whole whatever a panicking thread was doing.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self) -> Result<Arc<dyn MetadataStore>, String> {
        self.connection.as_ref().map(|connection| connection.store.clone()).ok_or_else(|| "etcd does not answer".into())
    }

    /// Why an action that failed is not tried again yet.
    fn resting(&self, what: &str) -> Option<String> {
        self.book().delays.resting(what, self.began.elapsed()).map(str::to_owned)
    }

    /// Counts what came of an action, and tells what failed.
    async fn account<K>(&self, what: &str, result: &Result<(), String>, object: &K, reason: &str)
    where
        K: Resource<DynamicType = ()>,
    {
        match result {
            Ok(()) => {
                let mut book = self.book();
                book.tally.actions += 1;
                book.delays.succeeded(what);
            }
            Err(message) => {
                {
                    let mut book = self.book();
                    book.tally.failures += 1;
                    book.delays.failed(what, self.began.elapsed(), message);
                }
                self.teller.tell(object, Told::warning(reason, message.clone())).await;
            }
        }
    }

    /// Writes what changed of a status; whether it was written.
    async fn write_status<K, S>(&self, api: &Api<K>, name: &str, before: Option<&S>, after: &S) -> bool
    where
        K: Clone + Debug + DeserializeOwned,
        S: Serialize,
    {
        let json = |status: &S| serde_json::to_value(status).unwrap_or_default();
        let Some(patch) = merge_patch(&before.map(json).unwrap_or_default(), &json(after)) else { return false };
        match api.patch_status(name, &PatchParams::default(), &Patch::Merge(json!({"status": patch}))).await {
            Ok(_) => {
                self.book().tally.statuses += 1;
                true
            }
            Err(error) if apply::is_code(&error, 404) => false,
            Err(error) => {
                self.book().tally.failures += 1;
                tracing::warn!("cannot write the status of {name}: {error}");
                false
            }
        }
    }
}

/// The time in RFC 3339, to the second.
fn now() -> String {
    k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
