//! The Torus agent: see the crate description.
