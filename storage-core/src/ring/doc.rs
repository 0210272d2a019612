//! The ring as it is kept: the document at the key `ring`, and what makes it sound.
//!
//! Unlike other documents, a spec with a field that this program does not know is refused: it may well decide where
//! data lies, and a ring that leaves it out would look in the wrong places.

use super::{KINDS, Kind};
use crate::ids::{AgentId, RingVersion};
use crate::limits::{REPLICAS_MAX, RING_AGENTS_MAX, RING_WEIGHT_MAX, RINGS_BEFORE_MAX};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt;

/// `ring`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RingDoc {
    /// Counts up with each change.
    pub version: RingVersion,
    /// Where things belong.
    pub now: RingSpec,
    /// Where they may still be, newest first: kept until all data has followed the change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<RingSpec>,
}

/// What somebody wants the ring to be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingSpec {
    /// One of [`KINDS`], by name.
    pub kind: String,
    /// Copies of what does not say how many.
    pub replicas: u8,
    /// How many parts of the domain path, from the outermost, make a failure domain: 1 spreads copies over zones where
    /// paths are `zone/rack/node`, 2 over racks. Not given: the whole path, the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<u8>,
    /// The agents. Their order means nothing.
    pub agents: Vec<RingAgent>,
    /// What only the kind knows: [`MapOptions`](super::MapOptions) for `map`.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub options: Value,
}

/// An agent's part in the ring.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RingAgent {
    /// Which agent.
    pub id: AgentId,
    /// Its failure domain path, outermost part first: `zone-a/rack-3/node-7`.
    pub domain: String,
    /// Its share. One of weight 0 gets nothing: what it holds moves away.
    pub weight: u64,
}

/// Why a spec is not one of a ring, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant's message says it")]
pub enum RingError {
    #[error("there is no ring kind {kind:?}: choose one of {}", KINDS.each_ref().map(|kind| kind.name).join(", "))]
    UnknownKind { kind: String },
    #[error("a ring cannot keep {replicas} copies: ask for 1 to {REPLICAS_MAX}")]
    Replicas { replicas: u8 },
    #[error("the ring would have {agents} agents, more than the {RING_AGENTS_MAX} it can have")]
    TooManyAgents { agents: usize },
    #[error("agent {agent} is in the ring twice: list each agent once")]
    Duplicate { agent: AgentId },
    #[error(
        "agent {agent} has weight {weight}, more than the {RING_WEIGHT_MAX} there can be: use a larger unit for all"
    )]
    TooHeavy { agent: AgentId, weight: u64 },
    #[error(
        "agent {agent} has the failure domain {domain:?}, which is no path: write its parts with \
         one / between, such as zone-a/rack-3/node-7"
    )]
    Domain { agent: AgentId, domain: String },
    #[error(
        "copies cannot be spread over level 0 of the failure domains: 1 is the outermost; leave it out for machines"
    )]
    SpreadZero,
    #[error(
        "agent {agent} has the failure domain {domain:?} with {parts} parts, but the ring \
         spreads copies over level {spread}: give it a longer path, or spread over an outer level"
    )]
    Shallow { agent: AgentId, domain: String, parts: usize, spread: u8 },
    #[error("a ring of kind {kind:?} needs agents: add one, or use kind \"empty\"")]
    NoAgents { kind: String },
    #[error("all agents of the ring have weight 0: give at least one of them a weight")]
    NoWeight,
    #[error(
        "a ring of kind \"single\" has one agent with a weight, not {agents}: \
         remove the others, or use kind \"rendezvous\""
    )]
    NotSingle { agents: usize },
    #[error(
        "a ring of kind \"empty\" has no agents, but {agents} are listed: use kind \"rendezvous\" to give them data"
    )]
    NotEmpty { agents: usize },
    #[error("the options do not fit a ring of kind {kind:?}: {reason}")]
    Options { kind: String, reason: String },
    #[error(
        "{changes} changes of the ring are still under way, the latest made version {version}: \
         wait until data has followed them, then change it again"
    )]
    Changing { changes: usize, version: RingVersion },
}

