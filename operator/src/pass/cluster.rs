//! A TorusCluster in a pass.

use super::{Passes, Served, now};
use crate::apply;
use crate::metadata::{self, Look, sentence};
use k8s_openapi::api::core::v1::Secret as KubeSecret;
use kube::ResourceExt;
use kube::api::Api;
use std::collections::BTreeMap;
use std::sync::Arc;
use torus_api::{TorusCluster, TorusClusterSpec};
use torus_core::ids::{BLOCK_BYTES, Blocks};
use torus_plan::cluster::{self, Action, Observed, Obstacle, Recorded, Refusal, Secret, Store};
use torus_plan::contract::{FINALIZER_CLUSTER, LABEL_NODE, LABEL_TOPOLOGY};
use torus_plan::objects::Owner;
use torus_plan::status::cluster_status;
use torus_plan::story::{self, Told};

impl Passes {
    pub(super) async fn cluster(&mut self, cluster: &Arc<TorusCluster>, refused: Option<Refusal>) -> Served {
        let owner = Owner {
            name: cluster.name_any(),
            namespace: cluster.namespace().unwrap_or_default(),
            uid: cluster.uid().unwrap_or_default(),
        };
        let (secret, content) = self.secret(cluster).await;
        let mut seen = self.observe(cluster, &owner, refused, secret).await;
        // Where etcd is comes out of a first plan; what it says goes into the second.
        let first = cluster::plan(&owner, &cluster.spec, &self.settings.image, &seen);
        let endpoints =
            if first.endpoints.is_empty() { seen.recorded.endpoints.clone() } else { first.endpoints.clone() };
        let mut look = Arc::new(Look::default());
        if seen.refused.is_none() && !endpoints.is_empty() && !self.is_farewell {
            look = self.look(&cluster.spec, &endpoints, content).await;
            seen.store = look.store.clone();
        }
        let mut plan = cluster::plan(&owner, &cluster.spec, &self.settings.image, &seen);
        for action in plan.actions.clone() {
            let what = format!("{} {}", owner.uid, name_of(&action));
            let result = match self.resting(&what) {
                Some(why) => Err(why),
                None => {
                    let result = self.act(cluster, &owner, &action).await;
                    self.account(&what, &result, cluster.as_ref(), "ActionFailed").await;
                    result
                }
            };
            if let Err(message) = result {
                plan.failed = Some(Obstacle { reason: "ActionFailed", message });
                break;
            }
            if let Action::ReplacePod { name, .. } = action {
                let told = Told::normal("Updating", format!("pod {name} is replaced by one of the new revision"));
                self.teller.tell(cluster.as_ref(), told).await;
            }
        }
        if !plan.actions.contains(&Action::RemoveFinalizer) {
            let before = cluster.status.clone().unwrap_or_default();
            let generation = cluster.metadata.generation.unwrap_or(0);
            let status = cluster_status(&owner.name, &cluster.spec, generation, &seen, &plan, &before, &now());
            let api: Api<TorusCluster> = Api::namespaced(self.client.clone(), &owner.namespace);
            if self.write_status(&api, &owner.name, cluster.status.as_ref(), &status).await {
                self.teller.tell_all(cluster.as_ref(), story::of_cluster(&before, &status)).await;
            }
        }
        Served { cluster: cluster.clone(), is_ours: seen.cluster().is_some(), look }
    }

    async fn observe(
        &self,
        cluster: &TorusCluster,
        owner: &Owner,
        refused: Option<Refusal>,
        secret: Secret,
    ) -> Observed {
        let status = cluster.status.clone().unwrap_or_default();
        let is_deleting = cluster.metadata.deletion_timestamp.is_some();
        let is_farewell = self.is_farewell && owner.namespace == self.settings.namespace;
        Observed {
            objects: self.watched.of_cluster(&owner.name),
            pods: self.watched.pods_of(&owner.name),
            nodes: self.watched.nodes.state().iter().map(|node| super::observe::node(node)).collect(),
            secret,
            refused,
            store: Store::NotAsked,
            recorded: Recorded {
                cluster_id: status.cluster_id,
                endpoints: status.etcd.map(|etcd| etcd.endpoints).unwrap_or_default(),
            },
            has_finalizer: cluster.finalizers().iter().any(|name| name == FINALIZER_CLUSTER),
            is_deleting,
            is_namespace_deleting: is_farewell || is_deleting && self.is_namespace_deleting(&owner.namespace).await,
            volume_objects: if is_deleting { self.watched.volumes_in(owner) } else { Default::default() },
        }
    }

    /// The secret for etcd: what the plan looks at, and its content.
    pub(super) async fn secret(&self, cluster: &TorusCluster) -> (Secret, BTreeMap<String, Vec<u8>>) {
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
            Err(error) if apply::is_code(&error, 403) => (Secret::Forbidden, BTreeMap::new()),
            Err(error) => (Secret::Unread(sentence(&error)), BTreeMap::new()),
        }
    }

    pub(super) async fn look(
        &mut self,
        spec: &TorusClusterSpec,
        endpoints: &[String],
        secret: BTreeMap<String, Vec<u8>>,
    ) -> Arc<Look> {
        let before = self.connection.take();
        match metadata::connect(before, spec, endpoints, secret, &self.settings.directory).await {
            Ok(connection) => {
                let look = connection.look().await;
                self.connection = Some(connection);
                look
            }
            Err(why) => Arc::new(Look { store: Store::Failed(why), ..Look::default() }),
        }
    }

    async fn act(&self, cluster: &TorusCluster, owner: &Owner, action: &Action) -> Result<(), String> {
        let client = &self.client;
        let api: Api<TorusCluster> = Api::namespaced(client.clone(), &owner.namespace);
        let say = |error: apply::ApplyError| sentence(&error);
        match action {
            Action::AddFinalizer => apply::finalize(&api, cluster, FINALIZER_CLUSTER, true).await.map_err(say),
            Action::RemoveFinalizer => apply::finalize(&api, cluster, FINALIZER_CLUSTER, false).await.map_err(say),
            Action::Create(object) => apply::create(client, object).await.map_err(say),
            Action::Update(object) => apply::update(client, object).await.map_err(say),
            Action::Delete { key, uid } => apply::delete(client, key, uid).await.map_err(say),
            Action::ReplacePod { name, uid } => {
                apply::delete_pod(client, &owner.namespace, name, uid).await.map_err(say)
            }
            Action::ForgetTopology { node, id } => {
                apply::unlabel_node(client, node, LABEL_TOPOLOGY, id).await.map_err(say)
            }
            Action::LabelNode { node, value: Some(value) } => {
                apply::label_node(client, node, LABEL_NODE, value).await.map_err(say)
            }
            Action::LabelNode { node, value: None } => {
                apply::unlabel_node(client, node, LABEL_NODE, &owner.name).await.map_err(say)
            }
            Action::InitCluster { replicas, extent_bytes } => {
                let store = self.store()?;
                let blocks = (extent_bytes / BLOCK_BYTES) as Blocks;
                let made = torus_agent::metadata::init_cluster(&*store, blocks, *replicas).await;
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
}

fn name_of(action: &Action) -> String {
    match action {
        Action::Create(object) | Action::Update(object) => object.key.to_string(),
        other => format!("{other:?}"),
    }
}
