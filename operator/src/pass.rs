//! One pass over everything: what is watched and what the metadata store says, the plans, their actions, the statuses.
//!
//! A pass begins when something changed or a few seconds went by. It looks at everything, which costs memory reads and one list of the
//! metadata store; what it finds unchanged it leaves alone, so that a pass that finds nothing writes nothing.

use crate::apply;
use crate::metadata::{self, Connection, FENCER, sentence};
use crate::watched::Watched;
use k8s_openapi::api::core::v1::{Namespace, Node as KubeNode, Pod as KubePod, Secret as KubeSecret};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use torus_agent::metadata::VolumeInfo;
use torus_api::{AckMode, ClusterRef, TorusCluster, TorusVolume};
use torus_core::ids::{BLOCK_BYTES, Lba};
use torus_core::limits::EXTENT_BLOCKS_DEFAULT;
use torus_plan::cluster::{self, Action, Node, Observed, Pod, Recorded, Refusal, Secret, Store, StoreCluster};
use torus_plan::contract::{
    FINALIZER_CLUSTER, FINALIZER_VOLUME, LABEL_CLUSTER, LABEL_VOLUME, TAINT_OUT_OF_SERVICE, TAINT_VALUE,
};
use torus_plan::failover::{Failover, Policy, Sign, Step};
use torus_plan::objects::{Key, Kind, Owner};
use torus_plan::status::cluster_status;
use torus_plan::volume::{self, Identity, OpenPool, Pool, Seen, Volume};

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

/// What is kept from one pass to the next.
pub struct Passes {
    client: Client,
    settings: Settings,
    watched: Arc<Watched>,
    recorder: Recorder,
    connection: Option<Arc<Connection>>,
    failover: Failover,
    began: Instant,
    /// Actions that failed, how often, and when to try them again.
    delayed: BTreeMap<String, (u32, Instant)>,
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

/// The cluster of a pass, for its volumes.
struct Served {
    cluster: Arc<TorusCluster>,
    found: Option<StoreCluster>,
    store: Store,
    volumes: Vec<VolumeInfo>,
}

/// How long a failed action rests: doubled with each failure, at most this.
const DELAY_MAX: Duration = Duration::from_secs(120);

impl Passes {
    /// Ready for the first pass.
    #[must_use]
    pub fn new(client: Client, settings: Settings, watched: Arc<Watched>) -> Passes {
        let reporter = Reporter { controller: "torus-operator".into(), instance: Some(settings.identity.clone()) };
        let recorder = Recorder::new(client.clone(), reporter);
        Passes {
            client,
            settings,
            watched,
            recorder,
            connection: None,
            failover: Failover::default(),
            began: Instant::now(),
            delayed: BTreeMap::new(),
        }
    }

    /// One pass.
    pub async fn pass(&mut self) -> Tally {
        let mut tally = Tally::default();
        let mut clusters = self.watched.clusters.state();
        clusters.sort_by_key(|cluster| (cluster.creation_timestamp().map(|time| time.0), cluster.uid()));
        // The oldest in our namespace is served.
        let served =
            clusters.iter().find(|cluster| cluster.namespace().as_deref() == Some(&self.settings.namespace)).cloned();
        let mut open = None;
        for cluster in clusters {
            let refused = match &served {
                Some(served) if served.uid() == cluster.uid() => None,
                _ if cluster.namespace().as_deref() != Some(&self.settings.namespace) => {
                    Some(Refusal::Namespace { served: self.settings.namespace.clone() })
                }
                Some(served) => Some(Refusal::Older(format!("{}/{}", self.settings.namespace, served.name_any()))),
                None => None,
            };
            let is_served = refused.is_none();
            let found = self.cluster(&cluster, refused, &mut tally).await;
            if is_served {
                open = Some(found);
            }
        }
        for volume in self.watched.volumes.state() {
            self.volume(&volume, open.as_ref(), &mut tally).await;
        }
        if let Some(served) = &open {
            self.failover(served, &mut tally).await;
        }
        tally
    }

