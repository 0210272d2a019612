//! Documents in and out of a store, for the functions above the port.

use serde::Serialize;
use serde::de::DeserializeOwned;
use torus_core::meta::docs::{BadDoc, decode, encode};
use torus_core::meta::{Compare, MetaError, MetaOp, MetaReply, MetadataStore, Revision, Txn, Write};

/// Why metadata could not be read or written. The store's own words name the store.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The store did not answer, or refused.
    #[error(transparent)]
    Store(#[from] MetaError),
    /// A document is not what its key should hold.
    #[error(transparent)]
    Document(#[from] BadDoc),
    /// An answer that does not belong to its question: a defect of the store's adapter.
    #[error("the metadata store answered {got} to {asked}")]
    Confused {
        /// The question.
        asked: &'static str,
        /// The answer.
        got: String,
    },
}

impl AccessError {
    /// Whether trying the same again may help, and a write may have happened already.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Store(MetaError::Unknown(_)))
    }
}

/// A document and the revision that it was read at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Versioned<T> {
    /// The document.
    pub doc: T,
    /// The transaction that last wrote it.
    pub revision: Revision,
}

/// How a transaction ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Committed(Revision),
    Conflict,
}

pub(super) async fn get<T: DeserializeOwned>(
    store: &dyn MetadataStore,
    key: String,
) -> Result<Option<Versioned<T>>, AccessError> {
    match store.execute(MetaOp::Get(key)).await? {
        MetaReply::Got(None) => Ok(None),
        MetaReply::Got(Some(entry)) => {
            Ok(Some(Versioned { doc: decode(&entry.key, &entry.value)?, revision: entry.modified }))
        }
        other => Err(confused("a get", &other)),
    }
}

/// All documents with a prefix, by key.
pub(super) async fn list<T: DeserializeOwned>(
    store: &dyn MetadataStore,
    prefix: &str,
) -> Result<Vec<(String, Versioned<T>)>, AccessError> {
    let entries = list_raw(store, prefix).await?.0.into_iter();
    let decoded = entries.map(|entry| {
        let doc = decode(&entry.key, &entry.value)?;
        Ok((entry.key, Versioned { doc, revision: entry.modified }))
    });
    decoded.collect()
}

pub(super) async fn list_raw(
    store: &dyn MetadataStore,
    prefix: &str,
) -> Result<(Vec<torus_core::meta::Entry>, Revision), AccessError> {
    match store.execute(MetaOp::List(prefix.into())).await? {
        MetaReply::Listed(entries, revision) => Ok((entries, revision)),
        other => Err(confused("a list", &other)),
    }
}

/// Carries out a transaction. Should its outcome be unknown, it is not sent again (it could then happen a second time,
/// after somebody undid the first): the first of its writes is read instead, and if it stands, the transaction was
/// committed. If it does not, or is a deletion, nobody can say, and the error remains.
///
/// The first write must therefore be one that nobody else makes: it holds a random id or nonce, or a document whose
/// content is all that matters.
pub(super) async fn transact(
    store: &dyn MetadataStore,
    when: Vec<Compare>,
    then: Vec<Write>,
) -> Result<Outcome, AccessError> {
    let witness = then.first().cloned();
    let unknown = match store.execute(MetaOp::Txn(Txn { when, then })).await {
        Ok(MetaReply::Committed(revision)) => return Ok(Outcome::Committed(revision)),
        Ok(MetaReply::Conflict) => return Ok(Outcome::Conflict),
        Ok(other) => return Err(confused("a transaction", &other)),
        Err(MetaError::Refused(text)) => return Err(MetaError::Refused(text).into()),
        Err(unknown) => unknown,
    };
    if let Some(Write::Put { key, value, .. }) = witness
        && let Ok(MetaReply::Got(Some(entry))) = store.execute(MetaOp::Get(key)).await
        && entry.value == value
    {
        return Ok(Outcome::Committed(entry.modified));
    }
    Err(unknown.into())
}

pub(super) fn put<T: Serialize>(key: String, doc: &T) -> Write {
    Write::Put { key, value: encode(doc), lease: None }
}

fn confused(asked: &'static str, got: &MetaReply) -> AccessError {
    AccessError::Confused { asked, got: format!("{got:?}").chars().take(200).collect() }
}
