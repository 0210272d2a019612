//! Agents as the cluster knows them: who was admitted, who runs, and the heartbeat that says so.
//!
//! An agent is its disks: it is registered under the id that they carry, and nobody else registers them. It runs while
//! `alive/<agent>` stands, which is a hint for placement and for people, never a fence.
//!
//! Invariants:
//! 1. A name belongs to one agent: `agent-names/<name>` and `agents/<id>` are written in one transaction.
//! 2. A disk once registered stays with its agent, whether it is plugged in at the moment or not.
//! 3. One process runs as an agent: each heartbeat compares the last one, so of two processes with the same disks (a clone)
//!    one finds out at its next, and stops.

use super::access::{AccessError, Outcome, Versioned, get, list, put, transact};
use std::collections::BTreeMap;
use std::time::Duration;
use torus_core::ids::{AgentId, DiskId, Incarnation};
use torus_core::meta::docs::{AgentDoc, AgentNameDoc, AliveDoc, encode};
use torus_core::meta::{Compare, LeaseId, MetaError, MetadataStore, Revision, Write, keys};

/// How often a change starts over because somebody else changed the same agent.
const TRIES: usize = 10;

/// Why an agent was not registered, or may not go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The name breaks the rules.
    #[error(
        "{0:?} is not an agent's name: 1 to 63 of letters, digits, dot, underscore and hyphen, beginning with a letter or \
         a digit. Pass another with --name"
    )]
    Name(String),
    /// The failure domain breaks the rules.
    #[error("{0:?} is not a failure domain: names joined by slashes, outermost first, such as zone-a/rack-3/node-7")]
    Domain(String),
    /// An agent without disks.
    #[error("agent {0:?} has no disk")]
    NoDisks(String),
    /// The name belongs to another agent.
    #[error("cannot register agent {id} as {name:?}: that is the name of agent {other}. Pass another with --name")]
    NameTaken {
        /// Who wanted it.
        id: AgentId,
        /// The name.
        name: String,
        /// Whose it is.
        other: AgentId,
    },
    /// A disk belongs to another agent.
    #[error(
        "cannot register agent {id}: disk {disk} belongs to agent {other} ({other_name:?}). It was copied from there or put \
         into the wrong machine: take it out"
    )]
    DiskTaken {
        /// Who wanted it.
        id: AgentId,
        /// The disk.
        disk: DiskId,
        /// Whose it is.
        other: AgentId,
        /// What that one is called.
        other_name: String,
    },
    /// The agent of this id has other disks.
    #[error(
        "cannot register agent {id}: the cluster knows it ({name:?}) with other disks ({}), and none of these. Check that \
         the right directories or devices are given",
        known.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    OtherDisks {
        /// Which agent.
        id: AgentId,
        /// What it is called.
        name: String,
        /// The disks it has.
        known: Vec<DiskId>,
    },
    /// It was not registered.
    #[error("agent {0} is not registered with this cluster")]
    NotRegistered(AgentId),
    /// Another process runs as this agent.
    #[error(
        "agent {id} runs at {} too (incarnation {}): that process, or one of the disks of this one, is a copy. This one \
         stops; make sure that only one is left", other.data, other.incarnation
    )]
    Superseded {
        /// Which agent.
        id: AgentId,
        /// What the other one says of itself.
        other: Box<AliveDoc>,
    },
    /// A later run of the agent has begun.
    #[error(
        "agent {id} runs at {} with incarnation {}, and this process has {ours}: its disks were put back to an earlier \
         state, or copied. Do not start it", other.data, other.incarnation
    )]
    Earlier {
        /// Which agent.
        id: AgentId,
        /// This process's incarnation.
        ours: Incarnation,
        /// What the other one says of itself.
        other: Box<AliveDoc>,
    },
    /// Others kept changing it.
    #[error("agent {0} keeps being changed by others at the same time. Try again")]
    Busy(AgentId),
    /// The store failed.
    #[error("cannot {doing} {what}")]
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

impl AgentError {
    /// Whether the same call may succeed later without anybody's doing.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Busy(_) => true,
            Self::Access { source, .. } => source.is_unknown(),
            _ => false,
        }
    }
}

fn failed(doing: &'static str, what: impl ToString) -> impl FnOnce(AccessError) -> AgentError {
    let what = what.to_string();
    move |source| AgentError::Access { doing, what, source }
}

/// All that the store knows of an agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AgentInfo {
    /// Its id.
    pub id: AgentId,
    /// What it was registered as.
    pub doc: Versioned<AgentDoc>,
    /// What it says of itself; `None` when it is not running.
    pub alive: Option<AliveDoc>,
}