    async fn cluster(&mut self, cluster: &Arc<TorusCluster>, refused: Option<Refusal>, tally: &mut Tally) -> Served {
        let owner = Owner {
            name: cluster.name_any(),
            namespace: cluster.namespace().unwrap_or_default(),
            uid: cluster.uid().unwrap_or_default(),
        };
        let mut seen = self.observe(cluster, &owner, refused).await;
        // Where etcd is comes out of a first plan; what it says goes into the second.
        let first = cluster::plan(&owner, &cluster.spec, &self.settings.image, &seen);
        let mut volumes = Vec::new();
        let endpoints =
            if first.endpoints.is_empty() { seen.recorded.endpoints.clone() } else { first.endpoints.clone() };
        if seen.refused.is_none() && !endpoints.is_empty() {
            (seen.store, volumes) = self.look(&cluster.spec, &endpoints).await;
        }
        let plan = cluster::plan(&owner, &cluster.spec, &self.settings.image, &seen);
        for action in &plan.actions {
            let what = format!("{} {}", owner.uid, name_of(action));
            if !self.is_due(&what) {
                continue;
            }
            let result = self.act(cluster, &owner, action).await;
            let failed = result.is_err();
            self.account(&what, result, cluster.as_ref(), "ActionFailed", tally).await;
            if failed {
                break;
            }
        }
        self.tell_pods(cluster, &plan.actions).await;
        let before = cluster.status.clone().unwrap_or_default();
        let generation = cluster.metadata.generation.unwrap_or(0);
        let now = now();
        let status = cluster_status(&owner.name, &cluster.spec, generation, &seen, &plan, &before, &now);
        if cluster.status.as_ref() != Some(&status) && !plan.actions.contains(&Action::RemoveFinalizer) {
            let api: Api<TorusCluster> = Api::namespaced(self.client.clone(), &owner.namespace);
            self.write_status(&api, &owner.name, json!({"status": status}), tally).await;
            let changed = changed_conditions(&before.conditions, &status.conditions);
            self.tell_conditions(cluster.as_ref(), &changed).await;
        }
        Served { cluster: cluster.clone(), found: seen.cluster().cloned(), store: seen.store, volumes }
    }

    async fn observe(&self, cluster: &TorusCluster, owner: &Owner, refused: Option<Refusal>) -> Observed {
        let belongs = |labels: Option<&BTreeMap<String, String>>| {
            labels.and_then(|labels| labels.get(LABEL_CLUSTER)).is_some_and(|name| *name == owner.name)
        };
        let pods = self.watched.pods.state();
        let of_cluster = |reference: &TorusVolume| match &reference.spec.cluster {
            Some(ClusterRef { name, namespace }) => *name == owner.name && *namespace == owner.namespace,
            None => true,
        };
        let volumes = self.watched.volumes.state();
        let status = cluster.status.clone().unwrap_or_default();
        let is_deleting = cluster.metadata.deletion_timestamp.is_some();
        Observed {
            objects: self.watched.objects(|_, object| belongs(object.metadata.labels.as_ref())),
            pods: pods
                .iter()
                .filter(|pod| belongs(pod.metadata.labels.as_ref()))
                .filter_map(|pod| pod_of(pod))
                .collect(),
            nodes: self.watched.nodes.state().iter().map(|node| (node.name_any(), node_of(node))).collect(),
            secret: self.secret(cluster).await.0,
            refused,
            store: Store::NotAsked,
            recorded: Recorded {
                cluster_id: status.cluster_id,
                endpoints: status.etcd.map(|etcd| etcd.endpoints).unwrap_or_default(),
            },
            has_finalizer: cluster.finalizers().iter().any(|name| name == FINALIZER_CLUSTER),
            is_deleting,
            is_namespace_deleting: is_deleting && self.is_namespace_deleting(&owner.namespace).await,
            volume_objects: volumes
                .iter()
                .filter(|volume| of_cluster(volume))
                .map(|volume| format!("{}/{}", volume.namespace().unwrap_or_default(), volume.name_any()))
                .collect(),
        }
    }

