//! TorusVolumes in a pass.

use super::failover::fenced_from;
use super::{Passes, Served, now};
use crate::apply;
use crate::metadata::{self, sentence};
use crate::watched::{OfVolumes, version};
use kube::ResourceExt;
use kube::api::{Api, DynamicObject};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::task::JoinHandle;
use torus_agent::metadata::{NewVolume, VolumeError};
use torus_api::{AckMode, TorusVolume};
use torus_core::ids::{BLOCK_BYTES, Lba, VolumeId};
use torus_core::meta::MetadataStore;
use torus_core::meta::docs;
use torus_plan::cluster::{Obstacle, Store};
use torus_plan::contract::FINALIZER_VOLUME;
use torus_plan::story;
use torus_plan::volume::{self, Action, Identity, OpenPool, Pool, Seen, Volume};

/// What a volume looked like when there was nothing to do with it.
#[derive(PartialEq)]
pub(super) struct Settled {
    object: Option<String>,
    persistent_volume: Option<String>,
    claim: Option<String>,
    taken_by: Option<String>,
    pool: Pool,
}

/// Deletions of data that are under way, by volume.
#[derive(Default)]
pub(super) struct Deletions(Mutex<BTreeMap<VolumeId, JoinHandle<Result<(), String>>>>);

impl Deletions {
    /// Begins one, or says what came of one that was begun: `None` while it goes on. Asking agents may take as long as a silent one is
    /// waited for.
    async fn advance(&self, id: VolumeId, store: Arc<dyn MetadataStore>) -> Option<Result<(), String>> {
        let finished = {
            let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match running.get(&id) {
                None => {
                    let deleting = async move { metadata::delete_volume(&*store, id).await };
                    running.insert(id, tokio::spawn(deleting));
                    None
                }
                Some(task) if !task.is_finished() => None,
                Some(_) => running.remove(&id),
            }
        };
        Some(finished?.await.unwrap_or_else(|error| Err(error.to_string())))
    }
}

impl Passes {
    pub(super) async fn volume(&self, object: &Arc<TorusVolume>, objects: &OfVolumes, served: Option<&Served>) {
        let who = Identity::from(&**object);
        let persistent_volume = objects.persistent_volume(&who.uid);
        let claim = object.spec.claim.as_ref().and_then(|claim| objects.claim(&who.namespace, &claim.name));
        let holder = objects.holder(&who.volume_name(&object.spec)).filter(|holder| **holder != who);
        let looks = Settled {
            object: object.resource_version(),
            persistent_volume: persistent_volume.and_then(|found| version(found)),
            claim: claim.and_then(|found| version(found)),
            taken_by: holder.map(|holder| format!("{}/{}", holder.namespace, holder.name)),
            pool: pool(&who, object, served),
        };
        if !self.is_farewell && self.book().settled.get(&who.uid) == Some(&looks) {
            return;
        }
        if self.look_at_volume(&who, object, persistent_volume, claim, &looks).await {
            self.book().settled.insert(who.uid, looks);
        }
    }

    /// Whether there is nothing to do with it.
    async fn look_at_volume(
        &self,
        who: &Identity,
        object: &Arc<TorusVolume>,
        persistent_volume: Option<&Arc<DynamicObject>>,
        claim: Option<&Arc<DynamicObject>>,
        looks: &Settled,
    ) -> bool {
        let pool = looks.pool.clone();
        let json = |found: &Arc<DynamicObject>| serde_json::to_value(&**found).unwrap_or_default();
        let before = object.status.clone().unwrap_or_default();
        let is_deleting = object.metadata.deletion_timestamp.is_some();
        // Asked for only where it makes a difference.
        let is_namespace_deleting = is_deleting
            && matches!(pool, Pool::Starting | Pool::Failed(_))
            && self.is_namespace_deleting(&who.namespace).await;
        let seen = Seen {
            pool,
            persistent_volume: persistent_volume.map(json),
            claim: claim.map(json),
            recorded_id: before.volume_id.clone(),
            taken_by: looks.taken_by.clone(),
            has_finalizer: object.finalizers().iter().any(|name| name == FINALIZER_VOLUME),
            is_deleting,
            is_namespace_deleting,
            is_farewell: self.is_farewell,
        };
        let mut plan = volume::plan(who, &object.spec, &seen);
        for action in plan.actions.clone() {
            let what = format!("{} {}", who.uid, name_of(&action));
            let result = match self.resting(&what) {
                Some(why) => Err(why),
                None => {
                    let Some(result) = self.act_on_volume(object, &action).await else { continue };
                    self.account(&what, &result, object.as_ref(), "ActionFailed").await;
                    result
                }
            };
            if let Err(message) = result {
                let obstacle = Some(Obstacle { reason: "ActionFailed", message });
                if seen.is_deleting {
                    plan.held = obstacle
                } else {
                    plan.waits = obstacle
                }
                break;
            }
        }
        if plan.actions.contains(&Action::RemoveFinalizer) {
            return false;
        }
        let generation = object.metadata.generation.unwrap_or(0);
        let status = volume::volume_status(who, &object.spec, generation, &seen, &plan, &before, &now());
        let api: Api<TorusVolume> = Api::namespaced(self.client.clone(), &who.namespace);
        if self.write_status(&api, &who.name, object.status.as_ref(), &status).await {
            self.teller.tell_all(object.as_ref(), story::of_volume(&before, &status)).await;
        }
        // One that goes is looked at again: its namespace may be deleted later than it was, which is not watched.
        plan.actions.is_empty() && object.status.as_ref() == Some(&status) && !is_deleting
    }

