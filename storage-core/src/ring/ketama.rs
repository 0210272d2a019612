//! `ketama`: agents have points on a circle of numbers, as many as their weight says, and a key goes round from where
//! its own number lies.
//!
//! An agent's points depend on its id, and their count on its weight and on a unit: the power of two that gives the
//! heaviest agent 256 to 512 of them. So one that comes or goes moves only what it gets or had, unless the heaviest
//! agent crosses a power of two: then all have half or double the points, and about as much moves as in a new ring.
//! Shares are even to about 5 %, and an agent far lighter than the heaviest gets at least one point. `rendezvous` has
//! neither limit; this kind is for those who know and trust it, and finds the first agents faster in large rings.

use super::hash::{Draw, draw};
use super::{Built, Key, Kind, Order, Placement, RingAgent, RingSpec};

pub(super) const KIND: Kind = Kind { name: "ketama", about: "points on a circle, weighted by their number", build };

/// Points of the heaviest agent at most.
const POINTS_MAX: u64 = 512;

fn build(spec: &RingSpec, agents: &[RingAgent]) -> Built {
    spec.takes_no_options()?;
    spec.needs_agents(agents)?;
    let heaviest = agents.iter().map(|agent| agent.weight).max().unwrap_or(1).next_power_of_two();
    let count = |weight: u64| (u128::from(weight) * u128::from(POINTS_MAX)).div_ceil(u128::from(heaviest)) as u64;
    let points = agents.iter().zip(0..).flat_map(|(agent, i)| {
        (0..count(agent.weight)).map(move |point| (draw(Draw::KetamaPoint, &[agent.id.0, point]), i))
    });
    let mut points: Vec<(u64, u32)> = points.collect();
    points.sort_unstable();
    Ok(Box::new(Ketama { points, agents: agents.len() }))
}

#[derive(Debug)]
struct Ketama {
    points: Vec<(u64, u32)>,
    agents: usize,
}

impl Placement for Ketama {
    fn order(&self, key: Key) -> Order<'_> {
        let at = draw(Draw::KetamaKey, &[key.hash]);
        let (before, after) = self.points.split_at(self.points.partition_point(|&(point, _)| point < at));
        let mut seen = vec![false; self.agents];
        let round = after.iter().chain(before).map(|&(_, agent)| agent as usize);
        Box::new(round.filter(move |&agent| !std::mem::replace(&mut seen[agent], true)).take(self.agents))
    }
}
