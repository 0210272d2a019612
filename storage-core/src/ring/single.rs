//! `single`: one agent has everything. For one machine.

use super::{Built, Key, Kind, Order, Placement, RingAgent, RingError, RingSpec};

pub(super) const KIND: Kind = Kind { name: "single", about: "one agent has everything", build };

fn build(spec: &RingSpec, agents: &[RingAgent]) -> Built {
    spec.takes_no_options()?;
    spec.needs_agents(agents)?;
    match agents.len() {
        1 => Ok(Box::new(Single)),
        agents => Err(RingError::NotSingle { agents }),
    }
}

#[derive(Debug)]
struct Single;

impl Placement for Single {
    fn order(&self, _: Key) -> Order<'_> {
        Box::new(std::iter::once(0))
    }
}