/// All admitted agents, by name.
///
/// # Errors
/// When the store fails, or holds what is no agent.
pub async fn list_agents(store: &dyn MetadataStore) -> Result<Vec<AgentInfo>, AgentError> {
    let agents = list::<AgentDoc>(store, keys::AGENTS).await.map_err(failed("list", "the agents"))?;
    let alive = list::<AliveDoc>(store, keys::ALIVE).await.map_err(failed("list", "the running agents"))?;
    let mut alive: BTreeMap<AgentId, AliveDoc> =
        alive.into_iter().filter_map(|(key, found)| Some((keys::last_part(&key).parse().ok()?, found.doc))).collect();
    let mut known: Vec<_> = agents
        .into_iter()
        .filter_map(|(key, doc)| {
            let id = keys::last_part(&key).parse().ok()?;
            Some(AgentInfo { id, doc, alive: alive.remove(&id) })
        })
        .collect();
    known.sort_by(|a, b| a.doc.doc.name.cmp(&b.doc.doc.name));
    Ok(known)
}

fn check(doc: &AgentDoc) -> Result<(), AgentError> {
    let sound = |name: &str| {
        let bytes = name.as_bytes();
        (1..=63).contains(&bytes.len())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(b))
            && bytes[0].is_ascii_alphanumeric()
    };
    if !sound(&doc.name) {
        return Err(AgentError::Name(doc.name.chars().take(100).collect()));
    }
    if !doc.domain.split('/').all(sound) {
        return Err(AgentError::Domain(doc.domain.chars().take(100).collect()));
    }
    if doc.disks.is_empty() {
        return Err(AgentError::NoDisks(doc.name.clone()));
    }
    Ok(())
}

/// Admits an agent, or brings what is known of it up to date: its name, domain and weight become those of `doc`, new disks
/// are added, disks that `doc` lacks are kept (they may have failed, or be out for repair). Returns what now stands.
///
/// # Errors
/// [`AgentError::NameTaken`], [`AgentError::DiskTaken`] and [`AgentError::OtherDisks`] when this cannot be that agent.
pub async fn register_agent(
    store: &dyn MetadataStore,
    id: AgentId,
    doc: &AgentDoc,
) -> Result<Versioned<AgentDoc>, AgentError> {
    check(doc)?;
    for _ in 0..TRIES {
        let known = list::<AgentDoc>(store, keys::AGENTS).await.map_err(failed("list", "the agents"))?;
        let own_key = keys::agent(id);
        let mut own = None;
        for (key, found) in known {
            if key == own_key {
                own = Some(found);
                continue;
            }
            let Ok(other) = keys::last_part(&key).parse() else { continue };
            if found.doc.name == doc.name {
                return Err(AgentError::NameTaken { id, name: doc.name.clone(), other });
            }
            if let Some(&disk) = doc.disks.iter().find(|disk| found.doc.disks.contains(disk)) {
                return Err(AgentError::DiskTaken { id, disk, other, other_name: found.doc.name });
            }
        }
        if let Some(stands) = register(store, id, doc, own).await? {
            return Ok(stands);
        }
    }
    Err(AgentError::Busy(id))
}

/// One attempt; `None` when something changed meanwhile.
async fn register(
    store: &dyn MetadataStore,
    id: AgentId,
    doc: &AgentDoc,
    own: Option<Versioned<AgentDoc>>,
) -> Result<Option<Versioned<AgentDoc>>, AgentError> {
    let (own_key, name_key) = (keys::agent(id), keys::agent_name(&doc.name));
    let mut merged = doc.clone();
    let mut when = Vec::new();
    let mut then = Vec::new();
    match own {
        None => {
            when.extend([Compare::Absent(own_key.clone()), Compare::Absent(name_key.clone())]);
            then.push(put(name_key, &AgentNameDoc { agent: id }));
        }
        Some(Versioned { doc: known, revision }) => {
            if !doc.disks.iter().any(|disk| known.disks.contains(disk)) {
                return Err(AgentError::OtherDisks { id, name: known.name, known: known.disks });
            }
            merged.disks = known.disks.clone();
            merged.disks.extend(doc.disks.iter().filter(|disk| !known.disks.contains(disk)));
            if merged == known {
                return Ok(Some(Versioned { doc: known, revision }));
            }
            when.push(Compare::Unchanged(own_key.clone(), revision));
            if known.name != doc.name {
                when.push(Compare::Absent(name_key.clone()));
                then.extend([Write::Delete(keys::agent_name(&known.name)), put(name_key, &AgentNameDoc { agent: id })]);
            }
        }
    }
    // First, as the write that tells whether the transaction happened.
    then.insert(0, put(own_key, &merged));
    let outcome = transact(store, when, then).await.map_err(failed("register", format!("agent {id}")))?;
    Ok(match outcome {
        Outcome::Committed(revision) => Some(Versioned { doc: merged, revision }),
        Outcome::Conflict => None,
    })
}

/// The sign of life of a running agent: a lease, and under it the agent's [`AliveDoc`].
#[derive(Debug)]
pub struct Heartbeat {
    id: AgentId,
    ttl: Duration,
    doc: AliveDoc,
    lease: LeaseId,
    /// What our own last write of the document is known by.
    written: Revision,
}

