//! The ring as the cluster keeps it: read, changed by compare-and-swap, joined by agents.
//!
//! Invariants:
//! 1. A version is written once, by a transaction that compares the one before it; a spec that is none is never written.
//! 2. A change takes effect at once and for new extents only: every extent that exists has its members written beside
//!    it, in etcd or in its volume's checkpoint, so none is looked for where the new ring would put it.
//! 3. No ring, and a ring of kind `empty`, are two things: the first agent to join makes the former, and an agent joins
//!    the latter only if a person says so.
//!
//! Not here: moving data after a change. `before` in [`RingDoc`] is for that, and stays empty until then.

use super::access::{AccessError, Outcome, Versioned, get, put, transact};
use super::agents::AgentInfo;
use torus_core::ids::AgentId;
use torus_core::meta::{Compare, MetadataStore, keys};
use torus_core::ring::{RingAgent, RingDoc, RingError, RingSpec};

/// The kind of a ring that joining agents make.
pub const KIND_DEFAULT: &str = "rendezvous";
/// How often a change starts over because somebody else changed the ring.
const TRIES: usize = 10;

/// Why the ring was not read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RingsError {
    /// There is none.
    #[error("the cluster has no ring yet. `torusctl peer add` makes one, and so does an agent with --auto-join")]
    None,
    /// What was asked for is no ring.
    #[error("cannot change the ring")]
    Unsound(#[from] RingError),
    /// An agent that is to be in it is not known.
    #[error("there is no agent {0}. `torusctl peer list` shows those there are")]
    NoAgent(String),
    /// The ring is of a kind that agents do not join by themselves.
    #[error(
        "agent {agent} stays out of the ring, which is of kind {kind:?}: a person has to change that, with `torusctl ring manual-change`"
    )]
    Closed {
        /// Who wanted in.
        agent: AgentId,
        /// The ring's kind.
        kind: String,
    },
    /// Others kept changing it.
    #[error("the ring keeps being changed by others at the same time. Try again")]
    Busy,
    /// The store failed.
    #[error("cannot {doing} the ring")]
    Access {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: AccessError,
    },
}

/// The ring, if there is one.
///
/// # Errors
/// When the store fails, or holds what is no ring.
pub async fn load_ring(store: &dyn MetadataStore) -> Result<Option<Versioned<RingDoc>>, RingsError> {
    get(store, keys::RING.into()).await.map_err(|source| RingsError::Access { doing: "read", source })
}

/// Makes the next version of the ring, from what `change` makes of the present one. `change` may be called again when
/// somebody else was faster. What stays as it is is not written.
///
/// # Errors
/// Those of `change`; [`RingsError::Unsound`] when its result is no ring.
pub async fn change_ring(
    store: &dyn MetadataStore,
    change: impl Fn(Option<&RingSpec>) -> Result<RingSpec, RingsError>,
) -> Result<RingDoc, RingsError> {
    for _ in 0..TRIES {
        let found = load_ring(store).await?;
        let spec = change(found.as_ref().map(|found| &found.doc.now))?;
        let (when, doc) = match found {
            None => (Compare::Absent(keys::RING.into()), RingDoc::first(spec)?),
            Some(found) if found.doc.now == spec => return Ok(found.doc),
            Some(found) => (Compare::Unchanged(keys::RING.into(), found.revision), found.doc.changed(spec)?.settled()),
        };
        let when = vec![Compare::Present(keys::CLUSTER.into()), when];
        let outcome = transact(store, when, vec![put(keys::RING.into(), &doc)]).await;
        if let Outcome::Committed(_) = outcome.map_err(|source| RingsError::Access { doing: "change", source })? {
            return Ok(doc);
        }
    }
    Err(RingsError::Busy)
}

/// Who wants an agent in the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// The agent itself.
    Agent,
    /// A person.
    Person,
}

/// Puts agents into the ring, or brings their domains and weights there up to date. Where there is no ring, it becomes
/// one of [`KIND_DEFAULT`] with `replicas` copies.
///
/// # Errors
/// [`RingsError::Closed`] when agents wish themselves into a ring of a kind that a person chose to hold none or one.
pub async fn join_ring(
    store: &dyn MetadataStore,
    agents: &[RingAgent],
    replicas: u8,
    wish: Wish,
) -> Result<RingDoc, RingsError> {
    change_ring(store, |ring| {
        let mut spec = ring.cloned().unwrap_or_else(|| RingSpec {
            kind: KIND_DEFAULT.into(),
            replicas,
            spread: None,
            agents: Vec::new(),
            options: serde_json::Value::Null,
        });
        if spec.kind == "empty" && wish == Wish::Person {
            spec.kind = KIND_DEFAULT.into();
        }
        for agent in agents {
            match spec.agents.iter_mut().find(|known| known.id == agent.id) {
                Some(known) => known.clone_from(agent),
                None if wish == Wish::Agent && matches!(spec.kind.as_str(), "empty" | "single") => {
                    return Err(RingsError::Closed { agent: agent.id, kind: spec.kind });
                }
                None => spec.agents.push(agent.clone()),
            }
        }
        Ok(spec)
    })
    .await
}

