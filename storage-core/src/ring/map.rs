//! `map`: an operator's rules. The first rule that matches a key names its agents in order; those whom it does not name
//! come after them, as the fallback kind orders them.
//!
//! ```json
//! { "rules": [ { "volume": "00000000000000a1", "agents": ["0000000000000001", "0000000000000002"] },
//!              { "keys": { "from": "0000000000000000", "to": "7fffffffffffffff" }, "agents": ["0000000000000003"] } ],
//!   "fallback": "rendezvous" }
//! ```
//!
//! Domains hold for rules as for all else: of two agents in one domain the second is passed over. With the fallback
//! `empty` a rule's agents are all there are for what it matches, and a key without a rule has nobody.

use super::{Built, Key, Kind, Order, Placement, RingAgent, RingError, RingSpec};
use crate::ids::{AgentId, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

pub(super) const KIND: Kind = Kind { name: "map", about: "your own rules, with another kind where they end", build };

/// The options of kind `map`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MapOptions {
    /// The first that matches counts.
    pub rules: Vec<Rule>,
    /// The kind that orders whom the rules leave out; `rendezvous` if not given.
    #[serde(default = "fallback")]
    pub fallback: String,
}

fn fallback() -> String {
    super::rendezvous::KIND.name.into()
}

/// One rule. It matches a key that fits all that it names; one that names nothing matches every key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Keys of this volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeId>,
    /// Keys with these hashes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<KeyRange>,
    /// Who gets them, best first.
    pub agents: Vec<AgentId>,
}

/// A share of all keys, by their hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRange {
    /// The first.
    pub from: KeyHash,
    /// The last.
    pub to: KeyHash,
}

/// A key's hash, in JSON as 16 hexadecimal digits: a number of that size does not survive every JSON tool.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyHash(pub u64);

impl From<KeyHash> for String {
    fn from(hash: KeyHash) -> String {
        format!("{:016x}", hash.0)
    }
}

impl TryFrom<String> for KeyHash {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let hash = u64::from_str_radix(&text, 16).ok().filter(|_| digits);
        hash.map(KeyHash).ok_or_else(|| format!("{text:?} is not a key's hash: expected 16 hexadecimal digits"))
    }
}

fn build(spec: &RingSpec, agents: &[RingAgent]) -> Built {
    spec.needs_agents(agents)?;
    let bad = |reason: String| RingError::Options { kind: KIND.name.into(), reason };
    let options = MapOptions::deserialize(&spec.options).map_err(|e| bad(e.to_string()))?;
    let known: BTreeSet<AgentId> = spec.agents.iter().map(|agent| agent.id).collect();
    let mut rules = Vec::new();
    for (n, rule) in options.rules.iter().enumerate() {
        let bad = |reason: String| bad(format!("rule {}: {reason}", n + 1));
        if rule.keys.is_some_and(|keys| keys.from > keys.to) {
            return Err(bad("its keys end before they begin".into()));
        }
        if rule.agents.is_empty() {
            return Err(bad("it names no agents".into()));
        }
        let mut named = BTreeSet::new();
        for agent in &rule.agents {
            if !known.contains(agent) {
                return Err(bad(format!("agent {agent} is not in the ring: add it, or take it out of the rule")));
            }
            if !named.insert(agent) {
                return Err(bad(format!("agent {agent} is in it twice")));
            }
        }
        // An agent without weight is being emptied: rules pass it over, too.
        let positions = rule.agents.iter().filter_map(|id| agents.binary_search_by_key(id, |agent| agent.id).ok());
        rules.push((rule.volume, rule.keys, positions.collect()));
    }
    let inner = RingSpec { kind: options.fallback, options: serde_json::Value::Null, ..spec.clone() };
    let inner_agents = if inner.kind == super::empty::KIND.name { &[] } else { agents };
    let fallback = inner.kind().and_then(|kind| (kind.build)(&inner, inner_agents));
    let fallback = fallback.map_err(|e| bad(format!("fallback: {e}")))?;
    Ok(Box::new(Map { rules, fallback }))
}

#[derive(Debug)]
struct Map {
    rules: Vec<(Option<VolumeId>, Option<KeyRange>, Vec<usize>)>,
    fallback: Box<dyn Placement>,
}

impl Placement for Map {
    fn order(&self, key: Key) -> Order<'_> {
        let rule = self.rules.iter().find(|(volume, keys, _)| {
            let volume_fits = volume.is_none_or(|volume| key.volume == Some(volume));
            volume_fits && keys.is_none_or(|keys| (keys.from.0..=keys.to.0).contains(&key.hash))
        });
        let named = rule.map_or(&[][..], |(_, _, agents)| agents);
        let others = self.fallback.order(key).filter(|agent| !named.contains(agent));
        Box::new(named.iter().copied().chain(others))
    }
}
