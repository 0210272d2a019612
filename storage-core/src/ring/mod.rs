//! The ring: which agents a key belongs to, best first. Everybody who has the same ring computes the same answer, so
//! where data lies need not be kept.
//!
//! How a key orders the agents is a [`Kind`]: one file with a [`Placement`], and its line in [`KINDS`]. What is the
//! same for all of them is here: a key's members are the first agents of its order that are eligible and of which no
//! two share a failure domain. A domain is a path, outermost part first (`zone-a/rack-3/node-7`); the ring says how many
//! of its parts must differ, by default the whole path, which is the machine.
//!
//! A ring never changes: a changed one is a new version ([`RingDoc`]). Until data has followed, what came before is
//! kept beside it ([`Rings`]): a key's copies are at its members in one or the other.
//!
//! 1. Members are distinct agents of the ring, all eligible, in the key's order of preference.
//! 2. No two members share a domain, and there are as many as asked for, unless the ensemble is marked degraded (I16).
//!    A degraded one is still as spread and as large as the eligible agents allow: where zones run out, racks differ,
//!    then machines.
//! 3. The same spec and key give the same answer on every machine and in every version of this program: integers only,
//!    fixed seeds, no hash order. `testdata/ring-placements.txt` freezes it; a change of placement is a change of
//!    format and moves data.
//! 4. In `rendezvous`, agents that come or go change the order of no others; in `ketama` neither, within the limit that
//!    its file names.
//!
//! Not here: which agents are up (the caller's `eligible`), moving data after a change, and where an open extent lies
//! (in etcd, chosen from here once).

mod doc;
mod empty;
mod hash;
mod ketama;
mod map;
mod modulo;
mod rendezvous;
mod simulate;
mod single;
#[cfg(test)]
mod tests;

pub use doc::{RingAgent, RingDoc, RingError, RingSpec};
pub use map::{KeyHash, KeyRange, MapOptions, Rule};
pub use simulate::{Flow, Moved, sample, simulate};

use crate::ids::{AgentId, ExtentId, RingVersion, VolumeId};
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What is placed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// Spreads evenly over all 64-bit numbers.
    pub hash: u64,
    /// The volume it is of, for rules that name one.
    pub volume: Option<VolumeId>,
}

impl From<ExtentId> for Key {
    fn from(extent: ExtentId) -> Self {
        Self { hash: hash::key(&[extent.volume.0, extent.seq.0]), volume: Some(extent.volume) }
    }
}

impl From<u64> for Key {
    fn from(key: u64) -> Self {
        Self { hash: hash::key(&[key]), volume: None }
    }
}

/// How a kind of ring orders agents.
pub trait Placement: fmt::Debug + Send + Sync {
    /// The agents for `key`, best first, each at most once, as positions in the candidates it was built over. Taken one
    /// by one: most callers need the first few.
    fn order(&self, key: Key) -> Order<'_>;
}

/// See [`Placement::order`].
pub type Order<'a> = Box<dyn Iterator<Item = usize> + 'a>;

/// A kind's ring, or why the spec is not one for it.
pub type Built = Result<Box<dyn Placement>, RingError>;

/// A kind of ring.
pub struct Kind {
    /// What a spec calls it.
    pub name: &'static str,
    /// What it does, for people: half a sentence.
    pub about: &'static str,
    /// Makes it over the spec's agents that have a weight, in ascending order of their ids. The spec is sound but for
    /// what only the kind knows: how many agents it takes, and its options.
    pub build: fn(&RingSpec, &[RingAgent]) -> Built,
}

/// Every kind there is. A new one is a file with its `KIND`, and a line here.
pub static KINDS: [Kind; 6] = [rendezvous::KIND, ketama::KIND, modulo::KIND, single::KIND, empty::KIND, map::KIND];

/// The agents that are to hold something.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ensemble {
    /// In order of preference, all different.
    pub members: SmallVec<[AgentId; 4]>,
    /// There are fewer than asked for, or two of them share a failure domain.
    pub degraded: bool,
}

/// One version of the ring, ready to be asked.
#[derive(Debug)]
pub struct Ring {
    spec: RingSpec,
    candidates: Vec<Candidate>,
    /// Parts of a path that make a failure domain.
    level: usize,
    /// Parts of the longest path.
    depth: usize,
    placement: Box<dyn Placement>,
}

/// An agent that has a weight.
#[derive(Debug)]
struct Candidate {
    id: AgentId,
    /// For each part of its path the number of the domain that the path names up to there.
    domains: SmallVec<[u32; 4]>,
}