    /// The secret for etcd: what the plan looks at, and its content.
    async fn secret(&self, cluster: &TorusCluster) -> (Secret, BTreeMap<String, Vec<u8>>) {
        let Some(secret) = cluster.spec.etcd.external.as_ref().and_then(|external| external.secret.as_ref()) else {
            return (Secret::NotNamed, BTreeMap::new());
        };
        let api: Api<KubeSecret> = Api::namespaced(self.client.clone(), &self.settings.namespace);
        match api.get_opt(&secret.name).await {
            Ok(Some(found)) => {
                let data: BTreeMap<_, _> =
                    found.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect();
                (Secret::Keys(data.keys().cloned().collect()), data)
            }
            Ok(None) => (Secret::Missing, BTreeMap::new()),
            Err(error) => {
                tracing::warn!("cannot read the secret {}: {error}", secret.name);
                (Secret::Missing, BTreeMap::new())
            }
        }
    }

    async fn is_namespace_deleting(&self, name: &str) -> bool {
        let api: Api<Namespace> = Api::all(self.client.clone());
        match api.get_opt(name).await {
            Ok(Some(found)) => found.metadata.deletion_timestamp.is_some(),
            Ok(None) => true,
            Err(_) => false,
        }
    }

    async fn look(&mut self, spec: &torus_api::TorusClusterSpec, endpoints: &[String]) -> (Store, Vec<VolumeInfo>) {
        let secret = match spec.etcd.external.as_ref().and_then(|external| external.secret.as_ref()) {
            None => BTreeMap::new(),
            Some(secret) => {
                let api: Api<KubeSecret> = Api::namespaced(self.client.clone(), &self.settings.namespace);
                let found = api.get_opt(&secret.name).await.ok().flatten();
                let data = found.and_then(|found| found.data).unwrap_or_default();
                data.into_iter().map(|(key, value)| (key, value.0)).collect()
            }
        };
        let before = self.connection.take();
        match metadata::connect(before, spec, endpoints, secret, &self.settings.directory).await {
            Ok(connection) => {
                let look = metadata::look(&*connection.store).await;
                self.connection = Some(connection);
                (look.store, look.volumes)
            }
            Err(why) => (Store::Failed(why), Vec::new()),
        }
    }

    async fn act(&self, cluster: &TorusCluster, owner: &Owner, action: &Action) -> Result<(), String> {
        let client = &self.client;
        let api: Api<TorusCluster> = Api::namespaced(client.clone(), &owner.namespace);
        let say = |error: apply::ApplyError| sentence(&error);
        match action {
            Action::AddFinalizer => finalize(&api, cluster, FINALIZER_CLUSTER, true).await,
            Action::RemoveFinalizer => finalize(&api, cluster, FINALIZER_CLUSTER, false).await,
            Action::Create(object) => apply::create(client, object).await.map_err(say),
            Action::Update(object) => apply::update(client, object).await.map_err(say),
            Action::Delete { key, uid } => apply::delete(client, key, uid).await.map_err(say),
            Action::ReplacePod { name, uid } => {
                apply::delete_pod(client, &owner.namespace, name, uid).await.map_err(say)
            }
            Action::LabelNode { node, value } => apply::label_node(client, node, value.as_deref()).await.map_err(say),
            Action::InitCluster { replicas } => {
                let store = self.store()?;
                let made = torus_agent::metadata::init_cluster(&*store, EXTENT_BLOCKS_DEFAULT, *replicas).await;
                made.map(drop).map_err(|error| sentence(&error))
            }
            Action::SetRing { kind, replicas, spread } => {
                let store = self.store()?;
                let changed = torus_agent::metadata::change_ring(&*store, |ring| {
                    let mut spec = ring.cloned().ok_or(torus_agent::metadata::RingsError::None)?;
                    spec.kind = (*kind).into();
                    spec.replicas = *replicas;
                    spec.spread = *spread;
                    Ok(spec)
                });
                changed.await.map(drop).map_err(|error| sentence(&error))
            }
        }
    }

    fn store(&self) -> Result<Arc<dyn torus_core::meta::MetadataStore>, String> {
        self.connection.as_ref().map(|connection| connection.store.clone()).ok_or_else(|| "etcd does not answer".into())
    }

