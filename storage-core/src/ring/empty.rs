//! `empty`: nobody has anything. A cluster's ring before its first agent, and a `map`'s fallback where rules alone
//! decide.

use super::{Built, Key, Kind, Order, Placement, RingAgent, RingError, RingSpec};

pub(super) const KIND: Kind = Kind { name: "empty", about: "no agents at all", build };

fn build(spec: &RingSpec, agents: &[RingAgent]) -> Built {
    spec.takes_no_options()?;
    match agents.len() {
        0 => Ok(Box::new(Empty)),
        agents => Err(RingError::NotEmpty { agents }),
    }
}

#[derive(Debug)]
struct Empty;

impl Placement for Empty {
    fn order(&self, _: Key) -> Order<'_> {
        Box::new(std::iter::empty())
    }
}
