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
use tokio::time::{sleep, timeout, timeout_at};
use torus_api::TorusCluster;
use torus_core::meta::MetadataStore;
use torus_plan::cluster::{Refusal, Store};
use torus_plan::contract::{FINALIZER_CLUSTER, FINALIZER_VOLUME};
use torus_plan::failover::Failover;
use torus_plan::story::Told;
use volume::{Deletions, Settled};

/// Volumes that are looked at at the same time.
const VOLUMES_AT_ONCE: usize = 8;
/// How long the last passes, and the question whether there are to be any, may go on: less than what a pod is given to end.
const FAREWELL: Duration = Duration::from_secs(20);
/// The longest pause between two of them.
const FAREWELL_PAUSE: Duration = Duration::from_secs(1);
/// How long an answer is waited for before the question is asked again.
const ANSWER_TIME: Duration = Duration::from_secs(5);

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
        let end = Instant::now() + FAREWELL;
        if !asked_at_last(|| is_deleted(&self.client, &self.settings.namespace), end).await {
            return;
        }
        tracing::info!("the namespace {} is being deleted: letting go of everything", self.settings.namespace);
        self.is_farewell = true;
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

    /// Whether the apiserver says so. Where it says nothing, the next pass asks again.
    async fn is_namespace_deleting(&self, name: &str) -> bool {
        is_deleted(&self.client, name).await.unwrap_or(false)
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

/// Whether a namespace is being deleted. One that is not there proves nothing: what is in it would not be there either.
async fn is_deleted(client: &Client, name: &str) -> Result<bool, kube::Error> {
    let found = Api::<Namespace>::all(client.clone()).get_opt(name).await?;
    Ok(found.is_some_and(|found| found.metadata.deletion_timestamp.is_some()))
}

/// Asks whether the operator's own namespace is being deleted until there is an answer or it is `end`: nobody asks later. Who may not ask
/// is told nothing else by asking again.
async fn asked_at_last<F>(ask: impl Fn() -> F, end: Instant) -> bool
where
    F: Future<Output = Result<bool, kube::Error>>,
{
    let answer = async {
        loop {
            match timeout(ANSWER_TIME, ask()).await {
                Ok(Ok(is_deleted)) => return is_deleted,
                Ok(Err(error)) if apply::is_code(&error, 401) || apply::is_code(&error, 403) => return false,
                Ok(Err(error)) => tracing::warn!("cannot tell whether our namespace is being deleted: {error}"),
                Err(_) => tracing::warn!("cannot tell whether our namespace is being deleted: no answer"),
            }
            sleep(FAREWELL_PAUSE).await;
        }
    };
    timeout_at(end.into(), answer).await.unwrap_or(false)
}

/// The time in RFC 3339, to the second.
fn now() -> String {
    k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;
    use std::future::{pending, ready};

    /// What is found out where the first `failures` questions are refused with `code`, and how often it is asked.
    async fn found_out(failures: usize, code: u16, is_deleted: bool, limit: Duration) -> (bool, usize) {
        let asked = Mutex::new(0);
        let ask = || {
            let mut asked = asked.lock().unwrap();
            *asked += 1;
            let refusal = || kube::Error::Api(Status::failure("as the test says", "Test").with_code(code).boxed());
            ready(if *asked <= failures { Err(refusal()) } else { Ok(is_deleted) })
        };
        let found = asked_at_last(ask, Instant::now() + limit).await;
        (found, *asked.lock().unwrap())
    }

    #[tokio::test]
    async fn the_last_question_is_asked_until_it_is_answered() {
        assert_eq!(found_out(0, 0, false, FAREWELL).await, (false, 1));
        assert_eq!(found_out(0, 0, true, FAREWELL).await, (true, 1));
        assert_eq!(found_out(1, 500, true, FAREWELL).await, (true, 2));
        // Who may not ask.
        assert_eq!(found_out(1, 403, true, FAREWELL).await, (false, 1));
        assert_eq!(found_out(1, 401, true, FAREWELL).await, (false, 1));
        // It ends, with or without refusals.
        assert!(!found_out(usize::MAX, 500, true, FAREWELL_PAUSE / 4).await.0);
        assert!(!asked_at_last(pending, Instant::now() + FAREWELL_PAUSE / 4).await);
    }
}