    async fn volume(&mut self, object: &Arc<TorusVolume>, served: Option<&Served>, tally: &mut Tally) {
        let who = Identity {
            name: object.name_any(),
            namespace: object.namespace().unwrap_or_default(),
            uid: object.uid().unwrap_or_default(),
        };
        let before = object.status.clone().unwrap_or_default();
        let of_this = |labels: Option<&BTreeMap<String, String>>| {
            labels.and_then(|labels| labels.get(LABEL_VOLUME)).is_some_and(|uid| *uid == who.uid)
        };
        let mut objects = self.watched.objects(|kind, object| {
            matches!(kind, Kind::PersistentVolume | Kind::PersistentVolumeClaim)
                && of_this(object.metadata.labels.as_ref())
        });
        let mut take = |kind: Kind| {
            let key = objects.keys().find(|key| key.kind == kind).cloned();
            key.and_then(|key: Key| objects.remove(&key))
        };
        let seen = Seen {
            pool: pool(&who, object, served),
            persistent_volume: take(Kind::PersistentVolume),
            claim: take(Kind::PersistentVolumeClaim),
            recorded_id: before.volume_id.clone(),
            has_finalizer: object.finalizers().iter().any(|name| name == FINALIZER_VOLUME),
            is_deleting: object.metadata.deletion_timestamp.is_some(),
        };
        let mut plan = volume::plan(&who, &object.spec, &seen);
        for action in &plan.actions.clone() {
            let what = format!("{} {}", who.uid, format!("{action:?}").split([' ', '(']).next().unwrap_or_default());
            if !self.is_due(&what) {
                continue;
            }
            let result = self.act_on_volume(object, action).await;
            let failure = result.as_ref().err().cloned();
            self.account(&what, result, object.as_ref(), "ActionFailed", tally).await;
            if let Some(message) = failure {
                let obstacle = Some(cluster::Obstacle { reason: "ActionFailed", message });
                if seen.is_deleting {
                    plan.held = obstacle
                } else {
                    plan.waits = obstacle
                }
                break;
            }
        }
        if plan.actions.contains(&volume::Action::RemoveFinalizer) {
            return;
        }
        let generation = object.metadata.generation.unwrap_or(0);
        let status = volume::volume_status(&who, &object.spec, generation, &seen, &plan, &before, &now());
        if object.status.as_ref() != Some(&status) {
            let api: Api<TorusVolume> = Api::namespaced(self.client.clone(), &who.namespace);
            self.write_status(&api, &who.name, json!({"status": status}), tally).await;
            let changed = changed_conditions(&before.conditions, &status.conditions);
            self.tell_conditions(object.as_ref(), &changed).await;
        }
    }

    async fn act_on_volume(&self, object: &TorusVolume, action: &volume::Action) -> Result<(), String> {
        let client = &self.client;
        let api: Api<TorusVolume> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
        let say = |error: apply::ApplyError| sentence(&error);
        let store = || self.store();
        let id = |id: &str| id.parse().map_err(|_| format!("{id:?} is no volume's id"));
        match action {
            volume::Action::AddFinalizer => finalize(&api, object, FINALIZER_VOLUME, true).await,
            volume::Action::RemoveFinalizer => finalize(&api, object, FINALIZER_VOLUME, false).await,
            volume::Action::CreateVolume { name, blocks, replicas, min_replicas, ack_mode } => {
                let new = torus_agent::metadata::NewVolume {
                    name: name.clone(),
                    size: Lba(*blocks),
                    replicas: *replicas,
                    min_replicas: *min_replicas,
                    ack_mode: match ack_mode {
                        AckMode::Durable => torus_core::meta::docs::AckMode::Durable,
                        AckMode::Received => torus_core::meta::docs::AckMode::Received,
                    },
                };
                match torus_agent::metadata::create_volume(&*store()?, new).await {
                    // The name holds the object's uid: it is the one that was made before.
                    Ok(_) | Err(torus_agent::metadata::VolumeError::Exists { .. }) => Ok(()),
                    Err(error) => Err(sentence(&error)),
                }
            }
            volume::Action::Resize { id: text, blocks } => {
                let resized = torus_agent::metadata::resize_volume(&*store()?, id(text)?, Lba(*blocks)).await;
                resized.map(drop).map_err(|error| sentence(&error))
            }
            volume::Action::Create(object) => apply::create(client, object).await.map_err(say),
            volume::Action::GrowClaim { key, size } => apply::grow_claim(client, key, &size.0).await.map_err(say),
            volume::Action::Delete { key, uid } => apply::delete(client, key, uid).await.map_err(say),
            volume::Action::DeleteVolume { id: text } => metadata::delete_volume(&*store()?, id(text)?).await,
        }
    }

