//! TorusVolumes: [`plan`] says what is to be done for one, [`status`] what its status says. Both pure.
//!
//! Invariants:
//! 1. The volume in the pool is known by a name made of the object's uid: one that was made before a crash is found again, and never taken
//!    for another's.
//! 2. A volume that was there and is not any more is never made again: an empty disk in place of a database is worse than an error.
//! 3. The finalizer goes only when the claim, the PersistentVolume and, by the policy, the volume are gone; or when the pool itself is.
//! 4. A volume is deleted only while nobody has it open, and after nothing in Kubernetes speaks of it.
//! 5. Sizes only grow: a claim that was expanded by hand is not cut back.
//! 6. A volume belongs to one object (see [`holders`]), and no data is deleted but that of the object's own volume: the one that it
//!    recorded, or whose name holds its uid.

mod objects;
mod status;

pub use objects::{claim, persistent_volume};
pub use status::volume_status;

use crate::cluster::Obstacle;
use crate::objects::{Key, Object};
use serde_json::Value;
use std::collections::BTreeMap;
use torus_api::{AckMode, DeletionPolicy, Quantity, TorusVolume, TorusVolumeSpec, VolumeState};

/// Bytes of a block: volumes are whole blocks.
const BLOCK_BYTES: u64 = 4096;
/// Longest part of an object's name in the name of its volume: the uid, a hyphen and this make 63.
const NAME_PART_BYTES: usize = 26;

/// Which TorusVolume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid.
    pub uid: String,
}

impl Identity {
    /// The name of its volume in the pool.
    #[must_use]
    pub fn volume_name(&self, spec: &TorusVolumeSpec) -> String {
        spec.volume_name.clone().unwrap_or_else(|| {
            let part: String = self.name.chars().take(NAME_PART_BYTES).collect();
            format!("{part}-{}", self.uid)
        })
    }
}

impl From<&TorusVolume> for Identity {
    fn from(object: &TorusVolume) -> Self {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let meta = &object.metadata;
        Self { name: text(&meta.name), namespace: text(&meta.namespace), uid: text(&meta.uid) }
    }
}

/// Which object has which volume, by the volume's name: the one that it was made for, else one that recorded it, else the oldest. Times
/// have seconds only, and who comes second must never take what the first has.
#[must_use]
pub fn holders<'a>(objects: impl IntoIterator<Item = &'a TorusVolume>) -> BTreeMap<String, Identity> {
    let mut objects: Vec<_> = objects.into_iter().collect();
    objects.sort_by_cached_key(|object| {
        let has_recorded = object.status.as_ref().is_some_and(|status| status.volume_id.is_some());
        let since = object.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (object.spec.volume_name.is_some(), !has_recorded, since, object.metadata.uid.clone())
    });
    let mut holders = BTreeMap::new();
    for object in objects {
        let who = Identity::from(object);
        holders.entry(who.volume_name(&object.spec)).or_insert(who);
    }
    holders
}

/// What is known when a plan is made.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Seen {
    /// The pool.
    pub pool: Pool,
    /// The PersistentVolume, if there is one.
    pub persistent_volume: Option<Value>,
    /// The claim of the name that the spec gives, if there is one.
    pub claim: Option<Value>,
    /// The id that the status recorded.
    pub recorded_id: Option<String>,
    /// Another object that has the volume of this name: `namespace/name`.
    pub taken_by: Option<String>,
    /// Whether the finalizer is set.
    pub has_finalizer: bool,
    /// Whether somebody deleted the object.
    pub is_deleting: bool,
    /// Whether its namespace is being deleted.
    pub is_namespace_deleting: bool,
    /// Whether the operator goes for good, its own namespace being deleted.
    pub is_farewell: bool,
}

impl Seen {
    /// Whether the object has the volume of its name, or may adopt it.
    fn may_have(&self, volume: &Volume) -> bool {
        self.taken_by.is_none() && self.recorded_id.as_ref().is_none_or(|id| *id == volume.id)
    }

    /// The volume of the object's name, if it is the object's own.
    fn own<'a>(&self, spec: &TorusVolumeSpec, volume: Option<&'a Volume>) -> Option<&'a Volume> {
        let is_known = self.recorded_id.is_some() || spec.volume_name.is_none();
        volume.filter(|volume| is_known && self.may_have(volume))
    }
}

/// The pool that the volume is in.
#[derive(Clone, PartialEq, Debug, Default)]
pub enum Pool {
    /// There is no TorusCluster for it; the sentence says which was looked for.
    None(String),
    /// It does not answer now; the sentence says why.
    #[default]
    Starting,
    /// It does not answer; the sentence says why.
    Failed(String),
    /// It answers.
    Open(OpenPool),
}