impl RingDoc {
    /// The first ring of a cluster.
    ///
    /// # Errors
    /// When `spec` is not one of a ring.
    pub fn first(spec: RingSpec) -> Result<Self, RingError> {
        super::Ring::new(&spec)?;
        Ok(Self { version: RingVersion(1), now: spec, before: Vec::new() })
    }

    /// The document after a change to `spec`.
    ///
    /// # Errors
    /// When `spec` is not one of a ring, or too many earlier changes are still under way.
    pub fn changed(&self, spec: RingSpec) -> Result<Self, RingError> {
        super::Ring::new(&spec)?;
        if self.before.len() == RINGS_BEFORE_MAX {
            return Err(RingError::Changing { changes: self.before.len(), version: self.version });
        }
        let before = [&self.now].into_iter().chain(&self.before).cloned().collect();
        Ok(Self { version: self.version.next(), now: spec, before })
    }

    /// The document once all data is where the newest ring wants it. To be stored only if the stored one still is
    /// `self`: a change in between has data to move again.
    #[must_use]
    pub fn settled(&self) -> Self {
        Self { before: Vec::new(), ..self.clone() }
    }
}

impl RingSpec {
    /// Its kind.
    pub(super) fn kind(&self) -> Result<&'static Kind, RingError> {
        let kind = KINDS.iter().find(|kind| kind.name == self.kind);
        kind.ok_or_else(|| RingError::UnknownKind { kind: self.kind.clone() })
    }

    /// What holds for every kind.
    pub(super) fn check(&self) -> Result<(), RingError> {
        self.kind()?;
        if !(1..=REPLICAS_MAX).contains(&usize::from(self.replicas)) {
            return Err(RingError::Replicas { replicas: self.replicas });
        }
        if self.spread == Some(0) {
            return Err(RingError::SpreadZero);
        }
        if self.agents.len() > RING_AGENTS_MAX {
            return Err(RingError::TooManyAgents { agents: self.agents.len() });
        }
        let mut seen = BTreeSet::new();
        self.agents.iter().try_for_each(|agent| {
            if !seen.insert(agent.id) {
                return Err(RingError::Duplicate { agent: agent.id });
            }
            agent.check(self.spread)
        })
    }

    /// For a kind that does nothing with options.
    pub(super) fn takes_no_options(&self) -> Result<(), RingError> {
        match &self.options {
            Value::Null => Ok(()),
            _ => Err(RingError::Options { kind: self.kind.clone(), reason: "it has none: leave them out".into() }),
        }
    }

    /// For a kind that is nothing without agents, of which `agents` have a weight.
    pub(super) fn needs_agents(&self, agents: &[RingAgent]) -> Result<(), RingError> {
        match (self.agents.is_empty(), agents.is_empty()) {
            (true, _) => Err(RingError::NoAgents { kind: self.kind.clone() }),
            (false, true) => Err(RingError::NoWeight),
            (false, false) => Ok(()),
        }
    }
}

impl RingAgent {
    fn check(&self, spread: Option<u8>) -> Result<(), RingError> {
        let (agent, domain) = (self.id, &self.domain);
        if self.weight > RING_WEIGHT_MAX {
            return Err(RingError::TooHeavy { agent, weight: self.weight });
        }
        if domain.split('/').any(|part| part.trim().is_empty()) {
            return Err(RingError::Domain { agent, domain: domain.clone() });
        }
        let parts = domain.split('/').count();
        match spread {
            Some(spread) if parts < usize::from(spread) => {
                Err(RingError::Shallow { agent, domain: domain.clone(), parts, spread })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for RingSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weight: u128 = self.agents.iter().map(|agent| u128::from(agent.weight)).sum();
        let spread = match self.spread {
            Some(level) => format!("level {level} of their failure domains"),
            None => "machines".into(),
        };
        let (kind, replicas, agents) = (&self.kind, self.replicas, self.agents.len());
        let (copies, s) = (if replicas == 1 { "copy" } else { "copies" }, if agents == 1 { "" } else { "s" });
        write!(f, "{kind}: {replicas} {copies} spread over {spread}, {agents} agent{s} of weight {weight}")
    }
}