    /// Nodes that died.
    async fn failover(&mut self, served: &Served, tally: &mut Tally) {
        // Where the store does not answer, nobody can tell who is silent.
        let (Some(found), Store::Cluster(_)) = (&served.found, &served.store) else { return };
        let spec = &served.cluster.spec.failover;
        let policy = Policy {
            fence: spec.fence,
            taint: spec.out_of_service_taint,
            grace: Duration::from_secs(u64::try_from(spec.grace_seconds).unwrap_or(0)),
        };
        let signs = signs(&self.watched, found, &served.volumes);
        for step in self.failover.step(self.began.elapsed(), policy, &signs) {
            let what = format!("{step:?}");
            if !self.is_due(&what) {
                continue;
            }
            let result = self.carry_out(&step, served).await;
            self.account(&what, result, served.cluster.as_ref(), "FailoverFailed", tally).await;
        }
    }

    async fn carry_out(&self, step: &Step, served: &Served) -> Result<(), String> {
        let cluster = served.cluster.as_ref();
        let say = |error: apply::ApplyError| sentence(&error);
        match step {
            Step::Dead { node, silent } => {
                let message = format!(
                    "node {node} is not ready and its agent has been silent for {} s: its volumes are fenced",
                    silent.as_secs()
                );
                self.tell(cluster, EventType::Warning, "NodeDead", message).await;
            }
            Step::Back(node) => self.tell(cluster, EventType::Normal, "NodeBack", format!("node {node} is back")).await,
            Step::Fence { node, volume } => {
                let Some(info) = served.volumes.iter().find(|info| info.meta.doc.name == *volume) else {
                    return Ok(());
                };
                let before = info.epoch.as_ref().map_or(0, |epoch| epoch.doc.epoch.0);
                if let Some(epoch) = metadata::fence(&*self.store()?, info, node).await? {
                    let message = format!(
                        "volume {volume} was taken from {node}: epoch {before} → {epoch}. {node} registers nothing more, and is refused by the agents as soon as another node opens the volume"
                    );
                    self.tell(cluster, EventType::Warning, "Fenced", message.clone()).await;
                    if let Some(object) = self.object_of(volume) {
                        self.tell(object.as_ref(), EventType::Warning, "Fenced", message).await;
                    }
                }
            }
            Step::Taint(node) => {
                apply::taint_node(&self.client, node, true).await.map_err(say)?;
                let message = format!(
                    "node {node} is tainted {TAINT_OUT_OF_SERVICE}: all its volumes are fenced, and its pods are replaced elsewhere"
                );
                self.tell(cluster, EventType::Warning, "NodeOutOfService", message).await;
            }
            Step::Untaint(node) => {
                apply::taint_node(&self.client, node, false).await.map_err(say)?;
                let message = format!("node {node} is ready again: the taint {TAINT_OUT_OF_SERVICE} is taken away");
                self.tell(cluster, EventType::Normal, "NodeInService", message).await;
            }
        }
        Ok(())
    }

    fn object_of(&self, volume: &str) -> Option<Arc<TorusVolume>> {
        self.watched.volumes.find(|object| {
            object.status.as_ref().and_then(|status| status.volume_name.as_deref()).is_some_and(|name| name == volume)
        })
    }

    async fn tell_pods(&self, cluster: &TorusCluster, actions: &[Action]) {
        for action in actions {
            if let Action::ReplacePod { name, .. } = action {
                self.tell(
                    cluster,
                    EventType::Normal,
                    "Updating",
                    format!("pod {name} is replaced by one of the new revision"),
                )
                .await;
            }
        }
    }

