//! Volumes as they are asked for: create, find, list, grow, delete. Who owns one and what is in it is the business of its
//! owner (`torus_core::log`); here it is only shown.
//!
//! Deletion is in two steps, so that nothing is left over and nothing is deleted without proof: [`mark_deleting`] makes the volume
//! unopenable and raises its epoch, under which its extents are then deleted on the agents; [`remove_volume_keys`] forgets it.
//!
//! Invariants:
//! 1. A name points to exactly one volume: `names/<name>` and `volumes/<id>/meta` are written in one transaction.
//! 2. A size only grows.
//! 3. Once marked, no claim of an opener that began before can succeed: the mark raises the epoch that the claim compares.

use super::access::{AccessError, Outcome, Versioned, get, list_raw, put, transact};
use std::collections::BTreeMap;
use torus_core::ids::{Epoch, Lba, VolumeId};
use torus_core::limits::{META_TXN_OPS_MAX, REPLICAS_MAX, VOLUME_BLOCKS_MAX};
use torus_core::meta::docs::{
    AckMode, EpochDoc, HeadDoc, Holder, NameDoc, OwnerDoc, PublishedDoc, UsedDoc, VolumeDoc, decode,
};
use torus_core::meta::{Compare, Entry, MetadataStore, Revision, Write, keys};

/// How often a change starts over because somebody else changed the same volume.
const TRIES: usize = 10;

/// Why something was not done to a volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The name breaks the rules.
    #[error(
        "{0:?} is not a volume's name: 1 to 63 of a-z, 0-9, dot, underscore and hyphen, beginning with a letter or a digit"
    )]
    Name(String),
    /// The size is out of bounds.
    #[error("a volume of {0} blocks of 4 KiB is out of bounds: from 1 to {VOLUME_BLOCKS_MAX} (64 TiB)")]
    Size(u64),
    /// The numbers of copies do not fit.
    #[error(
        "{replicas} replicas, of which at least {min_replicas}, do not work: from 1 to {REPLICAS_MAX}, and the least is \
         no more than all"
    )]
    Replicas {
        /// Copies asked for.
        replicas: u8,
        /// The least.
        min_replicas: u8,
    },
    /// The name is in use.
    #[error("cannot create volume {name:?}: the name belongs to volume {id}. Choose another, or use that one")]
    Exists {
        /// The name.
        name: String,
        /// Whose it is.
        id: VolumeId,
    },
    /// There is no such volume.
    #[error("there is no volume {0:?}. `torusctl volume list` shows those there are")]
    NotFound(String),
    /// Its deletion has begun.
    #[error("volume {0:?} is being deleted. Run `torusctl volume delete` again if that was interrupted")]
    Deleting(String),
    /// Its deletion has not begun.
    #[error("cannot forget volume {0:?}: it is not marked for deletion")]
    NotDeleting(String),
    /// A size can only grow.
    #[error("cannot resize volume {name:?} to {asked} blocks of 4 KiB: it has {now} and cannot shrink")]
    Shrink {
        /// The volume.
        name: String,
        /// Its size.
        now: Lba,
        /// What was asked for.
        asked: Lba,
    },
    /// Somebody has it open.
    #[error(
        "cannot delete volume {name:?}: {} (process {}) holds it (epoch {epoch}). Stop it there first, or pass \
         --fence to take the volume from it",
        holder.host, holder.pid
    )]
    Held {
        /// The volume.
        name: String,
        /// Who.
        holder: Holder,
        /// In which epoch.
        epoch: Epoch,
    },
    /// There is no cluster to make it in.
    #[error("{0} holds no Torus cluster. Run `torusctl init`, or check --etcd and --etcd-prefix")]
    NoCluster(String),
    /// Others kept changing it.
    #[error("volume {0:?} keeps being changed by others at the same time. Try again")]
    Busy(String),
    /// The store failed.
    #[error("cannot {doing} volume {volume:?}{}", if source.is_unknown() {
        ": it may have happened or not. Look with `torusctl volume list`, then try again"
    } else { "" })]
    Access {
        /// What was being done.
        doing: &'static str,
        /// To which volume.
        volume: String,
        /// Why it failed.
        #[source]
        source: AccessError,
    },
}