    /// `None`: it is under way.
    async fn act_on_volume(&self, object: &TorusVolume, action: &Action) -> Option<Result<(), String>> {
        if let Action::DeleteVolume { id } = action {
            return match (parse(id), self.store()) {
                (Ok(id), Ok(store)) => self.deletions.advance(id, store).await,
                (Err(why), _) | (_, Err(why)) => Some(Err(why)),
            };
        }
        Some(self.act_at_once(object, action).await)
    }

    async fn act_at_once(&self, object: &TorusVolume, action: &Action) -> Result<(), String> {
        let client = &self.client;
        let api: Api<TorusVolume> = Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
        let say = |error: apply::ApplyError| sentence(&error);
        match action {
            Action::AddFinalizer => apply::finalize(&api, object, FINALIZER_VOLUME, true).await.map_err(say),
            Action::RemoveFinalizer => apply::finalize(&api, object, FINALIZER_VOLUME, false).await.map_err(say),
            Action::CreateVolume { name, blocks, replicas, min_replicas, ack_mode } => {
                let new = NewVolume {
                    name: name.clone(),
                    size: Lba(*blocks),
                    replicas: *replicas,
                    min_replicas: *min_replicas,
                    ack_mode: match ack_mode {
                        AckMode::Durable => docs::AckMode::Durable,
                        AckMode::Received => docs::AckMode::Received,
                    },
                };
                match torus_agent::metadata::create_volume(&*self.store()?, new).await {
                    // The name holds the object's uid: it is the one that was made before.
                    Ok(_) | Err(VolumeError::Exists { .. }) => Ok(()),
                    Err(error) => Err(sentence(&error)),
                }
            }
            Action::Resize { id, blocks } => {
                let resized = torus_agent::metadata::resize_volume(&*self.store()?, parse(id)?, Lba(*blocks)).await;
                resized.map(drop).map_err(|error| sentence(&error))
            }
            Action::Create(object) => apply::create(client, object).await.map_err(say),
            Action::GrowClaim { key, size } => apply::grow_claim(client, key, &size.0).await.map_err(say),
            Action::Delete { key, uid } => apply::delete(client, key, uid).await.map_err(say),
            Action::DeleteVolume { .. } => unreachable!("it goes on beside the passes"),
        }
    }
}

fn parse(id: &str) -> Result<VolumeId, String> {
    id.parse().map_err(|_| format!("{id:?} is no volume's id"))
}

/// Tells an action from others on the same volume.
fn name_of(action: &Action) -> String {
    match action {
        Action::Create(object) => object.key.to_string(),
        Action::Delete { key, .. } => format!("delete {key}"),
        other => format!("{other:?}"),
    }
}

/// The pool that a TorusVolume is in.
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
    let Some(found) = served.found() else {
        return match &served.look.store {
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
    let info = served.look.volumes.get(&name);
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
            used_bytes: info.used_blocks.map(|blocks| blocks * BLOCK_BYTES),
            fenced_from: fenced_from(info).map(str::to_owned),
            is_deleting: info.meta.doc.deleting,
        }),
    })
}