    async fn tell_conditions<K>(&self, object: &K, changed: &[torus_api::Condition])
    where
        K: Resource<DynamicType = ()>,
    {
        for condition in changed {
            let good = condition.status == torus_api::ConditionStatus::True;
            let kind = if good || condition.kind == "Updating" { EventType::Normal } else { EventType::Warning };
            self.tell(object, kind, &condition.reason, condition.message.clone()).await;
        }
    }

    async fn tell<K: Resource<DynamicType = ()>>(&self, object: &K, type_: EventType, reason: &str, message: String) {
        tracing::info!(object = object.meta().name, reason, "{message}");
        let note = Some(message.chars().take(1000).collect());
        let event = Event { type_, reason: reason.into(), note, action: "Reconcile".into(), secondary: None };
        if let Err(error) = self.recorder.publish(&event, &object.object_ref(&())).await {
            tracing::warn!("cannot write an event: {error}");
        }
    }

    async fn write_status<K>(&self, api: &Api<K>, name: &str, patch: serde_json::Value, tally: &mut Tally)
    where
        K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        match api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => tally.statuses += 1,
            Err(error) if apply::is_code(&error, 404) => {}
            Err(error) => {
                tally.failures += 1;
                tracing::warn!("cannot write the status of {name}: {error}");
            }
        }
    }

    fn is_due(&self, what: &str) -> bool {
        self.delayed.get(what).is_none_or(|(_, at)| Instant::now() >= *at)
    }

    async fn account<K: Resource<DynamicType = ()>>(
        &mut self,
        what: &str,
        result: Result<(), String>,
        object: &K,
        reason: &str,
        tally: &mut Tally,
    ) {
        match result {
            Ok(()) => {
                tally.actions += 1;
                self.delayed.remove(what);
            }
            Err(message) => {
                tally.failures += 1;
                let times = self.delayed.get(what).map_or(0, |(times, _)| *times).saturating_add(1);
                let delay = Duration::from_secs(1 << times.min(10)).min(DELAY_MAX);
                self.delayed.insert(what.into(), (times, Instant::now() + delay));
                self.tell(object, EventType::Warning, reason, message).await;
            }
        }
    }
}

fn name_of(action: &Action) -> String {
    match action {
        Action::Create(object) | Action::Update(object) => object.key.to_string(),
        other => format!("{other:?}"),
    }
}

/// Sets or takes away a finalizer, if the object still is the version that was seen.
async fn finalize<K>(api: &Api<K>, object: &K, finalizer: &str, is_set: bool) -> Result<(), String>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let meta = object.meta();
    let mut list: Vec<String> = meta.finalizers.clone().unwrap_or_default();
    list.retain(|name| name != finalizer);
    if is_set {
        list.push(finalizer.into());
    }
    let name = meta.name.clone().unwrap_or_default();
    let patch = json!({"metadata": {"resourceVersion": meta.resource_version, "finalizers": list}});
    match api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(error) if apply::is_code(&error, 404) => Ok(()),
        Err(error) => Err(sentence(&apply::failed("set the finalizer of", name)(error))),
    }
}

fn pod_of(pod: &KubePod) -> Option<(String, Pod)> {
    let owner = pod.metadata.owner_references.iter().flatten().find(|owner| owner.kind == "StatefulSet")?;
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let seen = Pod {
        set: owner.name.clone(),
        uid: pod.uid().unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
        is_ready: conditions
            .into_iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        is_terminating: pod.metadata.deletion_timestamp.is_some(),
        revision: pod.labels().get("controller-revision-hash").cloned().unwrap_or_default(),
    };
    Some((pod.name_any(), seen))
}

fn node_of(node: &KubeNode) -> Node {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    Node {
        labels: node.labels().clone(),
        is_ready: conditions
            .into_iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        is_schedulable: !node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false),
    }
}