/// An agent's part in a ring, as it was registered.
#[must_use]
pub fn ring_agent(info: &AgentInfo) -> RingAgent {
    let doc = &info.doc.doc;
    RingAgent { id: info.id, domain: doc.domain.clone(), weight: doc.weight }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::{Embedded, init_cluster};

    async fn store() -> Embedded {
        let store = Embedded::in_memory();
        init_cluster(&store, 16_384, 2).await.unwrap();
        store
    }

    fn agent(id: u64) -> RingAgent {
        RingAgent { id: AgentId(id), domain: format!("node-{id}"), weight: 10 }
    }

    fn empty() -> RingSpec {
        let none = serde_json::Value::Null;
        RingSpec { kind: "empty".into(), replicas: 2, spread: None, agents: Vec::new(), options: none }
    }

    #[tokio::test]
    async fn the_first_agent_makes_the_ring_and_others_join_it() {
        let store = store().await;
        assert_eq!(load_ring(&store).await.unwrap(), None);
        let first = join_ring(&store, &[agent(1)], 2, Wish::Agent).await.unwrap();
        assert_eq!((first.version.0, first.now.kind.as_str(), first.now.agents.len()), (1, "rendezvous", 1));
        let second = join_ring(&store, &[agent(2)], 7, Wish::Agent).await.unwrap();
        assert_eq!((second.version.0, second.now.replicas), (2, 2));
        assert_eq!(second.now.agents, [agent(1), agent(2)]);
        assert_eq!(load_ring(&store).await.unwrap().unwrap().doc, second);
    }

    #[tokio::test]
    async fn what_stays_as_it_is_makes_no_version() {
        let store = store().await;
        let made = join_ring(&store, &[agent(1)], 2, Wish::Agent).await.unwrap();
        assert_eq!(join_ring(&store, &[agent(1)], 2, Wish::Agent).await.unwrap(), made);
        let heavier = RingAgent { weight: 20, ..agent(1) };
        let changed = join_ring(&store, std::slice::from_ref(&heavier), 2, Wish::Agent).await.unwrap();
        assert_eq!((changed.version.0, changed.now.agents), (2, vec![heavier]));
    }

    #[tokio::test]
    async fn a_ring_that_a_person_keeps_empty_is_joined_by_persons_only() {
        let store = store().await;
        change_ring(&store, |_| Ok(empty())).await.unwrap();
        let error = join_ring(&store, &[agent(1)], 2, Wish::Agent).await.unwrap_err();
        assert!(matches!(error, RingsError::Closed { agent: AgentId(1), .. }), "{error}");
        assert_eq!(load_ring(&store).await.unwrap().unwrap().doc.version.0, 1);
        let joined = join_ring(&store, &[agent(1)], 2, Wish::Person).await.unwrap();
        assert_eq!((joined.version.0, joined.now.kind.as_str()), (2, "rendezvous"));
    }

    #[tokio::test]
    async fn a_spec_that_is_no_ring_changes_nothing() {
        let store = store().await;
        let made = join_ring(&store, &[agent(1)], 2, Wish::Agent).await.unwrap();
        let error =
            change_ring(&store, |ring| Ok(RingSpec { replicas: 0, ..ring.unwrap().clone() })).await.unwrap_err();
        assert!(matches!(error, RingsError::Unsound(_)), "{error}");
        assert_eq!(load_ring(&store).await.unwrap().unwrap().doc, made);
    }

    #[tokio::test]
    async fn two_that_join_at_once_both_get_in() {
        let store = store().await;
        let one = [agent(1)];
        let two = [agent(2)];
        let (a, b) = tokio::join!(join_ring(&store, &one, 2, Wish::Agent), join_ring(&store, &two, 2, Wish::Agent),);
        a.unwrap();
        b.unwrap();
        assert_eq!(load_ring(&store).await.unwrap().unwrap().doc.now.agents.len(), 2);
    }
}
