//! A block volume on top of a replicated log: what makes a volume a *block* volume is here and nowhere below.
//!
//! | module | what it is |
//! |---|---|
//! | [`map`] | from block address to place in the log |

pub mod map;
