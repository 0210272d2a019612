//! The cluster's identity: made once by `init`, read by everything that starts.

use super::access::{AccessError, Outcome, get, put, transact};
use torus_core::ids::{Blocks, ClusterId};
use torus_core::limits::{EXTENT_BLOCKS_MAX, EXTENT_BLOCKS_MIN, REPLICAS_MAX};
use torus_core::meta::docs::{ClusterDoc, FORMAT};
use torus_core::meta::{Compare, MetadataStore, keys};

/// Why a cluster was not made or not found.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is one already.
    #[error("cannot initialize: {store} holds the cluster {id} already. Use it, or give another --etcd-prefix")]
    Exists {
        /// The store.
        store: String,
        /// The cluster in it.
        id: ClusterId,
    },
    /// There is none.
    #[error("{store} holds no Torus cluster. Run `torusctl init`, or check --etcd and --etcd-prefix")]
    None {
        /// The store.
        store: String,
    },
    /// A later version of Torus made it.
    #[error("the cluster {id} in {store} has format {found}, and this program knows up to {FORMAT}: use a newer Torus")]
    Newer {
        /// The store.
        store: String,
        /// The cluster.
        id: ClusterId,
        /// Its format.
        found: u32,
    },
    /// A parameter is out of bounds.
    #[error("cannot initialize: {0}")]
    Parameter(String),
    /// The store failed.
    #[error("cannot {doing} the cluster's identity")]
    Access {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: AccessError,
    },
}

/// Makes the cluster.
///
/// # Errors
/// [`ClusterError::Exists`] when there is one; [`ClusterError::Parameter`] for sizes out of bounds.
pub async fn init_cluster(
    store: &dyn MetadataStore,
    extent_blocks: Blocks,
    replicas: u8,
) -> Result<ClusterDoc, ClusterError> {
    if !(EXTENT_BLOCKS_MIN..=EXTENT_BLOCKS_MAX).contains(&extent_blocks) {
        let text = format!(
            "an extent of {extent_blocks} blocks is out of bounds: from {EXTENT_BLOCKS_MIN} to {EXTENT_BLOCKS_MAX}"
        );
        return Err(ClusterError::Parameter(text));
    }
    if !(1..=REPLICAS_MAX).contains(&usize::from(replicas)) {
        return Err(ClusterError::Parameter(format!(
            "{replicas} replicas are out of bounds: from 1 to {REPLICAS_MAX}"
        )));
    }
    let doc = ClusterDoc { id: ClusterId(rand::random_range(1..=u64::MAX)), format: FORMAT, extent_blocks, replicas };
    let key = keys::CLUSTER;
    let outcome = transact(store, vec![Compare::Absent(key.into())], vec![put(key.into(), &doc)]).await;
    match outcome.map_err(|source| ClusterError::Access { doing: "write", source })? {
        Outcome::Committed(_) => Ok(doc),
        Outcome::Conflict => Err(match load_cluster(store).await {
            Ok(other) => ClusterError::Exists { store: store.describe(), id: other.id },
            Err(error) => error,
        }),
    }
}

/// The cluster that the store holds.
///
/// # Errors
/// [`ClusterError::None`] when it holds none, [`ClusterError::Newer`] when its format is not ours.
pub async fn load_cluster(store: &dyn MetadataStore) -> Result<ClusterDoc, ClusterError> {
    let found = get::<ClusterDoc>(store, keys::CLUSTER.into()).await;
    let doc = match found.map_err(|source| ClusterError::Access { doing: "read", source })? {
        Some(found) => found.doc,
        None => return Err(ClusterError::None { store: store.describe() }),
    };
    if doc.format > FORMAT {
        return Err(ClusterError::Newer { store: store.describe(), id: doc.id, found: doc.format });
    }
    Ok(doc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::Embedded;
    use torus_core::meta::docs::encode;
    use torus_core::meta::{MetaOp, Txn, Write};

    #[tokio::test]
    async fn a_cluster_is_made_once() {
        let store = Embedded::in_memory();
        let none = load_cluster(&store).await.unwrap_err().to_string();
        assert!(none.contains("torusctl init"), "{none}");
        let made = init_cluster(&store, 16_384, 2).await.unwrap();
        assert_eq!(load_cluster(&store).await.unwrap(), made);
        let again = init_cluster(&store, 16_384, 2).await.unwrap_err().to_string();
        assert!(again.contains(&made.id.to_string()), "{again}");
        assert_eq!(load_cluster(&store).await.unwrap(), made);
    }

    #[tokio::test]
    async fn sizes_out_of_bounds_are_refused() {
        let store = Embedded::in_memory();
        for (blocks, replicas) in [(1, 2), (1 << 17, 2), (16_384, 0), (16_384, 8)] {
            let error = init_cluster(&store, blocks, replicas).await.unwrap_err();
            assert!(matches!(error, ClusterError::Parameter(_)), "{error}");
        }
        assert!(load_cluster(&store).await.is_err());
    }

    #[tokio::test]
    async fn a_newer_format_is_refused() {
        let store = Embedded::in_memory();
        let made = init_cluster(&store, 16_384, 2).await.unwrap();
        let newer = ClusterDoc { format: FORMAT + 1, ..made };
        let write = Write::Put { key: keys::CLUSTER.into(), value: encode(&newer), lease: None };
        store.execute(MetaOp::Txn(Txn { when: vec![], then: vec![write] })).await.unwrap();
        assert!(matches!(load_cluster(&store).await, Err(ClusterError::Newer { found, .. }) if found == FORMAT + 1));
    }
}