impl Heartbeat {
    /// Says that the agent runs. What a former run of it left standing is replaced.
    ///
    /// # Errors
    /// [`AgentError::Earlier`] when a later run of it stands there, [`AgentError::NotRegistered`], and a failing store.
    pub async fn begin(
        store: &dyn MetadataStore,
        id: AgentId,
        doc: AliveDoc,
        ttl: Duration,
    ) -> Result<Self, AgentError> {
        let standing = get::<AliveDoc>(store, keys::alive(id)).await.map_err(failed("read", keys::alive(id)))?;
        let standing = match standing {
            Some(other) if other.doc.incarnation >= doc.incarnation && other.doc != doc => {
                return Err(AgentError::Earlier { id, ours: doc.incarnation, other: Box::new(other.doc) });
            }
            Some(other) => other.revision,
            None => Revision(0),
        };
        let mut heartbeat = Self { id, ttl, doc, lease: LeaseId(0), written: standing };
        heartbeat.lay_down(store).await?;
        Ok(heartbeat)
    }

    /// Keeps the sign of life for another term; lays it down anew if it was lost. Call it every third of the term.
    ///
    /// # Errors
    /// [`AgentError::Superseded`] when another process runs as this agent: stop. Errors that
    /// [are transient](AgentError::is_transient): call again.
    pub async fn beat(&mut self, store: &dyn MetadataStore) -> Result<(), AgentError> {
        let kept = store.keep_alive(self.lease).await.map_err(AccessError::from);
        if kept.map_err(failed("keep", keys::alive(self.id)))? {
            let standing = self.standing(store).await?;
            if standing.as_ref().is_some_and(|standing| standing.revision == self.written) {
                return Ok(());
            }
        }
        self.lay_down(store).await
    }

    /// Changes what the agent says of itself.
    ///
    /// # Errors
    /// As [`Heartbeat::beat`].
    pub async fn update(&mut self, store: &dyn MetadataStore, doc: AliveDoc) -> Result<(), AgentError> {
        if doc == self.doc {
            return self.beat(store).await;
        }
        self.doc = doc;
        let kept = store.keep_alive(self.lease).await.map_err(AccessError::from);
        if kept.map_err(failed("keep", keys::alive(self.id)))? && self.write(store).await? {
            return Ok(());
        }
        self.lay_down(store).await
    }

    /// Takes the sign of life away: the agent stops in order.
    ///
    /// # Errors
    /// A failing store; the lease runs out by itself then.
    pub async fn end(self, store: &dyn MetadataStore) -> Result<(), AgentError> {
        store.revoke(self.lease).await.map_err(AccessError::from).map_err(failed("remove", keys::alive(self.id)))
    }

    async fn standing(&self, store: &dyn MetadataStore) -> Result<Option<Versioned<AliveDoc>>, AgentError> {
        get(store, keys::alive(self.id)).await.map_err(failed("read", keys::alive(self.id)))
    }

    /// Writes the document under a new lease, over our own last one or over nothing.
    async fn lay_down(&mut self, store: &dyn MetadataStore) -> Result<(), AgentError> {
        let granted = store.grant(self.ttl).await.map_err(AccessError::from);
        let lease = granted.map_err(failed("get a lease for", keys::alive(self.id)))?;
        let former = std::mem::replace(&mut self.lease, lease);
        for _ in 0..TRIES {
            if self.write(store).await? {
                if former != LeaseId(0) {
                    // It holds no key any more, and runs out if this fails.
                    let _: Result<(), MetaError> = store.revoke(former).await;
                }
                return Ok(());
            }
            if get::<AgentDoc>(store, keys::agent(self.id)).await.map_err(failed("read", self.id))?.is_none() {
                return Err(AgentError::NotRegistered(self.id));
            }
            match self.standing(store).await? {
                // Our own, by a write whose answer was lost, or one of a former run that was already there.
                Some(standing)
                    if standing.doc.incarnation == self.doc.incarnation && standing.doc.data == self.doc.data =>
                {
                    self.written = standing.revision;
                }
                Some(standing) => return Err(AgentError::Superseded { id: self.id, other: Box::new(standing.doc) }),
                None => self.written = Revision(0),
            }
        }
        Err(AgentError::Busy(self.id))
    }

    /// False when what stands is not our own last one.
    async fn write(&mut self, store: &dyn MetadataStore) -> Result<bool, AgentError> {
        let key = keys::alive(self.id);
        let when = vec![Compare::Present(keys::agent(self.id)), Compare::Unchanged(key.clone(), self.written)];
        let then = vec![Write::Put { key: key.clone(), value: encode(&self.doc), lease: Some(self.lease) }];
        match transact(store, when, then).await {
            Ok(Outcome::Committed(revision)) => {
                self.written = revision;
                Ok(true)
            }
            Ok(Outcome::Conflict) => Ok(false),
            Err(error) => Err(failed("write", key)(error)),
        }
    }
}

#[cfg(test)]
mod tests;
