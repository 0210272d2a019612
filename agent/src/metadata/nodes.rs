//! Hosts on which volumes can be attached, and which of them may have which volume.
//!
//! A control plane (the CSI controller) *publishes* a volume to a host before it is attached there. That is a permission and no
//! fence: who writes is decided by the volume's epoch alone. It is what lets the new host take the volume from an old one
//! without asking, once the control plane has given that one up.
//!
//! 1. A volume is published to one host at most.
//! 2. A volume that is being deleted is published to nobody new.

use super::access::{AccessError, Outcome, get, put, transact};
use super::volumes::{VolumeError, load_volume};
use torus_core::ids::VolumeId;
use torus_core::meta::docs::{NodeDoc, PublishedDoc};
use torus_core::meta::{Compare, MetadataStore, Write, keys};

/// How often a change starts over because somebody else changed the same volume.
const TRIES: usize = 10;
/// The longest name of a host.
const NODE_BYTES_MAX: usize = 253;

/// Why a volume is not published or unpublished.
#[derive(Debug, thiserror::Error)]
pub enum NodesError {
    /// The volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The name breaks the rules.
    #[error("{0:?} is not a host's name: 1 to {NODE_BYTES_MAX} letters, digits, dots, dashes or underscores")]
    Name(String),
    /// No such host.
    #[error("there is no host {0:?} on which volumes can be attached. Start torus-agent with role `node` there")]
    NotFound(String),
    /// Another host has it.
    #[error("volume {volume:?} is published to node {node:?}, and can be on one at a time. Unpublish it there first")]
    Elsewhere {
        /// The volume.
        volume: String,
        /// The other host.
        node: String,
    },
    /// The same host has it in another way.
    #[error(
        "volume {volume:?} is published to node {node:?} already, for {}. Unpublish it there first",
        if *read_only { "reading only" } else { "writing" }
    )]
    Otherwise {
        /// The volume.
        volume: String,
        /// The host.
        node: String,
        /// How it has it.
        read_only: bool,
    },
    /// The store failed.
    #[error("cannot {doing} {what:?}")]
    Access {
        /// What was being done.
        doing: &'static str,
        /// To what.
        what: String,
        /// Why it failed.
        #[source]
        source: AccessError,
    },
}

fn failed(doing: &'static str, what: impl ToString) -> impl FnOnce(AccessError) -> NodesError {
    let what = what.to_string();
    move |source| NodesError::Access { doing, what, source }
}

/// Checks a host's name.
///
/// # Errors
/// [`NodesError::Name`], which says the rules.
pub fn check_node(name: &str) -> Result<(), NodesError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let sound = (1..=NODE_BYTES_MAX).contains(&name.len())
        && name.bytes().all(plain)
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if sound { Ok(()) } else { Err(NodesError::Name(name.chars().take(100).collect())) }
}

/// Makes a host known, or known anew.
///
/// # Errors
/// When its name is none, or the store fails.
pub async fn register_node(store: &dyn MetadataStore, name: &str, doc: &NodeDoc) -> Result<(), NodesError> {
    check_node(name)?;
    let registered = transact(store, Vec::new(), vec![put(keys::node(name), doc)]).await;
    registered.map(drop).map_err(failed("register the host", name))
}

/// The host of this name, if there is one.
///
/// # Errors
/// When its name is none, or the store fails.
pub async fn load_node(store: &dyn MetadataStore, name: &str) -> Result<Option<NodeDoc>, NodesError> {
    check_node(name)?;
    let found = get::<NodeDoc>(store, keys::node(name)).await.map_err(failed("look up the host", name))?;
    Ok(found.map(|found| found.doc))
}

/// Lets `to` attach the volume. The same again is no error.
///
/// # Errors
/// [`NodesError::Elsewhere`] and [`NodesError::Otherwise`] when it is published already, and others.
pub async fn publish_volume(store: &dyn MetadataStore, id: VolumeId, to: &PublishedDoc) -> Result<(), NodesError> {
    if load_node(store, &to.node).await?.is_none() {
        return Err(NodesError::NotFound(to.node.clone()));
    }
    let key = keys::volume_published(id);
    for _ in 0..TRIES {
        let info = load_volume(store, id).await?.ok_or_else(|| VolumeError::NotFound(id.to_string()))?;
        let volume = info.meta.doc.name;
        if info.meta.doc.deleting {
            return Err(VolumeError::Deleting(volume).into());
        }
        match info.published {
            Some(now) if now == *to => return Ok(()),
            Some(now) if now.node == to.node => {
                return Err(NodesError::Otherwise { volume, node: now.node, read_only: now.read_only });
            }
            Some(now) => return Err(NodesError::Elsewhere { volume, node: now.node }),
            None => {}
        }
        let when = vec![Compare::Unchanged(keys::volume_meta(id), info.meta.revision), Compare::Absent(key.clone())];
        let outcome = transact(store, when, vec![put(key.clone(), to)]).await;
        if let Outcome::Committed(_) = outcome.map_err(failed("publish volume", &volume))? {
            return Ok(());
        }
    }
    Err(VolumeError::Busy(id.to_string()).into())
}