/// A pool that answers.
#[derive(Clone, PartialEq, Debug)]
pub struct OpenPool {
    /// Copies by default.
    pub replicas: u8,
    /// The least copies by default.
    pub min_replicas: u8,
    /// Agents that run.
    pub agents: usize,
    /// Bytes that all disks have.
    pub total_bytes: u64,
    /// The class that claims are of; empty for none.
    pub class: String,
    /// The volume, if it is there.
    pub volume: Option<Volume>,
}

/// The volume as the pool has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Volume {
    /// Its id: 16 hexadecimal digits.
    pub id: String,
    /// Its size.
    pub size_bytes: u64,
    /// Who has it open.
    pub owner: Option<String>,
    /// Its ownership number.
    pub epoch: Option<u64>,
    /// Copies of its worst-off extent, and those asked for.
    pub copies: Option<crate::health::Copies>,
    /// Bytes of it that hold data, as its owner said last.
    pub used_bytes: Option<u64>,
    /// The dead node that the operator took it from, until somebody opens it again.
    pub fenced_from: Option<String>,
    /// Whether its deletion has begun.
    pub is_deleting: bool,
}

/// What to do.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Set the finalizer.
    AddFinalizer,
    /// Make the volume.
    CreateVolume {
        /// Its name.
        name: String,
        /// Its size in blocks.
        blocks: u64,
        /// Copies.
        replicas: u8,
        /// The least copies.
        min_replicas: u8,
        /// When writes are acknowledged.
        ack_mode: AckMode,
    },
    /// Grow the volume.
    Resize {
        /// Its id.
        id: String,
        /// Its new size in blocks.
        blocks: u64,
    },
    /// Make an object.
    Create(Object),
    /// Ask for more in a claim.
    GrowClaim {
        /// The claim.
        key: Key,
        /// Its new size.
        size: Quantity,
    },
    /// Delete an object, if it is the one that was seen.
    Delete {
        /// Which.
        key: Key,
        /// The one of that name that was seen.
        uid: String,
    },
    /// Delete the volume and its data.
    DeleteVolume {
        /// Its id.
        id: String,
    },
    /// Take the finalizer away.
    RemoveFinalizer,
}

/// What is to be done for one TorusVolume.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Plan {
    /// In order.
    pub actions: Vec<Action>,
    /// What it does.
    pub state: VolumeState,
    /// Why it is not ready.
    pub waits: Option<Obstacle>,
    /// What holds its deletion.
    pub held: Option<Obstacle>,
}

/// What is to be done for a TorusVolume.
#[must_use]
pub fn plan(who: &Identity, spec: &TorusVolumeSpec, seen: &Seen) -> Plan {
    if seen.is_farewell {
        return farewell(seen);
    }
    if seen.is_deleting {
        return deletion(who, spec, seen);
    }
    let waiting = |state, reason, message| Plan { state, waits: Some(Obstacle { reason, message }), ..Plan::default() };
    let pool = match &seen.pool {
        Pool::None(message) => return waiting(VolumeState::Pending, "NoCluster", message.clone()),
        Pool::Starting => return waiting(VolumeState::Pending, "Starting", "the pool is being made".into()),
        Pool::Failed(why) => {
            let state = if seen.recorded_id.is_some() { VolumeState::Available } else { VolumeState::Pending };
            return waiting(state, "PoolUnreachable", format!("the pool does not answer: {why}"));
        }
        Pool::Open(pool) => pool,
    };
    let blocks = match blocks(spec) {
        Ok(blocks) => blocks,
        Err(message) => return waiting(VolumeState::Failed, "BadSize", message),
    };
    if let Some(other) = &seen.taken_by {
        let message = format!(
            "the volume {:?} is that of TorusVolume {other}, and belongs to one only. Delete this one, or that one with deletionPolicy Retain",
            who.volume_name(spec)
        );
        return waiting(VolumeState::Failed, "VolumeTaken", message);
    }
    if !seen.has_finalizer {
        return Plan {
            actions: vec![Action::AddFinalizer],
            ..waiting(VolumeState::Pending, "Creating", "begun".into())
        };
    }
    let Some(volume) = &pool.volume else { return creation(who, spec, seen, pool, blocks) };
    if volume.is_deleting {
        let message = format!("the volume {} is being deleted in the pool", volume.id);
        return waiting(VolumeState::Failed, "VolumeDeleting", message);
    }
    if seen.recorded_id.as_ref().is_some_and(|id| *id != volume.id) {
        let message = format!(
            "the name belongs to volume {} now, and this object's was another: nothing is done to either",
            volume.id
        );
        return waiting(VolumeState::Failed, "OtherVolume", message);
    }
    let state = if volume.owner.is_some() { VolumeState::Attached } else { VolumeState::Available };
    let mut plan = Plan { state, ..Plan::default() };
    if volume.size_bytes < blocks * BLOCK_BYTES {
        if let Some(obstacle) = too_large(pool, replicas(spec, pool).0, blocks) {
            plan.waits = Some(obstacle);
            return plan;
        }
        plan.actions.push(Action::Resize { id: volume.id.clone(), blocks });
    }
    objects_of(who, spec, seen, pool, volume, &mut plan);
    plan
}

