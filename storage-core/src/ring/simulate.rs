//! What a change of the ring would move, before it is made.

use super::{Key, Ring};
use crate::ids::AgentId;
use std::collections::BTreeMap;
use std::fmt;

/// What moves between two rings.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Moved {
    /// Extents looked at.
    pub extents: u64,
    /// Those of which at least one copy moves.
    pub extents_moved: u64,
    /// Their copies in the new ring.
    pub copies: u64,
    /// Those that are at an agent that had none of that extent.
    pub copies_moved: u64,
    /// Extents that are degraded in the new ring.
    pub degraded: u64,
    /// Each agent of either ring.
    pub agents: BTreeMap<AgentId, Flow>,
}

/// What an agent holds and gets, in copies of extents.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flow {
    /// Held in the old ring.
    pub before: u64,
    /// Held in the new one.
    pub after: u64,
    /// Of those, the ones it does not have yet.
    pub arriving: u64,
    /// Those it has in the old ring only.
    pub leaving: u64,
}

impl Moved {
    /// Share of the new ring's copies that have to be made, from 0 to 1.
    #[must_use]
    pub fn fraction(&self) -> f64 {
        if self.copies == 0 { 0.0 } else { self.copies_moved as f64 / self.copies as f64 }
    }
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = 100.0 * self.fraction();
        write!(f, "{} of {} copies move ({percent:.1} %)", self.copies_moved, self.copies)?;
        write!(f, ", of {} of {} extents", self.extents_moved, self.extents)?;
        if self.degraded > 0 {
            write!(f, "; {} extents have fewer copies, or share failure domains, more than asked", self.degraded)?;
        }
        Ok(())
    }
}

/// Some keys, evenly spread, for a simulation without extents at hand.
pub fn sample(keys: u64) -> impl Iterator<Item = (Key, Option<usize>)> {
    (0..keys).map(|key| (Key::from(key), None))
}

/// What moves when `old` becomes `new`: of the extents with these keys and numbers of copies (`None`: each ring's own),
/// with all agents up.
pub fn simulate(old: &Ring, new: &Ring, extents: impl IntoIterator<Item = (Key, Option<usize>)>) -> Moved {
    let agents = old.spec().agents.iter().chain(&new.spec().agents);
    let mut moved = Moved { agents: agents.map(|agent| (agent.id, Flow::default())).collect(), ..Moved::default() };
    for (key, copies) in extents {
        let before = old.place(key, copies.unwrap_or(old.replicas()), |_| true);
        let after = new.place(key, copies.unwrap_or(new.replicas()), |_| true);
        let mut arriving = 0;
        for member in &after.members {
            let flow = moved.agents.entry(*member).or_default();
            flow.after += 1;
            if !before.members.contains(member) {
                flow.arriving += 1;
                arriving += 1;
            }
        }
        for member in &before.members {
            let flow = moved.agents.entry(*member).or_default();
            flow.before += 1;
            flow.leaving += u64::from(!after.members.contains(member));
        }
        moved.extents += 1;
        moved.extents_moved += u64::from(arriving > 0);
        moved.copies += after.members.len() as u64;
        moved.copies_moved += arriving;
        moved.degraded += u64::from(after.degraded);
    }
    moved
}