fn signs(watched: &Watched, found: &StoreCluster, volumes: &[VolumeInfo]) -> BTreeMap<String, Sign> {
    let pods = watched.pods.state();
    // An agent whose disk is a claim goes by the name of its pod.
    let names_at = |node: &str| -> BTreeSet<String> {
        let here = pods.iter().filter(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node));
        here.map(|pod| pod.name_any()).chain([node.to_owned()]).collect()
    };
    let held = |node: &str| {
        let is_held = |info: &&VolumeInfo| {
            info.epoch.as_ref().is_some_and(|epoch| epoch.doc.holder.host == node && node != FENCER)
        };
        volumes.iter().filter(is_held).map(|info| info.meta.doc.name.clone()).collect()
    };
    let owns =
        |node: &str| volumes.iter().any(|info| info.owner.as_ref().is_some_and(|owner| owner.holder.host == node));
    let sign = |node: &KubeNode| {
        let name = node.name_any();
        let names = names_at(&name);
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        let is_ours = |taint: &k8s_openapi::api::core::v1::Taint| {
            taint.key == TAINT_OUT_OF_SERVICE && taint.value.as_deref() == Some(TAINT_VALUE)
        };
        let sign = Sign {
            is_ready: node_of(node).is_ready,
            is_alive: owns(&name)
                || names.iter().any(|name| found.agents.get(name).is_some_and(|agent| agent.is_alive)),
            is_tainted: taints.into_iter().flatten().any(is_ours),
            volumes: held(&name),
        };
        (name, sign)
    };
    watched.nodes.state().iter().map(|node| sign(node)).collect()
}

fn pool(who: &Identity, object: &TorusVolume, served: Option<&Served>) -> Pool {
    let wanted = object.spec.cluster.as_ref();
    let served = served.filter(|served| {
        wanted.is_none_or(|wanted| {
            wanted.name == served.cluster.name_any() && Some(&wanted.namespace) == served.cluster.namespace().as_ref()
        })
    });
    let Some(served) = served else {
        return Pool::None(match wanted {
            Some(wanted) => format!(
                "there is no TorusCluster {}/{}: make it, or correct spec.cluster",
                wanted.namespace, wanted.name
            ),
            None => "there is no TorusCluster: make one".into(),
        });
    };
    let Some(found) = &served.found else {
        return match &served.store {
            Store::Failed(why) => Pool::Failed(why.clone()),
            Store::NotAsked | Store::Empty
                if served.cluster.status.as_ref().is_none_or(|status| status.cluster_id.is_none()) =>
            {
                Pool::Starting
            }
            _ => Pool::Failed("etcd does not hold this cluster: see the conditions of the TorusCluster".into()),
        };
    };
    let spec = &served.cluster.spec;
    let name = who.volume_name(&object.spec);
    let info = served.volumes.iter().find(|info| info.meta.doc.name == name);
    let small = |value: i32| u8::try_from(value).unwrap_or(1);
    Pool::Open(OpenPool {
        replicas: small(spec.replicas),
        min_replicas: small(spec.min_replicas),
        agents: found.agents.values().filter(|agent| agent.is_alive).count(),
        total_bytes: found.agents.values().filter_map(|agent| agent.space).map(|(_, total)| total).sum(),
        class: if spec.storage_class.create { spec.storage_class.name.clone() } else { String::new() },
        volume: info.map(|info| Volume {
            id: info.id.to_string(),
            size_bytes: info.meta.doc.size.0 * BLOCK_BYTES,
            owner: info.owner.as_ref().map(|owner| owner.holder.host.clone()),
            epoch: info.epoch.as_ref().map(|epoch| epoch.doc.epoch.0),
            copies: found.health.volumes.get(&name).copied(),
            is_deleting: info.meta.doc.deleting,
        }),
    })
}

fn changed_conditions(before: &[torus_api::Condition], after: &[torus_api::Condition]) -> Vec<torus_api::Condition> {
    let is_new = |condition: &&torus_api::Condition| {
        !before
            .iter()
            .any(|old| old.kind == condition.kind && old.status == condition.status && old.reason == condition.reason)
    };
    after.iter().filter(is_new).cloned().collect()
}

/// The time in RFC 3339, to the second.
pub fn now() -> String {
    k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