fn failed(doing: &'static str, volume: impl ToString) -> impl FnOnce(AccessError) -> VolumeError {
    let volume = volume.to_string();
    move |source| VolumeError::Access { doing, volume, source }
}

/// What a new volume is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewVolume {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size: Lba,
    /// Copies of each extent.
    pub replicas: u8,
    /// Copies without which nothing is acknowledged.
    pub min_replicas: u8,
    /// When a write is acknowledged.
    pub ack_mode: AckMode,
}

/// All that the store knows of a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeInfo {
    /// Its id.
    pub id: VolumeId,
    /// What was asked for.
    pub meta: Versioned<VolumeDoc>,
    /// Who opened it last; `None`: nobody ever did.
    pub epoch: Option<Versioned<EpochDoc>>,
    /// Who has it open, as far as the lease tells.
    pub owner: Option<OwnerDoc>,
    /// The host that may attach it, if a control plane has said so.
    pub published: Option<PublishedDoc>,
    /// Its newest checkpoint.
    pub head: Option<HeadDoc>,
    /// Extents registered since that checkpoint.
    pub extents: usize,
    /// Blocks that hold data, as an owner said last.
    pub used_blocks: Option<u64>,
}

/// Checks a volume's name.
///
/// # Errors
/// [`VolumeError::Name`], which says the rules.
pub fn check_name(name: &str) -> Result<(), VolumeError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    let sound = (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| plain(*b) || b"._-".contains(b))
        && bytes.first().is_some_and(|b| plain(*b));
    if sound { Ok(()) } else { Err(VolumeError::Name(name.chars().take(100).collect())) }
}

fn check_size(size: Lba) -> Result<(), VolumeError> {
    if (1..=VOLUME_BLOCKS_MAX).contains(&size.0) { Ok(()) } else { Err(VolumeError::Size(size.0)) }
}

/// Makes a volume. Nothing is written to any agent: a volume is thin.
///
/// # Errors
/// [`VolumeError::Exists`] when the name is taken; others for bad parameters or a failing store.
pub async fn create_volume(store: &dyn MetadataStore, new: NewVolume) -> Result<VolumeId, VolumeError> {
    let NewVolume { name, size, replicas, min_replicas, ack_mode } = new;
    check_name(&name)?;
    check_size(size)?;
    if min_replicas < 1 || min_replicas > replicas || usize::from(replicas) > REPLICAS_MAX {
        return Err(VolumeError::Replicas { replicas, min_replicas });
    }
    let id = VolumeId(rand::random_range(1..=u64::MAX));
    let doc = VolumeDoc { name: name.clone(), size, replicas, min_replicas, ack_mode, deleting: false };
    let (name_key, meta_key) = (keys::name(&name), keys::volume_meta(id));
    let when = vec![
        Compare::Present(keys::CLUSTER.into()),
        Compare::Absent(name_key.clone()),
        Compare::Absent(meta_key.clone()),
    ];
    let then = vec![put(name_key.clone(), &NameDoc { volume: id }), put(meta_key, &doc)];
    let outcome = transact(store, when, then).await;
    match outcome.map_err(failed("create", &name))? {
        Outcome::Committed(_) => Ok(id),
        Outcome::Conflict => {
            let holder = get::<NameDoc>(store, name_key).await.map_err(failed("look up", &name))?;
            Err(match holder {
                Some(holder) => VolumeError::Exists { name, id: holder.doc.volume },
                None => VolumeError::NoCluster(store.describe()),
            })
        }
    }
}

/// The volume of this name or, if no volume has that name, of this id.
///
/// # Errors
/// [`VolumeError::NotFound`] when there is neither.
pub async fn find_volume(store: &dyn MetadataStore, name_or_id: &str) -> Result<VolumeInfo, VolumeError> {
    let not_found = || VolumeError::NotFound(name_or_id.chars().take(100).collect());
    if check_name(name_or_id).is_ok() {
        let named = get::<NameDoc>(store, keys::name(name_or_id)).await.map_err(failed("look up", name_or_id))?;
        if let Some(named) = named {
            return load_volume(store, named.doc.volume).await?.ok_or_else(not_found);
        }
    }
    match name_or_id.parse() {
        Ok(id) => load_volume(store, id).await?.ok_or_else(not_found),
        Err(_) => Err(not_found()),
    }
}