impl Ring {
    /// The ring of `spec`.
    ///
    /// # Errors
    /// When the spec is not one of a ring; the error says what to change.
    pub fn new(spec: &RingSpec) -> Result<Self, RingError> {
        spec.check()?;
        let mut agents: Vec<RingAgent> = spec.agents.iter().filter(|agent| agent.weight > 0).cloned().collect();
        agents.sort_by_key(|agent| agent.id);
        let placement = (spec.kind()?.build)(spec, &agents)?;
        let mut numbers = BTreeMap::new();
        let candidates = agents.iter().map(|agent| {
            let mut number = |path| {
                let next = numbers.len() as u32;
                *numbers.entry(path).or_insert(next)
            };
            let ends = agent.domain.match_indices('/').map(|(end, _)| end).chain([agent.domain.len()]);
            Candidate { id: agent.id, domains: ends.map(|end| number(&agent.domain[..end])).collect() }
        });
        let candidates: Vec<Candidate> = candidates.collect();
        let depth = candidates.iter().map(|candidate| candidate.domains.len()).max().unwrap_or(1);
        let level = spec.spread.map_or(depth, usize::from);
        Ok(Self { spec: spec.clone(), candidates, level, depth, placement })
    }

    /// What it was made from.
    #[must_use]
    pub fn spec(&self) -> &RingSpec {
        &self.spec
    }

    /// Copies that are kept of what does not say how many.
    #[must_use]
    pub fn replicas(&self) -> usize {
        usize::from(self.spec.replicas)
    }

    /// All agents for `key`, best first, with no regard to domains. Agents without weight are not in it.
    pub fn order(&self, key: impl Into<Key>) -> impl Iterator<Item = AgentId> {
        self.placement.order(key.into()).map(|i| self.candidates[i].id)
    }

    /// The `want` agents that are to hold `key`, of those that are `eligible`.
    pub fn place(&self, key: impl Into<Key>, want: usize, eligible: impl Fn(AgentId) -> bool) -> Ensemble {
        let mut members: SmallVec<[usize; 4]> = SmallVec::new();
        let mut left: SmallVec<[usize; 16]> = SmallVec::new();
        for i in self.placement.order(key.into()).filter(|&i| eligible(self.candidates[i].id)) {
            if members.len() == want {
                break;
            }
            if self.is_apart(i, &members, self.level) { members.push(i) } else { left.push(i) }
        }
        let degraded = members.len() < want;
        // Where domains ran out, finer ones differ as long as there are some, and in the end only the agents.
        for level in self.level + 1..=self.depth {
            left.retain(|i| {
                let take = members.len() < want && self.is_apart(*i, &members, level);
                if take {
                    members.push(*i);
                }
                !take
            });
        }
        let missing = want - members.len();
        members.extend(left.into_iter().take(missing));
        Ensemble { members: members.iter().map(|&i| self.candidates[i].id).collect(), degraded }
    }

    /// The failure domain of an agent of this ring, as far as the ring looks at it.
    #[must_use]
    pub fn domain(&self, agent: AgentId) -> Option<&str> {
        let agent = self.spec.agents.iter().find(|a| a.id == agent)?;
        let mut ends = agent.domain.match_indices('/').map(|(end, _)| end);
        let end = self.spec.spread.and_then(|level| ends.nth(usize::from(level) - 1));
        Some(&agent.domain[..end.unwrap_or(agent.domain.len())])
    }

    /// Whether no two of `agents` share a failure domain. Of one that is not in this ring that cannot be said.
    #[must_use]
    pub fn is_spread(&self, agents: impl Iterator<Item = AgentId>) -> bool {
        let mut seen = BTreeSet::new();
        agents.map(|agent| self.domain(agent)).all(|domain| domain.is_some_and(|domain| seen.insert(domain)))
    }

    /// Whether the first `level` parts of the candidate's path are none of the members'.
    fn is_apart(&self, candidate: usize, members: &[usize], level: usize) -> bool {
        let domain = |i: usize| {
            let domains = &self.candidates[i].domains;
            domains[level.min(domains.len()) - 1]
        };
        members.iter().all(|&member| domain(member) != domain(candidate))
    }
}

impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.spec.fmt(f)
    }
}

/// The ring as it is, with those before it that data may still lie by.
#[derive(Debug)]
pub struct Rings {
    /// Counts up with each change.
    pub version: RingVersion,
    /// Where things belong.
    pub now: Ring,
    /// Where they may still be, newest first. Empty unless a change is under way.
    pub before: Vec<Ring>,
}

impl Rings {
    /// The rings of a document.
    ///
    /// # Errors
    /// When one of its specs is not one of a ring.
    pub fn new(doc: &RingDoc) -> Result<Self, RingError> {
        let before = doc.before.iter().map(Ring::new).collect::<Result<_, _>>()?;
        Ok(Self { version: doc.version, now: Ring::new(&doc.now)?, before })
    }

    /// Whether data is still on its way to where it belongs.
    #[must_use]
    pub fn is_changing(&self) -> bool {
        !self.before.is_empty()
    }

    /// Everybody who may hold one of `want` copies of `key`: those who should, then those who should have before.
    #[must_use]
    pub fn holders(&self, key: impl Into<Key>, want: usize) -> Vec<AgentId> {
        let key = key.into();
        let mut holders = Vec::new();
        for ring in [&self.now].into_iter().chain(&self.before) {
            for member in ring.place(key, want, |_| true).members {
                if !holders.contains(&member) {
                    holders.push(member);
                }
            }
        }
        holders
    }
}