/// Nobody will be left to take the finalizer away: an object that keeps it could never go. Its data stays where it is, and an operator
/// that comes later sets the finalizer again.
fn farewell(seen: &Seen) -> Plan {
    let waits = Obstacle { reason: "NoOperator", message: "the operator's namespace is being deleted".into() };
    let actions = if seen.has_finalizer { vec![Action::RemoveFinalizer] } else { Vec::new() };
    Plan { actions, waits: Some(waits), ..Plan::default() }
}

fn blocks(spec: &TorusVolumeSpec) -> Result<u64, String> {
    match spec.size.bytes() {
        Ok(0) => Err("a volume of no size cannot be made: give spec.size".into()),
        Ok(bytes) => Ok(bytes.div_ceil(BLOCK_BYTES)),
        Err(error) => Err(format!("spec.size: {error}")),
    }
}

/// Copies, and the least of them.
fn replicas(spec: &TorusVolumeSpec, pool: &OpenPool) -> (u8, u8) {
    let given = |value: Option<i32>| value.and_then(|value| u8::try_from(value).ok());
    let replicas = given(spec.replicas).unwrap_or(pool.replicas);
    (replicas, given(spec.min_replicas).unwrap_or(pool.min_replicas).min(replicas))
}

/// Why the pool cannot hold so much, if so. Thin volumes may promise more than there is together, but none more than there is in all.
fn too_large(pool: &OpenPool, replicas: u8, blocks: u64) -> Option<Obstacle> {
    let asked = u128::from(blocks) * u128::from(BLOCK_BYTES) * u128::from(replicas);
    (asked > u128::from(pool.total_bytes)).then(|| Obstacle {
        reason: "LargerThanPool",
        message: format!(
            "{replicas} copies of {} do not fit the pool, whose disks have {}: ask for less, or add agents",
            Quantity::rounded(blocks.saturating_mul(BLOCK_BYTES)),
            Quantity::rounded(pool.total_bytes)
        ),
    })
}

fn creation(who: &Identity, spec: &TorusVolumeSpec, seen: &Seen, pool: &OpenPool, blocks: u64) -> Plan {
    let failed = |reason, message| Plan {
        state: VolumeState::Failed,
        waits: Some(Obstacle { reason, message }),
        ..Plan::default()
    };
    if let Some(id) = &seen.recorded_id {
        let message = format!(
            "the volume {id} is not in the pool any more: somebody deleted it, or etcd was restored from before it. It is not made again; delete this object to give it up"
        );
        return failed("VolumeLost", message);
    }
    if let Some(name) = &spec.volume_name {
        let message =
            format!("there is no volume {name:?} to adopt: correct spec.volumeName, or leave it out to make a new one");
        return failed("VolumeMissing", message);
    }
    let (replicas, min_replicas) = replicas(spec, pool);
    if let Some(obstacle) = too_large(pool, replicas, blocks) {
        return Plan { state: VolumeState::Failed, waits: Some(obstacle), ..Plan::default() };
    }
    if pool.agents < usize::from(replicas) {
        let message = format!(
            "{replicas} copies need as many agents, and {} run: wait, ask for fewer copies, or add agents",
            pool.agents
        );
        return Plan { waits: Some(Obstacle { reason: "TooFewAgents", message }), ..Plan::default() };
    }
    let create =
        Action::CreateVolume { name: who.volume_name(spec), blocks, replicas, min_replicas, ack_mode: spec.ack_mode };
    let waits = Some(Obstacle { reason: "Creating", message: "the volume is being made".into() });
    Plan { actions: vec![create], waits, ..Plan::default() }
}