/// The volume of this id, if there is one.
///
/// # Errors
/// When the store fails, or holds what is no volume.
pub async fn load_volume(store: &dyn MetadataStore, id: VolumeId) -> Result<Option<VolumeInfo>, VolumeError> {
    let (entries, _) = list_raw(store, &keys::volume(id)).await.map_err(failed("read", id))?;
    read_volume(id, &entries).map_err(failed("read", id))
}

/// All volumes, by name, and the revision at which this was so.
///
/// # Errors
/// When the store fails, or holds what is no volume.
pub async fn list_volumes(store: &dyn MetadataStore) -> Result<(Vec<VolumeInfo>, Revision), VolumeError> {
    let (entries, revision) = list_raw(store, keys::VOLUMES).await.map_err(failed("list", "*"))?;
    let mut by_volume: BTreeMap<VolumeId, Vec<Entry>> = BTreeMap::new();
    for entry in entries {
        let id = entry.key.strip_prefix(keys::VOLUMES).and_then(|rest| rest.split('/').next()?.parse().ok());
        if let Some(id) = id {
            by_volume.entry(id).or_default().push(entry);
        }
    }
    let mut volumes = Vec::new();
    for (id, entries) in by_volume {
        volumes.extend(read_volume(id, &entries).map_err(failed("read", id))?);
    }
    volumes.sort_by(|a, b| a.meta.doc.name.cmp(&b.meta.doc.name));
    Ok((volumes, revision))
}

/// A volume from all of its keys; `None` when its `meta` is not among them.
fn read_volume(id: VolumeId, entries: &[Entry]) -> Result<Option<VolumeInfo>, AccessError> {
    let find = |key: String| entries.iter().find(move |entry| entry.key == key);
    let Some(meta) = find(keys::volume_meta(id)) else { return Ok(None) };
    let meta = Versioned { doc: decode(&meta.key, &meta.value)?, revision: meta.modified };
    let epoch = match find(keys::volume_epoch(id)) {
        Some(entry) => Some(Versioned { doc: decode(&entry.key, &entry.value)?, revision: entry.modified }),
        None => None,
    };
    let owner = find(keys::volume_owner(id)).map(|entry| decode(&entry.key, &entry.value)).transpose()?;
    let published = find(keys::volume_published(id)).map(|entry| decode(&entry.key, &entry.value)).transpose()?;
    let head = find(keys::volume_head(id)).map(|entry| decode(&entry.key, &entry.value)).transpose()?;
    let used: Option<UsedDoc> =
        find(keys::volume_used(id)).map(|entry| decode(&entry.key, &entry.value)).transpose()?;
    let used_blocks = used.map(|used| used.blocks);
    let extents = entries.iter().filter(|entry| entry.key.starts_with(&keys::extents(id))).count();
    Ok(Some(VolumeInfo { id, meta, epoch, owner, published, head, extents, used_blocks }))
}

/// Grows a volume to `size`; the same size again is no error.
///
/// # Errors
/// [`VolumeError::Shrink`] for a smaller size, [`VolumeError::Deleting`], and others.
pub async fn resize_volume(store: &dyn MetadataStore, id: VolumeId, size: Lba) -> Result<VolumeDoc, VolumeError> {
    check_size(size)?;
    let key = keys::volume_meta(id);
    for _ in 0..TRIES {
        let found = get::<VolumeDoc>(store, key.clone()).await.map_err(failed("read", id))?;
        let Versioned { doc, revision } = found.ok_or_else(|| VolumeError::NotFound(id.to_string()))?;
        if doc.deleting {
            return Err(VolumeError::Deleting(doc.name));
        }
        if size < doc.size {
            return Err(VolumeError::Shrink { name: doc.name, now: doc.size, asked: size });
        }
        if size == doc.size {
            return Ok(doc);
        }
        let grown = VolumeDoc { size, ..doc };
        let when = vec![Compare::Unchanged(key.clone(), revision)];
        let outcome = transact(store, when, vec![put(key.clone(), &grown)]).await;
        if let Outcome::Committed(_) = outcome.map_err(failed("resize", &grown.name))? {
            return Ok(grown);
        }
    }
    Err(VolumeError::Busy(id.to_string()))
}