/// Takes the permission back: from `node`, or from whoever has it. Where there is none, there is nothing to do.
///
/// # Errors
/// When the store fails.
pub async fn unpublish_volume(store: &dyn MetadataStore, id: VolumeId, node: Option<&str>) -> Result<(), NodesError> {
    let key = keys::volume_published(id);
    for _ in 0..TRIES {
        let found = get::<PublishedDoc>(store, key.clone()).await.map_err(failed("unpublish volume", id))?;
        let Some(found) = found.filter(|found| node.is_none_or(|node| node == found.doc.node)) else { return Ok(()) };
        let when = vec![Compare::Unchanged(key.clone(), found.revision)];
        let outcome = transact(store, when, vec![Write::Delete(key.clone())]).await;
        if let Outcome::Committed(_) = outcome.map_err(failed("unpublish volume", id))? {
            return Ok(());
        }
    }
    Err(VolumeError::Busy(id.to_string()).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::{Embedded, NewVolume, create_volume, init_cluster, mark_deleting};
    use torus_core::ids::Lba;
    use torus_core::meta::docs::{AckMode, Holder};

    async fn world() -> (Embedded, VolumeId) {
        let store = Embedded::in_memory();
        init_cluster(&store, 16_384, 2).await.unwrap();
        for node in ["a", "b"] {
            register_node(&store, node, &NodeDoc { domain: node.into(), version: "1".into() }).await.unwrap();
        }
        let new =
            NewVolume { name: "v".into(), size: Lba(16), replicas: 1, min_replicas: 1, ack_mode: AckMode::Durable };
        let id = create_volume(&store, new).await.unwrap();
        (store, id)
    }

    fn to(node: &str) -> PublishedDoc {
        PublishedDoc { node: node.into(), read_only: false }
    }

    #[tokio::test]
    async fn a_volume_is_published_to_one_host_at_a_time() {
        let (store, id) = world().await;
        for _ in 0..2 {
            publish_volume(&store, id, &to("a")).await.unwrap();
        }
        assert_eq!(load_volume(&store, id).await.unwrap().unwrap().published, Some(to("a")));
        let elsewhere = publish_volume(&store, id, &to("b")).await.unwrap_err().to_string();
        assert!(elsewhere.contains("node \"a\""), "{elsewhere}");
        let otherwise = publish_volume(&store, id, &PublishedDoc { read_only: true, ..to("a") }).await.unwrap_err();
        assert!(matches!(otherwise, NodesError::Otherwise { read_only: false, .. }), "{otherwise}");
        unpublish_volume(&store, id, Some("b")).await.unwrap();
        assert!(publish_volume(&store, id, &to("b")).await.is_err(), "another host's word frees nothing");
        for _ in 0..2 {
            unpublish_volume(&store, id, Some("a")).await.unwrap();
        }
        publish_volume(&store, id, &to("b")).await.unwrap();
        unpublish_volume(&store, id, None).await.unwrap();
        assert_eq!(load_volume(&store, id).await.unwrap().unwrap().published, None);
    }

    #[tokio::test]
    async fn what_is_not_there_is_not_published() {
        let (store, id) = world().await;
        assert!(matches!(publish_volume(&store, id, &to("c")).await, Err(NodesError::NotFound(_))));
        for name in ["", "../x", "-rf", "a/b", "a\0b"] {
            assert!(matches!(publish_volume(&store, id, &to(name)).await, Err(NodesError::Name(_))), "{name:?}");
        }
        let other = publish_volume(&store, VolumeId(7), &to("a")).await;
        assert!(matches!(other, Err(NodesError::Volume(VolumeError::NotFound(_)))));
        mark_deleting(&store, id, &Holder::default(), false).await.unwrap();
        let deleting = publish_volume(&store, id, &to("a")).await;
        assert!(matches!(deleting, Err(NodesError::Volume(VolumeError::Deleting(_)))));
    }
}