/// The PersistentVolume and the claim.
fn objects_of(who: &Identity, spec: &TorusVolumeSpec, seen: &Seen, pool: &OpenPool, volume: &Volume, plan: &mut Plan) {
    let Some(asked) = &spec.claim else { return };
    let waits = |reason, message| Some(Obstacle { reason, message });
    if seen.persistent_volume.is_none() {
        plan.actions.push(Action::Create(persistent_volume(who, spec, &volume.id, &pool.class)));
    }
    let made = claim(who, spec, &pool.class);
    let Some(made) = made else { return };
    match &seen.claim {
        None => plan.actions.push(Action::Create(made)),
        Some(found) if !is_ours(who, found) => {
            let message = format!(
                "there is a claim {:?} in {} already, which is not of this object: rename spec.claim, or delete that one",
                asked.name, who.namespace
            );
            plan.waits = waits("ClaimExists", message);
        }
        Some(found) => {
            let has = |path: &str| found.pointer(path).and_then(Value::as_str).map(|text| Quantity(text.into()));
            let requested = has("/spec/resources/requests/storage").and_then(|size| size.bytes().ok());
            let is_bound = found["status"]["phase"] == "Bound";
            if is_bound && requested.is_some_and(|bytes| bytes < spec.size.bytes().unwrap_or(0)) {
                plan.actions.push(Action::GrowClaim { key: made.key, size: spec.size.clone() });
            }
            if !is_bound {
                plan.waits = waits("Binding", format!("the claim {:?} is not bound yet", asked.name));
            }
        }
    }
    if plan.waits.is_none() && (seen.claim.is_none() || seen.persistent_volume.is_none()) {
        plan.waits = waits("Binding", format!("the claim {:?} is being made", asked.name));
    }
}

fn is_ours(who: &Identity, found: &Value) -> bool {
    found["metadata"]["labels"][crate::contract::LABEL_VOLUME] == *who.uid
}

/// A TorusVolume that is to go: claim, PersistentVolume, volume, in this order.
fn deletion(who: &Identity, spec: &TorusVolumeSpec, seen: &Seen) -> Plan {
    let mut plan = Plan { state: VolumeState::Deleting, ..Plan::default() };
    if !seen.has_finalizer {
        return plan;
    }
    let hold = |reason, message| Some(Obstacle { reason, message });
    let delete = |key: Key, found: &Value| {
        let is_going = !found["metadata"]["deletionTimestamp"].is_null();
        let uid = found["metadata"]["uid"].as_str().unwrap_or_default().into();
        (!is_going).then_some(Action::Delete { key, uid })
    };
    if let (Some(found), Some(key)) = (&seen.claim, objects::claim_key(who, spec))
        && is_ours(who, found)
    {
        plan.actions.extend(delete(key, found));
        let name = found["metadata"]["name"].as_str().unwrap_or_default();
        plan.held = hold(
            "ClaimInUse",
            format!(
                "the claim {name:?} is still there: pods that use it keep it. Delete them, and the rest follows by itself"
            ),
        );
        return plan;
    }
    if seen.is_namespace_deleting && matches!(seen.pool, Pool::Starting | Pool::Failed(_)) {
        // Waiting for the pool would hold the namespace for as long. The data stays where it is, and the PersistentVolume until its
        // driver answers: neither is in the namespace.
        if let Some(found) = &seen.persistent_volume {
            plan.actions.extend(delete(objects::persistent_volume_key(who), found));
        }
        plan.actions.push(Action::RemoveFinalizer);
        return plan;
    }
    let own = if let Pool::Open(pool) = &seen.pool { seen.own(spec, pool.volume.as_ref()) } else { None };
    if let Some(Volume { owner: Some(owner), epoch, .. }) = own {
        let epoch = epoch.unwrap_or(0);
        plan.held = hold(
            "Attached",
            format!("{owner} has the volume open (epoch {epoch}). Delete the pods that use it, or detach it there"),
        );
        return plan;
    }
    if let Some(found) = &seen.persistent_volume {
        plan.actions.extend(delete(objects::persistent_volume_key(who), found));
        plan.held =
            hold("VolumeInUse", "the PersistentVolume is still there: it goes when no node has it attached".into());
        return plan;
    }
    let is_kept = spec.deletion_policy == DeletionPolicy::Retain;
    match &seen.pool {
        _ if is_kept => plan.actions.push(Action::RemoveFinalizer),
        // With the pool's TorusCluster gone, nobody is left who could delete anything; disks that were kept still hold the data.
        Pool::None(_) => plan.actions.push(Action::RemoveFinalizer),
        Pool::Open(_) => match own {
            None => plan.actions.push(Action::RemoveFinalizer),
            Some(volume) => {
                plan.actions.push(Action::DeleteVolume { id: volume.id.clone() });
                plan.held = hold("DeletingData", format!("the data of volume {} is being deleted", volume.id));
            }
        },
        Pool::Starting if seen.recorded_id.is_none() => plan.actions.push(Action::RemoveFinalizer),
        Pool::Starting | Pool::Failed(_) => {
            let why = if let Pool::Failed(why) = &seen.pool { why } else { "it is being made" };
            plan.held = hold(
                "PoolUnreachable",
                format!(
                    "the volume cannot be deleted while the pool does not answer: {why}. To leave the data where it is, set spec.deletionPolicy to Retain"
                ),
            );
        }
    }
    plan
}

#[cfg(test)]
mod tests;