/// Begins the deletion of a volume: from now on nobody opens it, and its owner, if `force` took it from one, registers
/// nothing more. Returns the epoch under which its extents are to be fenced and deleted. Marking it again is no error.
///
/// # Errors
/// [`VolumeError::Held`] when somebody has it open and `force` is not given.
pub async fn mark_deleting(
    store: &dyn MetadataStore,
    id: VolumeId,
    holder: &Holder,
    force: bool,
) -> Result<Epoch, VolumeError> {
    let (meta_key, epoch_key, owner_key) = (keys::volume_meta(id), keys::volume_epoch(id), keys::volume_owner(id));
    for _ in 0..TRIES {
        let found = load_volume(store, id).await?;
        let VolumeInfo { meta, epoch, owner, .. } = found.ok_or_else(|| VolumeError::NotFound(id.to_string()))?;
        let name = meta.doc.name.clone();
        let mut when = vec![
            Compare::Unchanged(meta_key.clone(), meta.revision),
            Compare::Unchanged(epoch_key.clone(), epoch.as_ref().map_or(Revision(0), |epoch| epoch.revision)),
        ];
        match owner {
            Some(owner) if !force => {
                return Err(VolumeError::Held { name, holder: owner.holder, epoch: owner.epoch });
            }
            Some(_) => {}
            None => when.push(Compare::Absent(owner_key.clone())),
        }
        if let Some(epoch) = &epoch
            && meta.doc.deleting
        {
            return Ok(epoch.doc.epoch);
        }
        let marked = VolumeDoc { deleting: true, ..meta.doc };
        let raised = EpochDoc {
            epoch: epoch.map_or(Epoch(0), |epoch| epoch.doc.epoch).next(),
            holder: holder.clone(),
            nonce: rand::random(),
        };
        let then =
            vec![put(epoch_key.clone(), &raised), put(meta_key.clone(), &marked), Write::Delete(owner_key.clone())];
        let outcome = transact(store, when, then).await;
        if let Outcome::Committed(_) = outcome.map_err(failed("delete", &name))? {
            return Ok(raised.epoch);
        }
    }
    Err(VolumeError::Busy(id.to_string()))
}

/// Forgets a volume that is marked and whose extents are gone from the agents. May be repeated after an interruption.
///
/// # Errors
/// [`VolumeError::NotDeleting`] when it is not marked.
pub async fn remove_volume_keys(store: &dyn MetadataStore, id: VolumeId) -> Result<(), VolumeError> {
    let meta_key = keys::volume_meta(id);
    let (entries, _) = list_raw(store, &keys::volume(id)).await.map_err(failed("read", id))?;
    let Some(VolumeInfo { meta, .. }) = read_volume(id, &entries).map_err(failed("read", id))? else {
        return Ok(());
    };
    let name = meta.doc.name.clone();
    if !meta.doc.deleting {
        return Err(VolumeError::NotDeleting(name));
    }
    let when = vec![Compare::Unchanged(meta_key.clone(), meta.revision)];
    let conflict = || VolumeError::Busy(name.clone());
    let extents = keys::extents(id);
    let of_extents: Vec<_> =
        entries.into_iter().map(|entry| entry.key).filter(|key| key.starts_with(&extents)).collect();
    // The `meta` that says what all this was goes last, with the name.
    let last = [
        meta_key,
        keys::name(&name),
        keys::volume_epoch(id),
        keys::volume_owner(id),
        keys::volume_published(id),
        keys::volume_head(id),
        keys::volume_used(id),
        keys::volume_witness(id),
    ];
    for keys in of_extents.chunks(META_TXN_OPS_MAX).chain([last.as_slice()]) {
        let then = keys.iter().cloned().map(Write::Delete).collect();
        match transact(store, when.clone(), then).await.map_err(failed("forget", &name))? {
            Outcome::Committed(_) => {}
            Outcome::Conflict => return Err(conflict()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
