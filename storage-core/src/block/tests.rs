//! A volume over real members in one small world without faults of its own: what goes wrong is what a test makes go
//! wrong. Faults at random, with all the invariants, are `torus-sim`'s.

mod scenarios;
mod waste;
mod world;
