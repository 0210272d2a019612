//! The metadata store of a cluster: opened with what the spec and the secret say, read once for each pass.

use kube::core::Status;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use torus_agent::metadata::{self, AgentInfo, MetaConfig, TlsFiles, VolumeInfo};
use torus_agent::owner::{self, OwnerError};
use torus_api::TorusClusterSpec;
use torus_core::ids::{AgentId, BLOCK_BYTES, VolumeId};
use torus_core::log::recover::OpenError;
use torus_core::meta::docs::{ExtentDoc, Holder, decode};
use torus_core::meta::{MetaOp, MetaReply, MetadataStore, Revision, keys};
use torus_plan::cluster::{Agent, Ring, Store, StoreCluster};
use torus_plan::contract::{FENCED_FROM, FENCER, SECRET_CA, SECRET_CERT, SECRET_KEY, SECRET_PASSWORD, SECRET_USER};
use torus_plan::health::{VolumeExtents, health};

/// How long agents are waited for that should refuse a dead node's writes. Longer than the read leases that have to run out.
const FENCE_PATIENCE: Duration = Duration::from_secs(15);

/// A store that was opened, and with what.
pub struct Connection {
    config: MetaConfig,
    secret: BTreeMap<String, Vec<u8>>,
    /// The store.
    pub store: Arc<dyn MetadataStore>,
    /// What the last look found, and at which revision of the store.
    last: Mutex<Option<(Revision, Arc<Look>)>>,
}

/// What one look at a store found.
#[derive(Default)]
pub struct Look {
    /// For the plan of the cluster.
    pub store: Store,
    /// Its volumes, by name.
    pub volumes: BTreeMap<String, VolumeInfo>,
}

impl Connection {
    /// All that plans look at. One small question where nothing was written since the last look: signs of life that run out are
    /// writes, too.
    pub async fn look(&self) -> Arc<Look> {
        // The revision is asked for first: what is written between that and the look is looked at again.
        let revision = match revision(&*self.store).await {
            Ok(revision) => revision,
            Err(why) => return Arc::new(Look { store: Store::Failed(why), ..Look::default() }),
        };
        if let Some((at, look)) = &*self.last()
            && *at == revision
        {
            return look.clone();
        }
        let look = match read(&*self.store).await {
            Ok(look) => Arc::new(look),
            Err(why) => return Arc::new(Look { store: Store::Failed(why), ..Look::default() }),
        };
        *self.last() = Some((revision, look.clone()));
        look
    }

    fn last(&self) -> MutexGuard<'_, Option<(Revision, Arc<Look>)>> {
        // One value, replaced as a whole.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// At which revision the store is.
async fn revision(store: &dyn MetadataStore) -> Result<Revision, String> {
    match store.execute(MetaOp::List(keys::CLUSTER.into())).await.map_err(|error| sentence(&error))? {
        MetaReply::Listed(_, revision) => Ok(revision),
        other => Err(format!("the metadata store answers a list with {other:?}")),
    }
}

/// An error and what caused it, in one line.
pub fn sentence(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        let (said, source) = match refusal(cause) {
            // The apiserver's own words: the client shows them three times, once as it would show them to whom works on it.
            Some(status) => (status.message.clone(), None),
            None => (cause.to_string(), cause.source()),
        };
        text = if text.is_empty() { said } else { format!("{text}: {said}") };
        next = source;
    }
    text
}

/// What the apiserver said, where an error is that it refused.
fn refusal<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Status> {
    let boxed = || error.downcast_ref::<Box<kube::Error>>().map(AsRef::as_ref);
    match error.downcast_ref::<kube::Error>().or_else(boxed)? {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

/// The store of a cluster: the one from before if nothing changed, else a new connection.
///
/// # Errors
/// A sentence that says why there is none.
pub async fn connect(
    before: Option<Arc<Connection>>,
    spec: &TorusClusterSpec,
    endpoints: &[String],
    secret: BTreeMap<String, Vec<u8>>,
    directory: &Path,
) -> Result<Arc<Connection>, String> {
    let url = endpoints.join(",").parse().map_err(|error: metadata::ConfigError| sentence(&error))?;
    let mut config = MetaConfig::new(url);
    if let Some(external) = &spec.etcd.external {
        config.prefix.clone_from(&external.prefix);
        let text = |key: &str| secret.get(key).map(|bytes| String::from_utf8_lossy(bytes).trim_end().to_owned());
        config.user = text(SECRET_USER).zip(text(SECRET_PASSWORD));
        if endpoints.iter().all(|url| url.starts_with("https://")) {
            config.tls = Some(tls_files(&secret, directory)?);
        }
    }
    if let Some(before) = before.filter(|before| before.config == config && before.secret == secret) {
        return Ok(before);
    }
    let store = metadata::connect(&config).await.map_err(|error| sentence(&error))?;
    Ok(Arc::new(Connection { config, secret, store, last: Mutex::default() }))
}

/// The parts of a secret as files that nobody else can read, which is how the client takes them.
fn tls_files(secret: &BTreeMap<String, Vec<u8>>, directory: &Path) -> Result<TlsFiles, String> {
    let file = |key: &str| -> Result<Option<PathBuf>, String> {
        let Some(bytes) = secret.get(key) else { return Ok(None) };
        let path = directory.join(key);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let written = options.open(&path).and_then(|mut file| file.write_all(bytes));
        written.map_err(|error| format!("cannot write {path:?}: {error}"))?;
        Ok(Some(path))
    };
    let ca = file(SECRET_CA)?.ok_or_else(|| format!("the secret for etcd has no {SECRET_CA}"))?;
    let identity = file(SECRET_CERT)?.zip(file(SECRET_KEY)?);
    Ok(TlsFiles { ca, identity })
}

async fn read(store: &dyn MetadataStore) -> Result<Look, String> {
    let cluster = match metadata::load_cluster(store).await {
        Ok(cluster) => cluster,
        Err(metadata::ClusterError::None { .. }) => return Ok(Look { store: Store::Empty, ..Look::default() }),
        Err(error) => return Err(sentence(&error)),
    };
    let agents = metadata::list_agents(store).await.map_err(|error| sentence(&error))?;
    let ring = metadata::load_ring(store).await.map_err(|error| sentence(&error))?;
    let (volumes, _) = metadata::list_volumes(store).await.map_err(|error| sentence(&error))?;
    let members = extents(store).await?;
    let in_ring: BTreeSet<AgentId> =
        ring.iter().flat_map(|ring| ring.doc.now.agents.iter().map(|agent| agent.id)).collect();
    let named = |info: &AgentInfo| (info.id, info.doc.doc.name.clone());
    let of_ring = agents.iter().filter(|info| in_ring.contains(&info.id)).map(named).collect();
    let is_sound = |info: &&AgentInfo| info.alive.as_ref().is_some_and(|alive| alive.failed_disks.is_empty());
    let sound = agents.iter().filter(is_sound).map(|info| info.id).collect();
    let named: Vec<_> = volumes.iter().map(|volume| extents_of(volume, &members)).collect();
    let slot_bytes = u64::from(cluster.extent_blocks) * BLOCK_BYTES;
    let found = StoreCluster {
        id: cluster.id.to_string(),
        health: health(&of_ring, &sound, &named),
        agents: agents.iter().map(|info| (info.doc.doc.name.clone(), agent(info, slot_bytes))).collect(),
        ring: ring.map(|ring| Ring {
            kind: ring.doc.now.kind.clone(),
            replicas: ring.doc.now.replicas,
            spread: ring.doc.now.spread,
            agents: ring.doc.now.agents.len(),
        }),
        volumes: volumes.iter().map(|volume| volume.meta.doc.name.clone()).collect(),
    };
    let volumes = volumes.into_iter().map(|volume| (volume.meta.doc.name.clone(), volume)).collect();
    Ok(Look { store: Store::Cluster(found), volumes })
}

fn agent(info: &AgentInfo, slot_bytes: u64) -> Agent {
    let alive = info.alive.as_ref();
    Agent {
        id: info.id.to_string(),
        is_alive: alive.is_some(),
        version: alive.map(|alive| alive.version.clone()),
        failed_disks: alive.map_or(0, |alive| alive.failed_disks.len()),
        space: alive.map(|alive| {
            let (free, total) = (u64::from(alive.space.free), u64::from(alive.space.total));
            (total.saturating_sub(free) * slot_bytes, total * slot_bytes)
        }),
    }
}

/// The members of the extents that each volume has registered.
async fn extents(store: &dyn MetadataStore) -> Result<BTreeMap<VolumeId, Vec<Vec<AgentId>>>, String> {
    let mut members: BTreeMap<VolumeId, Vec<Vec<AgentId>>> = BTreeMap::new();
    let listed = store.execute(MetaOp::List(keys::VOLUMES.into())).await.map_err(|error| sentence(&error))?;
    let MetaReply::Listed(entries, _) = listed else { return Ok(members) };
    for entry in entries {
        let mut parts = entry.key.strip_prefix(keys::VOLUMES).unwrap_or_default().split('/');
        if let (Some(id), Some("x")) = (parts.next().and_then(|id| id.parse().ok()), parts.next()) {
            let doc: ExtentDoc = decode(&entry.key, &entry.value).map_err(|error| sentence(&error))?;
            members.entry(id).or_default().push(doc.members);
        }
    }
    Ok(members)
}

fn extents_of(volume: &VolumeInfo, members: &BTreeMap<VolumeId, Vec<Vec<AgentId>>>) -> VolumeExtents<AgentId> {
    let of_head = volume.head.iter().flat_map(|head| head.extents.iter().map(|extent| extent.members.clone()));
    VolumeExtents {
        name: volume.meta.doc.name.clone(),
        replicas: volume.meta.doc.replicas,
        members: members.get(&volume.id).cloned().unwrap_or_default().into_iter().chain(of_head).collect(),
        has_checkpoint: volume.head.is_some(),
    }
}

/// What came of taking a volume from a node.
pub struct Fenced {
    /// The new epoch.
    pub epoch: u64,
    /// How far it is refused by agents, for people.
    pub how: String,
}

/// Takes a volume from `node`, which is dead: raises its epoch, and has the agents refuse what is older. `None`: somebody else was
/// faster.
///
/// # Errors
/// A sentence that says why it may not have happened.
pub async fn fence(store: Arc<dyn MetadataStore>, volume: &VolumeInfo, node: &str) -> Result<Option<Fenced>, String> {
    let holder = Holder { host: FENCER.into(), pid: std::process::id(), serves: format!("{FENCED_FROM}{node}") };
    match owner::fence_volume(store.clone(), volume, holder, FENCE_PATIENCE).await {
        Ok(fenced) => Ok(Some(Fenced {
            epoch: fenced.epoch.0,
            how: format!("acknowledged by {}/{} agents", fenced.acknowledged, fenced.asked),
        })),
        Err(OwnerError::Open(OpenError::Overtaken { .. } | OpenError::NotFound(_) | OpenError::Deleting(_))) => {
            Ok(None)
        }
        // The epoch is raised, so that the node registers nothing more. What it can still write, nobody will ever read: the next
        // owner has the agents refuse it before it serves, and cannot serve without them.
        Err(OwnerError::Open(error @ OpenError::Missing { .. })) => {
            let found = metadata::load_volume(&*store, volume.id).await.map_err(|error| sentence(&error))?;
            let epoch = found.and_then(|found| found.epoch).filter(|epoch| epoch.doc.holder.host == FENCER);
            let how = format!("not acknowledged by agents yet ({error}): they do when it is opened next");
            Ok(epoch.map(|epoch| Fenced { epoch: epoch.doc.epoch.0, how }))
        }
        Err(error) => Err(sentence(&error)),
    }
}

/// Deletes a volume that nobody has open. May be repeated after an interruption.
///
/// # Errors
/// A sentence that says what is left, and where.
pub async fn delete_volume(store: &dyn MetadataStore, id: VolumeId) -> Result<(), String> {
    let found = metadata::load_volume(store, id).await.map_err(|error| sentence(&error))?;
    let Some(volume) = found else { return Ok(()) };
    let removed = owner::delete_volume(store, &volume, &[], false).await.map_err(|error| sentence(&error))?;
    let left = removed.iter().filter_map(|agent| Some(format!("agent {:?} {}", agent.name, agent.left.as_ref()?)));
    let left: Vec<_> = left.collect();
    if left.is_empty() { Ok(()) } else { Err(format!("copies may be left: {}", left.join("; "))) }
}
